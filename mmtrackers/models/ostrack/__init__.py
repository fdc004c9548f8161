from .configuration_ostrack import OSTrackConfig
from .modeling_ostrack import OSTrackForTracking, OSTrackModel

__all__ = ["OSTrackConfig", "OSTrackForTracking", "OSTrackModel"]
