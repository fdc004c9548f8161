from mmtrackers.tuners.registration import TrackerPeftType, register_tuner

from .config import TMoEConfig
from .model import TMoEModel

register_tuner(TrackerPeftType.TMOE, TMoEConfig, TMoEModel)

__all__ = ["TMoEConfig", "TMoEModel"]
