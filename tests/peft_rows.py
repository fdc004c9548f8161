"""The table of tuners under test: one row each, on a tracker small enough to build in milliseconds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmtrackers import (
    AMGLoraConfig,
    LoRATConfig,
    LoRATForTracking,
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
    TMoEConfig,
)
from mmtrackers.tuners.lora import lora_config

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "head_channels": 16,
    "patch_size": 16,
    "search_size": 64,
    "template_size": 32,
    "elimination_layers": [],
    "drop_path_rate": 0.0,
}
TINY_LORAT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "search_size": 56,
    "template_size": 28,
}


@dataclass(frozen=True)
class Row:
    """One tuner.

    Attributes:
        peft_type: its name in `adapter_config.json`.
        base: makes the base that is saved once per row.
        tracker: the class that carries the adapter.
        tracker_config: makes that class's config.
        config: makes an adapter config (all dropout off).
        neutral: like `config`, but such that a fresh adapter leaves the base's output unchanged; None: no such config.
        fresh_changes: whether a fresh adapter of `config` changes the output.
        merge_error: words of the error of `merge_and_unload`; None where it works.
    """

    peft_type: str
    base: Callable[[], PreTrainedModel]
    tracker: type[PreTrainedModel]
    tracker_config: Callable[[], Any]
    config: Callable[[], PeftConfig]
    neutral: Callable[[], PeftConfig] | None
    fresh_changes: bool
    merge_error: str | None


def _shaken(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():  # a fresh model's maps are nearly flat: differences would hide in rounding
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tiny_ostrack() -> PreTrainedModel:
    torch.manual_seed(0)
    return _shaken(OSTrackForTracking(OSTrackConfig(**TINY)))


def tiny_odtrack() -> PreTrainedModel:
    torch.manual_seed(0)
    model = _shaken(ODTrackForTracking(ODTrackConfig(**TINY)))
    with torch.no_grad():  # the head reads features times their product with a token
        model.model.norm.weight.mul_(0.3)
    return model


def tiny_lorat() -> PreTrainedModel:
    torch.manual_seed(0)
    return _shaken(LoRATForTracking(LoRATConfig(**TINY_LORAT)))


_LORA = partial(LoraConfig, target_modules=["k_proj", "v_proj"], r=2)
_TMOE = partial(TMoEConfig, r=2, alpha=2, num_experts=3)
_SDMOE = partial(SDMoEConfig, adapter_dim=4, hyper_dim=8)
_PROGRESSIVE = partial(ProgressiveConfig, mda_width=4, cea_width=4, head_width=4, head_dropout=0.0)
_AMG = partial(AMGLoraConfig, r=2, hmoe_rank=2, lora_dropout=0.0, hmoe_dropout=0.0)

ROWS = [
    Row("LORA", tiny_ostrack, OSTrackForTracking, lambda: OSTrackConfig(**TINY), _LORA, _LORA, False, None),
    Row(
        "AMG_LORA",
        tiny_ostrack,
        SEATrackForTracking,
        lambda: SEATrackConfig(**TINY, streams=2, modality="thermal"),
        _AMG,
        partial(_AMG, use_amg=False, use_hmoe=False),
        True,
        "unload",
    ),
    Row(
        "PROGRESSIVE",
        tiny_ostrack,
        PATrackForTracking,
        lambda: PATrackConfig(**TINY, modality="thermal"),
        _PROGRESSIVE,
        None,  # as published, a fresh head adapter replaces the features
        True,
        "both streams",
    ),
    Row(
        "SDMOE",
        tiny_odtrack,
        SDMoEAForTracking,
        lambda: SDMoEAConfig(**TINY),
        _SDMOE,
        _SDMOE,
        False,
        "chosen per token",
    ),
    Row(
        "TMOE",
        tiny_ostrack,
        OSTrackForTracking,
        lambda: OSTrackConfig(**TINY),
        _TMOE,
        partial(_TMOE, init="lora"),
        True,
        "every token",
    ),
    Row("LORA", tiny_odtrack, ODTrackForTracking, lambda: ODTrackConfig(**TINY), _LORA, _LORA, False, None),
    Row(
        "LORA",
        tiny_lorat,
        LoRATForTracking,
        lambda: LoRATConfig(**TINY_LORAT),
        partial(lora_config, 2, 2),  # with head and token types trained in full
        partial(lora_config, 2, 2, init_lora_weights=True),
        True,
        None,
    ),
]


def inputs(model: PreTrainedModel, batch: int = 2) -> dict[str, Tensor]:
    """Search and template crops of the model's sizes and streams, and labels; a mask where the model reads one."""
    config, random = model.config, torch.Generator().manual_seed(1)
    mask = torch.zeros(batch, 1, config.template_grid, config.template_grid)
    mask[..., 0] = 1
    return ({"template_mask": mask} if model.reads_template_mask else {}) | {
        "search": torch.randn(batch, config.streams, 3, config.search_size, config.search_size, generator=random),
        "template": torch.randn(
            batch, 1, config.streams, 3, config.template_size, config.template_size, generator=random
        ),
        "labels": torch.tensor([[0.3, 0.35, 0.3, 0.2]]).repeat(batch, 1),
    }


def plain_tracker(row: Row, base: Path) -> PreTrainedModel:
    """The row's tracker with the base's weights and no adapter."""
    return row.tracker.from_pretrained(base, config=row.tracker_config())


def with_adapter(row: Row, base: Path, name: str = "default", seed: int | None = 2) -> PreTrainedModel:
    """The row's tracker with an adapter; its numbers are random, as after training, unless `seed` is None."""
    model = plain_tracker(row, base)
    torch.manual_seed(seed or 0)  # initial values too
    model.add_adapter(row.config(), name)
    if seed is not None:
        scramble(model, seed)
    return model.eval()


def scramble(model: nn.Module, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))


@torch.no_grad()
def maps(model: nn.Module, feed: dict[str, Tensor]) -> Tensor:
    """All that the head says, in one tensor."""
    output = model.eval()(**{name: value for name, value in feed.items() if name != "labels"})
    found = (output.score_map, output.size_map, output.offset_map, output.box_map)
    return torch.cat([value for value in found if value is not None], dim=1)


def adapter_parameters(row: Row, model: nn.Module) -> set[str]:
    """Names of a tracker's parameters that belong to its adapter, modules trained in full included."""
    marks = (PEFT_TYPE_TO_PREFIX_MAPPING[row.peft_type], ".modules_to_save.")
    return {name for name, _ in model.named_parameters() if any(mark in name for mark in marks)}
