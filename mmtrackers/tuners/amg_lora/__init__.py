from mmtrackers.tuners.registration import TrackerPeftType, register_tuner

from .config import AMGLoraConfig
from .model import AMGLoraModel

register_tuner(TrackerPeftType.AMG_LORA, AMGLoraConfig, AMGLoraModel)

__all__ = ["AMGLoraConfig", "AMGLoraModel"]
