from mmtrackers.hub.adapters import register_tuner
from mmtrackers.tuners.registration import TrackerPeftType

from .config import ProgressiveConfig
from .model import ProgressiveModel

register_tuner(TrackerPeftType.PROGRESSIVE, ProgressiveConfig, ProgressiveModel)

__all__ = ["ProgressiveConfig", "ProgressiveModel"]
