"""`pack()`: the same numbers from merged, fused and reordered weights; and the mixture's two forms."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from model_rows import ROWS, Row, difference, inputs, labels, maps, scramble, tiny_adapter
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig
from torch import nn

from mmtrackers import TMoEConfig, TrackerPreTrainedModel
from mmtrackers.modeling.packing import LinearMap, PackedConv, PackedLinear, packed_map
from mmtrackers.modeling.vit import PackedLayer
from mmtrackers.tuners.amg_lora.hmoe import HMoE, token_groups
from mmtrackers.tuners.amg_lora.layer import LowRankLinear
from mmtrackers.tuners.registration import TrackerTunerLayer
from mmtrackers.tuners.tmoe.layer import TMoELinear


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@torch.no_grad()
def packed_difference(model: TrackerPreTrainedModel) -> float:
    """How far pack() moves a model's maps, for two batch sizes and for a template that was embedded before."""
    feeds = [inputs(model.config, batch) for batch in (1, 2)]
    feeds.append(feeds[1] | {"template": model.embed_template(feeds[1]["template"])})
    expected = [maps(model, feed) for feed in feeds]
    model.pack()
    feeds[2]["template"] = model.embed_template(feeds[1]["template"])
    actual = [maps(model, feed) for feed in feeds]
    assert all(value.isfinite().all() for value in actual)
    return max(difference(a, b) for a, b in zip(actual, expected, strict=True))


def test_packed_is_plain(row: Row) -> None:
    model = row.build()
    assert packed_difference(model) <= 1e-5
    assert all(isinstance(layer, PackedLayer) for layer in model.model.layers)
    kinds = [type(module) for module in model.modules()]
    assert nn.BatchNorm2d not in kinds and LowRankLinear not in kinds
    assert kinds.count(PackedConv) == 13 + (5 if row.fields.get("stem") == "conv" else 0)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_packed_variants(streams: int, qkv_bias: bool) -> None:
    fields: dict[str, Any] = {"qkv_bias": qkv_bias, "streams": streams}
    fields |= {"modality": "depth", "elimination_layers": [], "fusion": "mean"} if streams == 2 else {}
    assert packed_difference(ROWS[0].build(**fields)) <= 1e-5


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_with_either_attention(row: Row, implementation: str) -> None:
    model = row.build()
    model.set_attn_implementation(implementation)
    assert packed_difference(model) <= 1e-5


@torch.no_grad()
def test_packed_bfloat16_is_as_near_as_plain_bfloat16(row: Row) -> None:
    model = row.build()
    exact, feed = maps(model, inputs(model.config)), inputs(model.config, dtype=torch.bfloat16)
    plain = maps(model.to(torch.bfloat16), feed)
    model.pack()
    packed = maps(model, feed)
    assert packed.dtype == torch.float32 and difference(packed[:, :3], plain[:, :3]) <= 0.03
    assert (packed - exact).abs().mean() <= 2 * (plain - exact).abs().mean()


@torch.no_grad()
def test_experts_beside_bfloat16_maps_are_chosen_in_float32() -> None:
    """The gates are those of the float32 router on the tokens as they are, whatever else is rounded."""
    torch.manual_seed(0)
    base = nn.Linear(48, 32)
    layer = TMoELinear(base, "default", TMoEConfig(r=4, alpha=4))
    scramble(layer, 1)
    router = layer.tmoe_down["default"][-4:].clone()
    base.to(torch.bfloat16)
    packed, x = packed_map(LinearMap.of(layer)), torch.randn(7, 48, dtype=torch.bfloat16)
    assert packed.router(x.float()).dtype == torch.float32
    torch.testing.assert_close(packed.router(x.float()), x.float() @ router.T, atol=1e-6, rtol=1e-6)
    plain = layer(x).float()
    assert (packed(x).float() - plain).abs().max() <= 0.01 * plain.abs().max()
    assert packed_map(LinearMap.of(layer.float())).router is None, "one product where all is float32"


def test_packed_without_onednn(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = row.build()
    assert packed_difference(model) <= 1e-5
    linear = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert linear and all(module.prepacked is None and module.weight is not None for module in linear)


def test_packed_linear_alone() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40)
    x, residual = torch.randn(3, 5, 24), torch.randn(3, 5, 40)
    with torch.no_grad():
        for gelu in (False, True):
            packed = PackedLinear(plain.weight.detach(), plain.bias.detach(), gelu)
            expected = nn.functional.gelu(plain(x)) if gelu else plain(x)
            assert difference(packed(x), expected) <= 1e-6
        packed, kept = PackedLinear(plain.weight.detach(), plain.bias.detach()), residual.clone()
        assert difference(packed(x, residual), plain(x) + kept) <= 1e-6
        assert torch.equal(residual, kept)
        assert difference(packed(x[:, ::2]), plain(x[:, ::2])) <= 1e-6


def test_packed_convolution_is_laid_out_for_each_size_of_picture() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(24, 48, 3, stride=2, padding=1)
    packed, pictures = PackedConv(plain), [torch.randn(batch, 24, size, size) for batch, size in ((1, 32), (2, 20))]
    with torch.inference_mode():
        for picture in [*pictures, pictures[0]]:
            assert difference(packed(picture), plain(picture).relu()) <= 1e-5
    assert packed.is_laid_out and [tuple(size) for size in packed._layouts] == [(32, 32), (20, 20)]


def test_packed_drops_what_is_switched_off() -> None:
    row = ROWS[-1]
    model, feed = row.build(), inputs(row.make_config())
    with torch.no_grad():
        model.disable_adapters()
        expected = maps(model, feed)
        model.pack()
        assert difference(maps(model, feed), expected) <= 1e-5


def test_packed_takes_the_active_of_two_adapters() -> None:
    model = ROWS[-1].build()
    model.add_adapter(tiny_adapter(r=4), "other")
    model.set_adapter("default")
    assert packed_difference(model) <= 1e-5


LORA = partial(LoraConfig, r=2, init_lora_weights=False)
TMOE = partial(TMoEConfig, r=4, alpha=6, num_experts=3)


@pytest.mark.parametrize(
    "adapter",
    [
        LORA(target_modules=["q_proj", "v_proj", "o_proj", "fc1", "fc2"]),
        LORA(target_modules=["q_proj", "fc1"], use_dora=True),
        LORA(target_modules=r"head\.score\.\d\.conv"),
        LORA(target_modules=["q_proj"], modules_to_save=["conv", "fc1", "norm1"]),
        IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"], init_ia3_weights=False),
        LoHaConfig(target_modules=["k_proj", "patch"], r=2, init_weights=False),
        tiny_adapter(modules_to_save=["head"]),
        TMOE(),
        TMOE(shared_low_rank_expert=True, modules_to_save=["head"]),
        TMOE(routed_compression=True, use_rsexpert=True),
        TMOE(target_modules=["k_proj", "v_proj"]),
        TMOE(target_modules=["q_proj", "fc2"]),
    ],
    ids=lambda adapter: adapter.peft_type.value,
)
def test_packed_with_other_adapters(adapter: PeftConfig) -> None:
    model = ROWS[-1].plain()
    plain = maps(model, inputs(model.config))
    model.add_adapter(adapter)
    scramble(model, 0.1, trainable_only=True)
    model.eval()
    assert difference(maps(model, inputs(model.config)), plain) > 1e-2
    assert packed_difference(model) <= 2e-5  # the maps reach 3


def test_packed_cannot_train_be_saved_or_packed_again(row: Row, tmp_path: Path) -> None:
    model = row.build()
    model.pack()
    with pytest.raises(RuntimeError, match=r"train\(\) on a packed model.*pack\(\) comes last"):
        model.train()
    with pytest.raises(RuntimeError, match=r"save_pretrained\(\) on a packed model.*pack\(\) comes last"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(RuntimeError, match="packed already"):
        model.pack()
    assert model.eval() is model


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("add_adapter", (tiny_adapter(), "new")),
        ("load_adapter", ("folder",)),
        ("set_adapter", ("default",)),
        ("delete_adapter", ("default",)),
        ("enable_adapters", ()),
        ("disable_adapters", ()),
    ],
)
def test_packed_refuses_changes_of_its_adapters(row: Row, method: str, arguments: tuple) -> None:
    model = row.build()
    model.pack()
    with pytest.raises(RuntimeError, match=rf"{method}\(\) on a packed model: .* merged.*Load the model again"):
        getattr(model, method)(*arguments)


# ---- the mixture's factored form against the form with sub-tokens written out


def tokens_and_groups(both: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    layout = ROWS[-1].build().model.layout(4)
    layout = layout if both else layout.search_only()
    torch.manual_seed(1)
    return torch.randn(2, 3, layout.tokens, 32), token_groups(layout, torch.device("cpu"))


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("both", [True, False], ids=["both-groups", "search-only"])
def test_mixture_forms_agree(heads: int, both: bool) -> None:
    torch.manual_seed(0)
    mixture = HMoE(32, 3, heads, 2, dropout=1e-12).train()
    with torch.no_grad():
        mixture.dispatch_temperature.fill_(0.7)
        mixture.combine_temperature.fill_(1.3)
    tokens, group = tokens_and_groups(both)
    assert (group is not None) == both
    answers, gradients = [], []
    for dropout in (0.0, 1e-12):
        mixture.dropout = dropout
        mixture.zero_grad()
        source = tokens.clone().requires_grad_()
        weights, values = mixture(source, group)
        answer = weights @ values
        answer.square().sum().backward()
        answers.append(answer.detach())
        gradients.append({"tokens": source.grad} | {name: p.grad for name, p in mixture.named_parameters()})
    assert difference(*answers) <= 1e-5 * answers[0].abs().max().item()
    assert len(gradients[0]) == 18 and all(grad.abs().max() > 0 for grad in gradients[0].values())
    for name, grad in gradients[0].items():
        assert difference(grad, gradients[1][name]) <= 1e-4 * grad.abs().max().item(), name


def test_mixture_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    mixture, (tokens, group) = HMoE(32, 3, 2, 2, dropout=0.5), tokens_and_groups(True)
    with torch.no_grad():
        assert len({mixture.train()(tokens, group)[1].sum().item() for _ in range(4)}) == 4
        mixture.eval()
        assert len({mixture(tokens, group)[1].sum().item() for _ in range(3)}) == 1


def test_mixture_keeps_template_and_search_apart() -> None:
    torch.manual_seed(0)
    mixture, (tokens, group) = HMoE(32, 3, 2, 2).eval(), tokens_and_groups(True)
    changed = tokens.clone()
    changed[1, :, 4:] = torch.randn_like(changed[1, :, 4:])  # search tokens of the second stream
    with torch.no_grad():
        before, after = (weights @ values for weights, values in (mixture(tokens, group), mixture(changed, group)))
    assert difference(before[:, :, :4], after[:, :, :4]) <= 1e-6
    assert difference(before[0, :, 4:], after[0, :, 4:]) > 1e-3  # the streams do mix


def test_mixture_needs_a_fitting_width() -> None:
    with pytest.raises(ValueError, match="32 is no multiple of hmoe_heads=3"):
        HMoE(32, 4, 3, 2)


def test_gradients_of_a_whole_model_in_both_forms() -> None:
    gradients = []
    for dropout in (0.0, 1e-12):
        model = ROWS[-1].build().train()
        for module in model.modules():
            if isinstance(module, HMoE):
                module.dropout = dropout
        model(**inputs(model.config), labels=labels()).loss.backward()
        assert any(isinstance(module, TrackerTunerLayer) for module in model.modules())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, grad in gradients[0].items():
        assert torch.allclose(grad, gradients[1][name], rtol=1e-3, atol=1e-6), name
