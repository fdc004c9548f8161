from .configuration_lorat import LoRATConfig, lora_config
from .modeling_lorat import LoRATForTracking, LoRATModel, start_lora

__all__ = ["LoRATConfig", "LoRATForTracking", "LoRATModel", "lora_config", "start_lora"]
