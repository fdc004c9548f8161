"""The table of models under test, small enough to build in milliseconds, and what their tests share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn

from mmtrackers import (
    AMGLoraConfig,
    ODTrackConfig,
    ODTrackForTracking,
    OSTrackConfig,
    OSTrackForTracking,
    PATrackConfig,
    PATrackForTracking,
    ProgressiveConfig,
    SDMoEAConfig,
    SDMoEAForTracking,
    SDMoEConfig,
    SEATrackConfig,
    SEATrackForTracking,
    TrackerPreTrainedModel,
)

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "head_channels": 16,
    "search_size": 64,
    "template_size": 32,
    "drop_path_rate": 0.0,
}


@dataclass(frozen=True)
class Row:
    """A model: its name, class, config class, the fields that make it tiny, its adapter, a factor on the final norm.

    The head of ODTrack reads features times their product with a token: without that factor, random weights would
    saturate it.
    """

    name: str
    model: type[TrackerPreTrainedModel]
    config: type[OSTrackConfig]
    fields: dict[str, Any]
    adapter: Callable[[], PeftConfig] | None = None
    norm_scale: float = 1.0

    def make_config(self, **changes: Any) -> OSTrackConfig:
        return self.config(**(TINY | self.fields | changes))

    def plain(self, **changes: Any) -> TrackerPreTrainedModel:
        """The model without its adapter; its numbers are random, as after training."""
        torch.manual_seed(0)
        model = self.model(self.make_config(**changes)).eval()
        scramble(model, 0.1)
        with torch.no_grad():
            for parameter in model.model.norm.parameters():
                parameter.mul_(self.norm_scale)
        return model

    def build(self, **changes: Any) -> TrackerPreTrainedModel:
        """The model, with a scrambled adapter where the row has one."""
        model = self.plain(**changes)
        if self.adapter is not None:
            model.requires_grad_(False)
            model.add_adapter(self.adapter())
            scramble(model, 0.1, trainable_only=True)
        return model.eval()


def tiny_adapter(**changes: Any) -> AMGLoraConfig:
    """A tiny adapter without dropout."""
    return AMGLoraConfig(**({"r": 2, "hmoe_rank": 2, "lora_dropout": 0.0, "hmoe_dropout": 0.0} | changes))


def tiny_progressive(**changes: Any) -> ProgressiveConfig:
    """A tiny adapter of PATrack without dropout; with a layer of each kind, and another one at the end."""
    sizes = {"mda_width": 4, "cea_width": 4, "cea_layers": [1], "head_width": 8, "head_dropout": 0.0}
    return ProgressiveConfig(**(sizes | changes))


def tiny_sdmoe(**changes: Any) -> SDMoEConfig:
    """A tiny adapter of SDMoEA."""
    return SDMoEConfig(**({"adapter_dim": 4, "hyper_dim": 8} | changes))


ROWS = [
    Row("ostrack", OSTrackForTracking, OSTrackConfig, {"elimination_layers": [1]}),
    Row("ostrack-conv", OSTrackForTracking, OSTrackConfig, {"elimination_layers": [], "stem": "conv"}),
    Row("patrack", PATrackForTracking, PATrackConfig, {}, tiny_progressive),
    Row("odtrack", ODTrackForTracking, ODTrackConfig, {"num_templates": 2}, norm_scale=0.2),
    Row(
        "odtrack-two-streams",
        ODTrackForTracking,
        ODTrackConfig,
        {"num_templates": 2, "streams": 2, "modality": "depth"},
        norm_scale=0.2,
    ),
    Row("sdmoea", SDMoEAForTracking, SDMoEAConfig, {"num_templates": 2}, tiny_sdmoe, norm_scale=0.2),
    Row("seatrack", SEATrackForTracking, SEATrackConfig, {}, tiny_adapter),
]


@torch.no_grad()
def scramble(model: nn.Module, scale: float, trainable_only: bool = False) -> None:
    random = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad or not trainable_only:
            parameter.add_(scale * torch.randn(parameter.shape, generator=random))
    for module in () if trainable_only else model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=random)
            module.running_var.uniform_(0.8, 1.2, generator=random)


def inputs(config: OSTrackConfig, batch: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Search and template crops."""
    random = torch.Generator().manual_seed(1)
    sizes = {"search": (batch,), "template": (batch, getattr(config, "num_templates", 1))}
    return {
        role: torch.randn(
            *lead, config.streams, 3, *[getattr(config, f"{role}_size")] * 2, generator=random
        ).to(dtype)
        for role, lead in sizes.items()
    }


def template_tokens(config: OSTrackConfig) -> int:
    """Tokens of all templates of `inputs`."""
    return getattr(config, "num_templates", 1) * config.template_grid**2


def labels(batch: int = 2) -> Tensor:
    return torch.tensor([[0.3, 0.35, 0.3, 0.2], [0.1, 0.2, 0.5, 0.4]])[:batch]


def maps(model: nn.Module, feed: dict[str, Tensor]) -> Tensor:
    """All that the head says, in one tensor `[B, 5, g, g]`."""
    output = model(**feed)
    return torch.cat([output.score_map, output.size_map, output.offset_map], dim=1)


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()
