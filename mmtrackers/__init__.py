"""Multi-modal single-object tracking: a frozen tracker plus a small trained adapter."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from .hub.auto import AutoTracker
from .modeling.base import TrackerPreTrainedModel, TrackingOutput
from .modeling.seams import TokenLayout
from .models.lorat import LoRATConfig, LoRATForTracking, LoRATModel
from .models.odtrack import ODTrackConfig, ODTrackForTracking, ODTrackModel
from .models.ostrack import OSTrackConfig, OSTrackForTracking, OSTrackModel
from .models.patrack import PATrackConfig, PATrackForTracking
from .models.sdmoea import SDMoEAConfig, SDMoEAForTracking
from .models.seatrack import SEATrackConfig, SEATrackForTracking
from .models.spmtrack import SPMTrackConfig, SPMTrackForTracking, SPMTrackModel
from .pipeline import VisualObjectTrackingPipeline
from .processing.image_processing import TrackerImageProcessor
from .tracking.session import Prediction, TrackingSession, update_together
from .tracking.targets import Targets
from .tracking.tracker import Tracker
from .tuners.amg_lora import AMGLoraConfig, AMGLoraModel
from .tuners.progressive import ProgressiveConfig, ProgressiveModel
from .tuners.sdmoe import SDMoEConfig, SDMoEModel
from .tuners.tmoe import TMoEConfig, TMoEModel

__version__ = "0.1.0"

AutoModel.register(LoRATConfig, LoRATModel)
AutoModel.register(ODTrackConfig, ODTrackModel)
AutoModel.register(OSTrackConfig, OSTrackModel)
AutoModel.register(SPMTrackConfig, SPMTrackModel)
for _config, _tracker in (
    (LoRATConfig, LoRATForTracking),
    (ODTrackConfig, ODTrackForTracking),
    (OSTrackConfig, OSTrackForTracking),
    (PATrackConfig, PATrackForTracking),
    (SDMoEAConfig, SDMoEAForTracking),
    (SEATrackConfig, SEATrackForTracking),
    (SPMTrackConfig, SPMTrackForTracking),
):
    AutoConfig.register(_config.model_type, _config)
    AutoTracker.register(_config, _tracker)
    AutoImageProcessor.register(_config, image_processor_classes={"pil": TrackerImageProcessor})

__all__ = [
    "AMGLoraConfig",
    "AMGLoraModel",
    "AutoTracker",
    "LoRATConfig",
    "LoRATForTracking",
    "LoRATModel",
    "ODTrackConfig",
    "ODTrackForTracking",
    "ODTrackModel",
    "OSTrackConfig",
    "OSTrackForTracking",
    "OSTrackModel",
    "PATrackConfig",
    "PATrackForTracking",
    "Prediction",
    "ProgressiveConfig",
    "ProgressiveModel",
    "SDMoEAConfig",
    "SDMoEAForTracking",
    "SDMoEConfig",
    "SDMoEModel",
    "SEATrackConfig",
    "SEATrackForTracking",
    "SPMTrackConfig",
    "SPMTrackForTracking",
    "SPMTrackModel",
    "TMoEConfig",
    "TMoEModel",
    "Targets",
    "TokenLayout",
    "Tracker",
    "TrackerImageProcessor",
    "TrackerPreTrainedModel",
    "TrackingOutput",
    "TrackingSession",
    "VisualObjectTrackingPipeline",
    "update_together",
]
