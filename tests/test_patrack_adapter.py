"""PATrack's adapter: its size, its initial values, where it sits, its switches, and what refuses it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_rows import ROWS, difference, inputs, maps, scramble, tiny_progressive
from torch import Tensor, nn

from mmtrackers import (
    AutoTracker,
    OSTrackConfig,
    OSTrackForTracking,
    PATrackConfig,
    PATrackForTracking,
    ProgressiveConfig,
)
from mmtrackers.modeling.seams import ResidualJunction, TokenLayout
from mmtrackers.tuners.progressive.adapters import (
    HeadAdapter,
    ModalityDependentAdapter,
    ModalityEntangledAdapter,
    swap_streams,
)
from mmtrackers.tuners.progressive.layer import ParallelJunction
from mmtrackers.tuners.registration import TrackerTunerLayer

ROW = next(row for row in ROWS if row.name == "patrack")


@pytest.mark.parametrize(
    ("fields", "count", "tensors"),
    [
        ({}, 3_722_904, 192),
        ({"cea_train_norm": True}, 3_732_120, 204),
        ({"cea_layers": [3]}, 2 * 11 * 16_300 + 2 * 516_096 + 332_928, 22 * 9 + 2 * 4 + 6),
        ({"mda_width": 4, "cea_layers": []}, 24 * (4 * 769 + 7 * 768 + 2 + 18 + 4 + 54) + 332_928, 24 * 9 + 6),
    ],
    ids=str,
)
def test_adapter_size_at_real_size(fields: dict[str, Any], count: int, tensors: int) -> None:
    with torch.device("meta"):
        model = PATrackForTracking(PATrackConfig()).requires_grad_(False)
        model.add_adapter(ProgressiveConfig(**fields))
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert (sum(p.numel() for p in parameters), len(parameters)) == (count, tensors)


def test_initial_values() -> None:
    torch.manual_seed(0)
    mda, cea, ha = ModalityDependentAdapter(768, 8), ModalityEntangledAdapter(768, 192), HeadAdapter(768, 192)
    assert mda.down.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not mda.down.bias.any()
    bounds = {"high_expand": 2, "high_depthwise": 9, "high_pooled": 2, "mix": 9, "up": 12}
    drawn = {f"mda.{name}": (getattr(mda, name), inputs) for name, inputs in bounds.items()}
    drawn |= {"cea.down": (cea.down, 768), "cea.guide": (cea.guide, 384), "cea.up": (cea.up, 192)}
    drawn |= {"ha.down": (ha.down, 768), "ha.middle": (ha.middle, 192), "ha.up": (ha.up, 192)}
    tensors = {f"{name}.{leaf}": (p, n) for name, (m, n) in drawn.items() for leaf, p in m.named_parameters()}
    tensors["cea.query_value"] = cea.query_value, 192
    for name, (tensor, fan_in) in tensors.items():
        bound = fan_in**-0.5
        assert tensor.abs().max() <= bound, name
        if tensor.numel() > 64:
            assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.12), name
    assert not list(cea.norm.parameters()) and cea.norm.eps == 1e-6


def test_where_it_sits_and_off_is_the_base() -> None:
    plain, model = ROW.plain(), ROW.build()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, TrackerTunerLayer)}
    kinds = {name: type(m.progressive_adapter["default"]) for name, m in layers.items()}
    expected = {
        f"model.layers.{i}.{site}_junction": ModalityEntangledAdapter if i == 1 else ModalityDependentAdapter
        for i in range(3)
        for site in ("attention", "mlp")
    }
    assert kinds == expected | {"neck": HeadAdapter}
    feed = inputs(model.config)
    assert difference(maps(model, feed), maps(plain, feed)) > 1e-3
    model.disable_adapters()
    assert torch.equal(maps(model, feed), maps(plain, feed))


@pytest.mark.parametrize(("depth", "layers"), [(4, [3]), (12, [3, 6, 9]), (3, [])])
def test_every_third_layer_has_cea(depth: int, layers: list[int]) -> None:
    assert [i for i in range(depth) if ProgressiveConfig().has_cea(i)] == layers


def test_adapters_with_other_layers_side_by_side() -> None:
    first, second = tiny_progressive(), tiny_progressive(cea_layers=[0, 2], mda_width=8, mda_source="self")
    model = ROW.plain().requires_grad_(False)
    model.add_adapter(first, "first")
    model.add_adapter(second, "second")
    scramble(model, 0.1, trainable_only=True)
    feed, found = inputs(model.config), {}
    for name, config in (("first", first), ("second", second)):
        model.set_adapter(name)
        found[name] = maps(model, feed)
        alone = ROW.plain().requires_grad_(False)
        alone.add_adapter(config)
        state = {key.replace(f".{name}.", ".default."): t for key, t in model.state_dict().items()}
        alone.load_state_dict({key: state[key] for key in alone.state_dict()})
        assert torch.equal(maps(alone, feed), found[name])
    assert difference(found["first"], found["second"]) > 1e-3


# -------------------------------------------------------------------------------------------- formulas and switches


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LAYOUT = TokenLayout(2, 0, 4, 16, (2, 2), (4, 4))


def explicit_cea(cea: ModalityEntangledAdapter, x: Tensor, swap: bool) -> Tensor:
    """The equations written out, crop by crop."""
    query_rgb, value_rgb, query_x, value_x = cea.query_value.flatten(0, 1).chunk(4)
    parts = []
    for rows in (slice(0, 4), slice(4, 20)):
        r, t = cea.down(nn.functional.layer_norm(x[:, rows], x.shape[2:], eps=1e-6)).chunk(2)
        guide = torch.cat([r, t], 2) @ cea.guide.weight.T
        a = ((r @ query_rgb.T) @ guide.transpose(1, 2)).softmax(2) @ (r @ value_rgb.T) + t
        b = ((t @ query_x.T) @ guide.transpose(1, 2)).softmax(2) @ (t @ value_x.T) + r
        parts.append(cea.up(torch.cat([b, a] if swap else [a, b])))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("swap", [False, True])
def test_cea_is_its_equations_gradients_included(swap: bool) -> None:
    torch.manual_seed(0)
    cea = ModalityEntangledAdapter(12, 6, swap_outputs=swap)
    norm = nn.LayerNorm(12)
    norm.weight.data.uniform_(0.5, 1.5)
    x, direction = tokens(4, 20, 12), tokens(4, 20, 12, seed=1)
    results = []
    for run in (lambda: cea(x, x, norm, LAYOUT), lambda: norm(explicit_cea(cea, x, swap))):
        cea.zero_grad()
        output = run()
        (output * direction).sum().backward()
        results.append({"output": output, **{name: p.grad.clone() for name, p in cea.named_parameters()}})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=2e-5, rtol=1e-4, msg=name)


def test_mda_of_the_other_stream_or_of_its_own() -> None:
    torch.manual_seed(0)
    other, own = ModalityDependentAdapter(12, 8), ModalityDependentAdapter(12, 8, source="self")
    own.load_state_dict(other.state_dict())
    h = tokens(4, 20, 12)
    received = other(h, h, nn.Identity(), LAYOUT)
    torch.testing.assert_close(own(h, h, nn.Identity(), LAYOUT), swap_streams(received))
    changed = h.clone()
    changed[2:] += 1  # the second stream
    for adapter, moved in ((other, [True, False]), (own, [False, True])):
        gap = (adapter(changed, changed, nn.Identity(), LAYOUT) - adapter(h, h, nn.Identity(), LAYOUT)).abs()
        assert [bool(part.max() > 1e-3) for part in gap.chunk(2)] == moved


def test_mda_gradients_are_right() -> None:
    torch.manual_seed(0)
    mda = ModalityDependentAdapter(5, 4).double()
    h = tokens(2, 20, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda h, *_: mda(h, h, nn.Identity(), LAYOUT), (h, *mda.parameters()))


def test_head_adapter_replaces_or_adds() -> None:
    torch.manual_seed(0)
    replacing, adding = HeadAdapter(12, 4), HeadAdapter(12, 4, residual=True)
    adding.load_state_dict(replacing.state_dict())
    features = tokens(2, 16, 12)
    product = replacing.up(replacing.middle(replacing.down(features)))
    assert torch.equal(replacing(features), product)
    torch.testing.assert_close(adding(features), product + features)
    dropping = HeadAdapter(12, 4, dropout=0.5)
    assert not torch.equal(dropping(features), dropping(features))
    assert torch.equal(dropping.eval()(features), dropping(features))


@pytest.mark.parametrize("change", [{"mda_source": "self"}, {"cea_swap_outputs": True}, {"head_residual": True}])
def test_switches_reach_the_model_and_its_file(change: dict[str, Any], tmp_path: Path) -> None:
    ROWS[0].plain(elimination_layers=[]).save_pretrained(tmp_path / "base")
    models = []
    for fields in ({}, change):
        model = PATrackForTracking.from_base(tmp_path / "base", "thermal", tiny_progressive(**fields)).eval()
        scramble(model, 0.1, trainable_only=True)
        models.append(model)
    published, model = models
    model.load_state_dict(published.state_dict())
    feed = inputs(model.config)
    assert difference(maps(model, feed), maps(published, feed)) > 1e-4
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoTracker.from_pretrained(tmp_path / "adapter")
    assert torch.equal(maps(loaded, feed), maps(model, feed))
    assert {name: getattr(loaded.peft_config["default"], name) for name in change} == change


@pytest.mark.parametrize("adapter", [tiny_progressive(), tiny_progressive(cea_layers=[0, 1, 2])])
@torch.no_grad()
def test_prefix_tokens_pass_and_templates_stay_apart(adapter: ProgressiveConfig) -> None:
    torch.manual_seed(0)
    layout = TokenLayout(2, 1, 8, 16, (2, 2), (4, 4))
    junction = ParallelJunction(ResidualJunction(), "default", adapter, 12, "layers.0.attention_junction")
    norm, y = nn.LayerNorm(12), tokens(4, 25, 12, seed=1)
    norm.bias.data.fill_(1.0)

    def term(x: Tensor) -> Tensor:
        return junction(x, norm(x), y, norm, layout)[0] - (x + y)

    x = tokens(4, 25, 12)
    before = term(x)
    assert not before[:, :1].any() and before[:, 1:].abs().amin(2).min() > 0
    changed = x.clone()
    changed[:, 5:9] += tokens(4, 4, 12, seed=2)  # the second template
    moved = (term(changed) - before).abs().amax((0, 2)) > 1e-5
    assert moved.nonzero().flatten().tolist() == [5, 6, 7, 8]
    packed = junction.packed(torch.float32).adapted_sum(x + y, x, norm(x), norm, layout)
    torch.testing.assert_close(packed - (x + y), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [{"mda_source": "self"}, {"cea_swap_outputs": True}, {"head_residual": True}])
@torch.no_grad()
def test_packed_is_plain_with_every_switch(change: dict[str, Any]) -> None:
    model = ROW.plain()
    model.add_adapter(tiny_progressive(cea_train_norm=True, **change))
    scramble(model, 0.1, trainable_only=True)
    expected = maps(model.eval(), feed := inputs(model.config))
    model.pack()
    assert difference(maps(model, feed), expected) <= 1e-5
    assert not [m for m in model.modules() if isinstance(m, TrackerTunerLayer)]


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("fields", "adapter", "error", "message"),
    [
        ({"streams": 1, "modality": "rgb"}, {}, ValueError, "PROGRESSIVE mixes two streams, .* has streams=1"),
        ({"template_size": 48}, {}, ValueError, "template crop has 3x3 of them. Take a base .* template_size=64"),
        ({"search_size": 80}, {}, ValueError, "search crop has 5x5 of them"),
        ({}, {"cea_layers": [1, 3]}, ValueError, r"cea_layers \[3\] do not exist: the base has layers 0 to 2"),
        ({}, {"target_modules": ["k_proj"]}, TypeError, r"cannot adapt model.layers.0.attention.k_proj \(Linear\)"),
    ],
)
def test_impossible_bases(fields: dict[str, Any], adapter: dict[str, Any], error: type, message: str) -> None:
    model = ROW.plain(**fields)
    with pytest.raises(error, match=message):
        model.add_adapter(tiny_progressive(**adapter))


def test_odd_grids_do_with_cea_alone() -> None:
    model = ROW.plain(search_size=80, template_size=48)
    model.add_adapter(tiny_progressive(cea_layers=[0, 1, 2]))
    assert maps(model, inputs(model.config)).isfinite().all()


def test_elimination_is_refused() -> None:
    config = OSTrackConfig(
        **{name: getattr(ROW.make_config(), name) for name in ("hidden_size", "num_attention_heads", "head_channels")},
        num_hidden_layers=3, search_size=64, template_size=32, streams=2, modality="event", elimination_keep_rate=1.0,
        elimination_layers=[1],
    )  # fmt: skip
    model = OSTrackForTracking(config).requires_grad_(False)
    model.add_adapter(tiny_progressive())
    assert model(**inputs(config)).boxes.isfinite().all()
    with pytest.raises(ValueError, match="reads whole grids, but only 8 of 16 search tokens are left"):
        model(**inputs(config), elimination_keep_rate=0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mda_width": 6}, "mda_width is 6, expected a multiple of 4"),
        ({"mda_width": 0}, "mda_width is 0"),
        ({"cea_width": 0}, "cea_width and head_width must be at least 1"),
        ({"mda_source": "both"}, "mda_source is 'both', expected 'other' or 'self'"),
    ],
)
def test_config_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgressiveConfig(**fields)
