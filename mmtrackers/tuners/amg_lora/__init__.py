from mmtrackers.hub.adapters import register_tuner
from mmtrackers.tuners.registration import TrackerPeftType

from .config import AMGLoraConfig
from .model import AMGLoraModel

register_tuner(TrackerPeftType.AMG_LORA, AMGLoraConfig, AMGLoraModel)

__all__ = ["AMGLoraConfig", "AMGLoraModel"]
