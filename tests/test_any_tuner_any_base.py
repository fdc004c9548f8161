"""Any tuner on any base: the seams have the same names and meaning on every trunk. One table; what cannot be, says so.

| tuner       | OSTrack | ODTrack | DINOv2 (LoRAT)                                                | streams |
|-------------|---------|---------|---------------------------------------------------------------|---------|
| LORA, TMOE  | yes     | yes     | yes, with any stochastic depth                                | 1 or 2  |
| AMG_LORA    | yes     | yes     | yes; not where a part of the batch is drawn (drop path > 0.1) | 2       |
| PROGRESSIVE | yes     | yes     | yes; nor there; MDA needs grids of even sides (not 27 x 27)   | 2       |
| SDMOE       | yes     | yes     | yes; nor there                                                | 2, or 1 |

SDMOE works on one stream without its fusion. Two streams exclude candidate elimination, on any base.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_rows import scramble, tiny_adapter, tiny_progressive, tiny_sdmoe
from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import Tensor

from mmtrackers import (
    AutoTracker,
    LoRATConfig,
    LoRATForTracking,
    ODTrackConfig,
    ODTrackForTracking,
    OSTrackConfig,
    OSTrackForTracking,
    TMoEConfig,
    TrackerPreTrainedModel,
)
from mmtrackers.tuners.amg_lora.layer import GuidedAttentionCore, MixtureJunction
from mmtrackers.tuners.progressive.layer import ParallelJunction

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "drop_path_rate": 0.0}
VIT = SIZES | {"head_channels": 64, "search_size": 64, "template_size": 32, "elimination_layers": []}

BASES: dict[str, tuple[type[TrackerPreTrainedModel], type, dict[str, Any]]] = {
    "ostrack": (OSTrackForTracking, OSTrackConfig, VIT),
    "odtrack": (ODTrackForTracking, ODTrackConfig, VIT | {"num_templates": 2}),
    "lorat": (LoRATForTracking, LoRATConfig, SIZES | {"search_size": 56, "template_size": 28}),
}


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**({"target_modules": ["q_proj", "v_proj", "fc1"], "r": 2} | changes))


def tmoe(**changes: Any) -> TMoEConfig:
    return TMoEConfig(**({"r": 2, "alpha": 2, "num_experts": 3} | changes))


# how an adapter is made, and how many streams its tracker has
TUNERS: dict[str, tuple[Callable[..., PeftConfig], int]] = {
    "LORA": (lora, 1),
    "TMOE": (tmoe, 1),
    "AMG_LORA": (tiny_adapter, 2),
    "PROGRESSIVE": (tiny_progressive, 2),
    "SDMOE": (tiny_sdmoe, 2),
}


def make(base: str, streams: int, **fields: Any) -> TrackerPreTrainedModel:
    """A base with random numbers, as after training."""
    model_class, config_class, sizes = BASES[base]
    torch.manual_seed(0)
    modality = "rgb" if streams == 1 else "thermal"
    model = model_class(config_class(**(sizes | {"streams": streams, "modality": modality} | fields))).eval()
    scramble(model, 0.05)
    if base == "odtrack":  # the head reads features times their product with a token: it would be saturated
        with torch.no_grad():
            model.model.norm.weight.mul_(0.3)
    return model


def feed_of(model: TrackerPreTrainedModel) -> dict[str, Tensor]:
    config, random = model.config, torch.Generator().manual_seed(1)
    templates, sides = getattr(config, "num_templates", 1), (config.search_size, config.template_size)
    search, template = (torch.randn(2, templates, config.streams, 3, s, s, generator=random) for s in sides)
    feed = {"search": search[:, 0], "template": template}
    if model.reads_template_mask:
        mask = torch.zeros(2, templates, config.template_grid, config.template_grid, dtype=torch.long)
        mask[:, :, :1] = 1
        feed["template_mask"] = mask
    return feed


@torch.no_grad()
def maps(model: TrackerPreTrainedModel, feed: dict[str, Tensor]) -> Tensor:
    """All that the head says, in one tensor."""
    output = model.eval()(**feed)
    names = ("score_map", "size_map", "offset_map", "box_map")
    return torch.cat([output[name].flatten(1) for name in names if output.get(name) is not None], 1)


def saved_modules(base: str) -> list[str]:
    return ["head", "token_type"] if base == "lorat" else ["head"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every base, saved once."""
    path = tmp_path_factory.mktemp("bases")
    for base in BASES:
        make(base, 1).save_pretrained(path / base)
    return path


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("tuner", TUNERS)
def test_tuner_on_base(tuner: str, base: str, folder: Path, tmp_path: Path) -> None:
    adapter, streams = TUNERS[tuner]
    plain = make(base, streams)
    feed = feed_of(plain)
    expected = maps(plain, feed)
    model = type(plain).from_pretrained(folder / base, config=plain.config)
    model.requires_grad_(False)
    model.add_adapter(adapter(modules_to_save=saved_modules(base)))
    scramble(model, 0.05, trainable_only=True)

    # forward and backward: the adapter and the modules to save learn, all of them, and nothing else
    model.train()
    labels = torch.tensor([[0.3, 0.35, 0.3, 0.2], [0.1, 0.2, 0.5, 0.4]])
    model(**feed, labels=labels).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == learning
    prefixes = (f".{PEFT_TYPE_TO_PREFIX_MAPPING[tuner]}", ".modules_to_save.default.")
    assert [name for name in learning if not any(prefix in name for prefix in prefixes)] == []
    assert {p for p in prefixes if any(p in name for name in learning)} == set(prefixes)
    # what a convolution adds before a batch norm, the norm takes away
    silent = [name for name, gradient in gradients.items() if not gradient.abs().sum() > 0]
    assert [name for name in silent if not name.endswith(".conv.bias")] == []

    # disabled, it is the base bit for bit
    adapted = maps(model, feed)
    assert (adapted - expected).abs().max() > 1e-3
    model.disable_adapters()
    assert torch.equal(maps(model, feed), expected)
    model.enable_adapters()
    assert torch.equal(maps(model, feed), adapted)

    # saved and loaded, it is the same
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoTracker.from_pretrained(tmp_path / "adapter")
    assert type(loaded) is type(plain) and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(maps(loaded, feed), adapted)

    # packed, it is the same within rounding
    loaded.pack()
    assert (maps(loaded, feed) - adapted).abs().max() <= 2e-5


IMPOSSIBLE = {
    **{
        f"{tuner} on one stream of {base}": (tuner, base, {"streams": 1}, {}, r"two streams.*streams=1")
        for tuner, (_, streams) in TUNERS.items()
        if streams == 2
        for base in BASES
    },
    **{
        f"{tuner} on {base} where a part of the batch is drawn": (
            tuner, base, {"drop_path_rate": 0.4}, {}, r"cannot stand on \w+_junction.*drop_path_rate=0.1 or less"
        )
        for tuner in ("AMG_LORA", "PROGRESSIVE", "SDMOE")
        for base in ("lorat",)
    },
    "PROGRESSIVE on 27 x 27 cells": (
        "PROGRESSIVE", "lorat", {"search_size": 378, "template_size": 196}, {}, "search crop has 27x27"
    ),
    "PROGRESSIVE on a template of 3 x 3 cells": (
        "PROGRESSIVE", "odtrack", {"template_size": 48}, {}, "template crop has 3x3"
    ),
    "AMG_LORA beyond the last layer": ("AMG_LORA", "lorat", {}, {"adapter_layers": [1, 4]}, "base has layers 0 to 3"),
    "SDMOE beyond the last layer": ("SDMOE", "odtrack", {}, {"hyper_levels": [4]}, "blocks from 0 to 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_is_a_clear_error_at_injection(case: str) -> None:
    tuner, base, fields, changes, message = IMPOSSIBLE[case]
    model = make(base, **({"streams": 2} | fields))
    with pytest.raises(ValueError, match=message):
        model.add_adapter(TUNERS[tuner][0](**changes))


@pytest.mark.parametrize(
    ("tuner", "base", "fields", "changes"),
    [
        ("LORA", "lorat", {"streams": 2, "drop_path_rate": 0.4}, {}),
        ("TMOE", "lorat", {"streams": 2, "drop_path_rate": 0.4}, {}),
        ("AMG_LORA", "lorat", {"streams": 2, "drop_path_rate": 0.4}, {"use_hmoe": False}),
        ("PROGRESSIVE", "lorat", {"streams": 2, "search_size": 70}, {"cea_layers": [0, 1, 2, 3]}),
        ("SDMOE", "ostrack", {"streams": 1, "elimination_layers": [1]}, {"use_gsahf": False}),
        ("SDMOE", "lorat", {"streams": 2, "use_swiglu_ffn": True}, {}),
        ("TMOE", "lorat", {"streams": 1, "use_swiglu_ffn": True}, {}),
    ],
    ids=str,
)
def test_the_ways_round_what_cannot_be(
    tuner: str, base: str, fields: dict[str, Any], changes: dict[str, Any]
) -> None:
    model = make(base, **fields)
    feed = feed_of(model)
    before = maps(model, feed)
    model.requires_grad_(False)
    model.add_adapter(TUNERS[tuner][0](**changes))
    scramble(model, 0.2, trainable_only=True)
    assert (maps(model, feed) - before).abs().max() > 1e-4
    model.train()
    model(**feed, labels=torch.tensor([[0.3, 0.35, 0.3, 0.2]]).repeat(2, 1)).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("tuner", "kinds"), [("AMG_LORA", (GuidedAttentionCore, MixtureJunction)), ("PROGRESSIVE", (ParallelJunction,))]
)
def test_prefix_tokens_pass_cross_stream_adapters_unchanged(tuner: str, kinds: tuple[type, ...], grad: bool) -> None:
    model = make("odtrack", 2)
    model.requires_grad_(False)
    model.add_adapter(TUNERS[tuner][0]())
    scramble(model, 0.1, trainable_only=True)
    seen: dict[type, list[tuple[Tensor, Tensor]]] = {kind: [] for kind in kinds}

    def compare(layer: torch.nn.Module, arguments: tuple, options: dict[str, Any], result: tuple) -> None:
        seen[type(layer)].append((result[0].detach(), layer.base_layer(*arguments, **options)[0].detach()))

    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(compare, with_kwargs=True)
    with torch.set_grad_enabled(grad):
        model(**feed_of(model))
    for pairs in seen.values():
        assert pairs
        for ours, plain in pairs:
            torch.testing.assert_close(ours[:, :1], plain[:, :1], atol=1e-5, rtol=1e-5)
            assert (ours[:, 1:] - plain[:, 1:]).abs().max() > 1e-3
