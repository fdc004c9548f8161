from .configuration_ostrack import OSTrackConfig
from .image_vit import ostrack_from_image_vit
from .modeling_ostrack import OSTrackForTracking, OSTrackModel

__all__ = ["OSTrackConfig", "OSTrackForTracking", "OSTrackModel", "ostrack_from_image_vit"]
