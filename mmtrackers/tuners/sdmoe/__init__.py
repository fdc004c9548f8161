from mmtrackers.hub.adapters import register_tuner
from mmtrackers.tuners.registration import TrackerPeftType

from .config import SDMoEConfig
from .model import SDMoEModel

register_tuner(TrackerPeftType.SDMOE, SDMoEConfig, SDMoEModel)

__all__ = ["SDMoEConfig", "SDMoEModel"]
