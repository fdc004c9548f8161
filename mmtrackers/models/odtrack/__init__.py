from .configuration_odtrack import ODTrackConfig
from .modeling_odtrack import ODTrackForTracking, ODTrackModel

__all__ = ["ODTrackConfig", "ODTrackForTracking", "ODTrackModel"]
