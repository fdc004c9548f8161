from mmtrackers.tuners.lora import lora_config, start_lora

from .configuration_lorat import LoRATConfig
from .modeling_lorat import LoRATForTracking, LoRATModel

__all__ = ["LoRATConfig", "LoRATForTracking", "LoRATModel", "lora_config", "start_lora"]
