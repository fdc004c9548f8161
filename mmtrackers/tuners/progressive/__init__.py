from mmtrackers.tuners.registration import TrackerPeftType, register_tuner

from .config import ProgressiveConfig
from .model import ProgressiveModel

register_tuner(TrackerPeftType.PROGRESSIVE, ProgressiveConfig, ProgressiveModel)

__all__ = ["ProgressiveConfig", "ProgressiveModel"]
