from .configuration_lorat import LoRATConfig, lora_config
from .modeling_lorat import LoRATForTracking, LoRATModel

__all__ = ["LoRATConfig", "LoRATForTracking", "LoRATModel", "lora_config"]
