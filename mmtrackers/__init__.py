"""Multi-modal single-object tracking: a frozen tracker plus a small trained adapter."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from .auto import AutoTracker
from .image_processing import TrackerImageProcessor
from .modeling import TokenLayout, TrackerPreTrainedModel, TrackingOutput
from .models.ostrack import OSTrackConfig, OSTrackForTracking, OSTrackModel
from .tracking import Prediction, Tracker, TrackingSession

__version__ = "0.1.0"

for _config, _trunk, _tracker in ((OSTrackConfig, OSTrackModel, OSTrackForTracking),):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _trunk)
    AutoTracker.register(_config, _tracker)
    AutoImageProcessor.register(_config, image_processor_classes={"pil": TrackerImageProcessor})

__all__ = [
    "AutoTracker",
    "OSTrackConfig",
    "OSTrackForTracking",
    "OSTrackModel",
    "Prediction",
    "TokenLayout",
    "Tracker",
    "TrackerImageProcessor",
    "TrackerPreTrainedModel",
    "TrackingOutput",
    "TrackingSession",
]
