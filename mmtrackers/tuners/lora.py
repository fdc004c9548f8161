"""peft's own LoRA, as LoRAT trains it (Lin et al., arXiv 2403.05231)."""

from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from torch import nn


def lora_config(r: int = 64, lora_alpha: float = 64, **kwargs: Any) -> LoraConfig:
    """LoRAT's adapter: low-rank maps on every linear map of every layer; token types and head trained in full.

    Rank and scale are the published ones by default (a factor of 1); other fields are `peft.LoraConfig`'s. Given to
    `add_adapter` or `from_base` of a LoRAT tracker, both matrices of each pair start from a truncated normal
    distribution, neither at zero; after `peft.get_peft_model` call `start_lora`.
    """
    maps = r".*\.layers\.\d+\.(attention\.[qkvo]_proj|mlp\.(fc1|fc2|w12|w3))"
    fields = {"target_modules": maps, "modules_to_save": ["token_type", "head"], "init_lora_weights": False}
    return LoraConfig(r=r, lora_alpha=lora_alpha, **(fields | kwargs))


def starts_as_lorat(config: PeftConfig) -> bool:
    """Whether an adapter is a LoRA whose initial values are LoRAT's, not peft's."""
    return isinstance(config, LoraConfig) and config.init_lora_weights is False


@torch.no_grad()
def start_lora(model: nn.Module, adapter_name: str = "default") -> None:
    """Draws both matrices of an adapter's low-rank pairs from a truncated normal distribution, as LoRAT starts."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for pairs in (module.lora_A, module.lora_B):
                if adapter_name in pairs and not pairs[adapter_name].weight.is_meta:
                    nn.init.trunc_normal_(pairs[adapter_name].weight, std=0.02)
