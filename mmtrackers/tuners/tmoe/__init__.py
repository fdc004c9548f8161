from mmtrackers.hub.adapters import register_tuner
from mmtrackers.tuners.registration import TrackerPeftType

from .config import TMoEConfig
from .model import TMoEModel

register_tuner(TrackerPeftType.TMOE, TMoEConfig, TMoEModel)

__all__ = ["TMoEConfig", "TMoEModel"]
