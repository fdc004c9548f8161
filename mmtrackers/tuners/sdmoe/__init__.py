from mmtrackers.tuners.registration import TrackerPeftType, register_tuner

from .config import SDMoEConfig
from .model import SDMoEModel

register_tuner(TrackerPeftType.SDMOE, SDMoEConfig, SDMoEModel)

__all__ = ["SDMoEConfig", "SDMoEModel"]
