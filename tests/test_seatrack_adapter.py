"""SEATrack's adapter: its size, its initial values, where it sits, and what refuses it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from model_rows import ROWS, difference, inputs, maps, tiny_adapter
from peft import LoraConfig
from torch import nn

from mmtrackers import AMGLoraConfig, OSTrackForTracking, SEATrackConfig, SEATrackForTracking
from mmtrackers.tuners.amg_lora.hmoe import HMoE
from mmtrackers.tuners.amg_lora.layer import GuidedAttentionCore, LowRankLinear, MixtureJunction
from mmtrackers.tuners.registration import TrackerTunerLayer


def trainable(**fields: Any) -> list[nn.Parameter]:
    with torch.device("meta"):
        model = SEATrackForTracking(SEATrackConfig())
        model.requires_grad_(False)
        model.add_adapter(AMGLoraConfig(**fields))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("fields", "count", "tensors"),
    [
        ({}, 636_324, 240),
        ({"use_hmoe": False}, 147_468, 36),
        ({"use_amg": False}, 636_312, 228),
        ({"use_amg": False, "use_hmoe": False}, 147_456, 24),
        ({"use_amg": False, "lora_targets": []}, 488_856, 204),
        ({"lora_targets": ["q", "k", "v"]}, 636_324 + 73_728, 252),
        ({"r": 4}, 636_324 - 73_728, 240),
        ({"r": 16}, 636_324 + 147_456, 240),
        ({"adapter_layers": [11]}, 636_324 // 6, 40),
    ],
    ids=lambda value: str(value),
)
def test_adapter_size_at_real_size(fields: dict[str, Any], count: int, tensors: int) -> None:
    parameters = trainable(**fields)
    assert (sum(p.numel() for p in parameters), len(parameters)) == (count, tensors)


@pytest.mark.parametrize(
    ("fields", "millions"),
    [
        ({"hmoe_heads": 1}, 0.9),
        ({"hmoe_heads": 4}, 0.5),
        ({"hmoe_heads": 8}, 0.4),
        ({"hmoe_experts_ffn": 4}, 0.5),
        ({"hmoe_experts_attn": 8, "hmoe_experts_ffn": 4}, 0.6),
        ({"hmoe_experts_attn": 8, "hmoe_experts_ffn": 16}, 0.9),
        ({"hmoe_rank": 8}, 1.0),
        ({"hmoe_rank": 16}, 1.7),
    ],
    ids=lambda value: str(value),
)
def test_adapter_size_of_published_ablations(fields: dict[str, Any], millions: float) -> None:
    assert sum(p.numel() for p in trainable(**fields)) / 1e6 == pytest.approx(millions, abs=0.055)


@pytest.mark.parametrize(
    ("experts", "total", "stds"),
    [(4, 32_282, (0.0508, 0.0361, 0.707, 0.1015)), (8, 49_194, (0.0505, 0.0295, 0.577, 0.1010))],
)
def test_initial_values_of_the_mixture(experts: int, total: int, stds: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    drawn = [HMoE(768, experts, 2, 4) for _ in range(8)]
    assert sum(p.numel() for p in drawn[0].parameters()) == total

    def spread(name: str) -> float:
        return torch.cat([m.get_parameter(name).detach().flatten() for m in drawn]).std().item()

    expected = dict(zip(("experts.a", "experts.b", "experts.bias_a", "experts.bias_b"), stds, strict=True))
    expected |= {"gate": 384**-0.5} | {f"{p}_proj.{m}": 0.0720 for p in ("input", "output") for m in "ab"}
    for name, std in expected.items():
        assert spread(name) == pytest.approx(std, rel=0.2 if name == "experts.bias_a" else 0.03), name
    for place in ("input_proj", "output_proj"):
        for name in ("bias_a", "bias_b"):
            values = torch.cat([m.get_parameter(f"{place}.{name}") for m in drawn])
            assert values.abs().max() <= 768**-0.5
            assert values.std().item() == pytest.approx(768**-0.5 / math.sqrt(3), rel=0.25)
    assert drawn[0].dispatch_temperature.item() == drawn[0].combine_temperature.item() == 1
    assert drawn[0].norm.eps == 1e-5


def test_initial_values_of_the_low_rank_maps() -> None:
    torch.manual_seed(0)
    layer = LowRankLinear(nn.Linear(768, 768), "default", AMGLoraConfig(), 768, "k_proj")
    assert layer.amg_lora_A["default"].shape == (8, 768) and layer.amg_lora_B["default"].shape == (768, 8)
    assert layer.amg_lora_A["default"].std().item() == pytest.approx(math.sqrt(2 * 2 / (16 + 768)), rel=0.03)
    assert not layer.amg_lora_B["default"].any()


def test_adapter_is_on_every_second_layer_and_off_is_the_base() -> None:
    row = ROWS[-1]
    plain, model = row.plain(), row.build()
    kinds = {name: type(m) for name, m in model.named_modules() if isinstance(m, TrackerTunerLayer)}
    assert kinds == {
        "model.layers.1.attention.k_proj": LowRankLinear,
        "model.layers.1.attention.v_proj": LowRankLinear,
        "model.layers.1.attention.core": GuidedAttentionCore,
        "model.layers.1.attention_junction": MixtureJunction,
        "model.layers.1.mlp_junction": MixtureJunction,
    }
    feed = inputs(model.config)
    expected = maps(plain, feed)
    assert difference(maps(model, feed), expected) > 1e-3
    model.disable_adapters()
    assert torch.equal(maps(model, feed), expected)
    model.enable_adapters()
    assert difference(maps(model, feed), expected) > 1e-3


def test_from_base(tmp_path: Path) -> None:
    base = ROWS[0].plain()
    base.save_pretrained(tmp_path / "base")
    model = SEATrackForTracking.from_base(tmp_path / "base", modality="event", adapter_config=tiny_adapter())
    assert (model.config.streams, model.config.modality, list(model.config.elimination_layers)) == (2, "event", [])
    assert all(("amg_lora_" in name) == p.requires_grad for name, p in model.named_parameters())
    assert model.training and not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert torch.equal(model.model.norm.weight, base.model.norm.weight)
    base.model.save_pretrained(tmp_path / "trunk")
    with pytest.raises(ValueError, match=r"does not fit SEATrackForTracking: 90 missing: head\."):
        SEATrackForTracking.from_base(tmp_path / "trunk")


def test_adapter_refuses_a_single_stream() -> None:
    with pytest.raises(ValueError, match=r"streams=1\..*SEATrackForTracking\.from_base"):
        ROWS[0].plain().add_adapter(tiny_adapter())


def test_adapter_refuses_layers_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"adapter_layers \[9\] do not exist: the base has layers 0 to 2"):
        ROWS[-1].plain().add_adapter(tiny_adapter(adapter_layers=[1, 9]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_targets": ["k", "o"]}, r"lora_targets \['o'\] unknown"),
        ({"r": 0}, "at least 1"),
        ({"lora_targets": [], "use_amg": False, "use_hmoe": False}, "Nothing to train"),
    ],
)
def test_adapter_config_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AMGLoraConfig(**fields)


def test_from_base_takes_any_adapter_but_no_other_family(tmp_path: Path) -> None:
    """The same call puts peft's LoRA on a plain OSTrack; a class without an adapter of its own asks for one."""
    ROWS[0].plain().save_pretrained(tmp_path / "base")
    lora = LoraConfig(target_modules=["q_proj"], r=2)
    model = OSTrackForTracking.from_base(tmp_path / "base", adapter_config=lora)
    assert (model.config.streams, model.config.modality, model.training) == (1, "rgb", True)
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    two = OSTrackForTracking.from_base(tmp_path / "base", "depth", lora)
    assert (two.config.streams, two.config.modality, list(two.config.elimination_layers)) == (2, "depth", [])
    with pytest.raises(ValueError, match="OSTrackForTracking has no adapter of its own"):
        OSTrackForTracking.from_base(tmp_path / "base")
    SEATrackForTracking(SEATrackConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(ValueError, match="is a mmt_seatrack, no base for OSTrackForTracking"):
        OSTrackForTracking.from_base(tmp_path / "other", adapter_config=lora)
