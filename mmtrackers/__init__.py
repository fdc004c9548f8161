"""Multi-modal single-object tracking: a frozen tracker plus a small trained adapter."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _versions as _versions  # warns of versions that nobody tested
from .register import SYSTEMS, TRUNKS, TUNERS, register_when_loaded

if TYPE_CHECKING:
    from .hub.auto import AutoTracker as AutoTracker
    from .modeling.base import TrackerPreTrainedModel as TrackerPreTrainedModel
    from .modeling.base import TrackingOutput as TrackingOutput
    from .modeling.seams import TokenLayout as TokenLayout
    from .models.lorat.configuration_lorat import LoRATConfig as LoRATConfig
    from .models.lorat.modeling_lorat import LoRATForTracking as LoRATForTracking
    from .models.lorat.modeling_lorat import LoRATModel as LoRATModel
    from .models.odtrack.configuration_odtrack import ODTrackConfig as ODTrackConfig
    from .models.odtrack.modeling_odtrack import ODTrackForTracking as ODTrackForTracking
    from .models.odtrack.modeling_odtrack import ODTrackModel as ODTrackModel
    from .models.ostrack.configuration_ostrack import OSTrackConfig as OSTrackConfig
    from .models.ostrack.modeling_ostrack import OSTrackForTracking as OSTrackForTracking
    from .models.ostrack.modeling_ostrack import OSTrackModel as OSTrackModel
    from .models.patrack.configuration_patrack import PATrackConfig as PATrackConfig
    from .models.patrack.modeling_patrack import PATrackForTracking as PATrackForTracking
    from .models.sdmoea.configuration_sdmoea import SDMoEAConfig as SDMoEAConfig
    from .models.sdmoea.modeling_sdmoea import SDMoEAForTracking as SDMoEAForTracking
    from .models.seatrack.configuration_seatrack import SEATrackConfig as SEATrackConfig
    from .models.seatrack.modeling_seatrack import SEATrackForTracking as SEATrackForTracking
    from .models.spmtrack.configuration_spmtrack import SPMTrackConfig as SPMTrackConfig
    from .models.spmtrack.modeling_spmtrack import SPMTrackForTracking as SPMTrackForTracking
    from .models.spmtrack.modeling_spmtrack import SPMTrackModel as SPMTrackModel
    from .pipeline import VisualObjectTrackingPipeline as VisualObjectTrackingPipeline
    from .processing.image_processing import TrackerImageProcessor as TrackerImageProcessor
    from .tracking.session import Prediction as Prediction
    from .tracking.session import TrackingSession as TrackingSession
    from .tracking.session import update_together as update_together
    from .tracking.targets import Targets as Targets
    from .tracking.tracker import Tracker as Tracker
    from .tuners.amg_lora.config import AMGLoraConfig as AMGLoraConfig
    from .tuners.amg_lora.model import AMGLoraModel as AMGLoraModel
    from .tuners.progressive.config import ProgressiveConfig as ProgressiveConfig
    from .tuners.progressive.model import ProgressiveModel as ProgressiveModel
    from .tuners.sdmoe.config import SDMoEConfig as SDMoEConfig
    from .tuners.sdmoe.model import SDMoEModel as SDMoEModel
    from .tuners.tmoe.config import TMoEConfig as TMoEConfig
    from .tuners.tmoe.model import TMoEModel as TMoEModel

__version__ = "0.1.0"

# public names and the modules that they are in, which are imported when a name is used
_MODULES = {
    "AutoTracker": "hub.auto",
    "Prediction": "tracking.session",
    "Targets": "tracking.targets",
    "TokenLayout": "modeling.seams",
    "Tracker": "tracking.tracker",
    "TrackerImageProcessor": "processing.image_processing",
    "TrackerPreTrainedModel": "modeling.base",
    "TrackingOutput": "modeling.base",
    "TrackingSession": "tracking.session",
    "VisualObjectTrackingPipeline": "pipeline",
    "update_together": "tracking.session",
}
_MODULES |= {f"{name}Config": f"models.{folder}.configuration_{folder}" for folder, name in SYSTEMS.items()}
_MODULES |= {f"{name}ForTracking": f"models.{folder}.modeling_{folder}" for folder, name in SYSTEMS.items()}
_MODULES |= {f"{SYSTEMS[folder]}Model": f"models.{folder}.modeling_{folder}" for folder in TRUNKS}
_MODULES |= {f"{name}Config": f"tuners.{folder}.config" for folder, name in TUNERS.items()}
_MODULES |= {f"{name}Model": f"tuners.{folder}.model" for folder, name in TUNERS.items()}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mmtrackers' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"mmtrackers.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_loaded()
