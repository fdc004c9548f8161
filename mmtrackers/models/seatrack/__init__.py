from .configuration_seatrack import SEATrackConfig
from .modeling_seatrack import SEATrackForTracking

__all__ = ["SEATrackConfig", "SEATrackForTracking"]
