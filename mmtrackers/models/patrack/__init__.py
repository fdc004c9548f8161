from .configuration_patrack import PATrackConfig
from .modeling_patrack import PATrackForTracking

__all__ = ["PATrackConfig", "PATrackForTracking"]
