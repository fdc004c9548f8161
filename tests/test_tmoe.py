"""The TMOE tuner: its layer against the official layers' answers, its variants, and what it keeps for backward."""

import math

import pytest
import torch
from parity_tools import cases, load_case, seeded_input, seeded_tensor
from peft import get_peft_model
from peft_rows import TINY, inputs, maps, scramble, tiny_ostrack
from torch import Tensor, nn

from mmtrackers import OSTrackConfig, OSTrackForTracking, TMoEConfig
from mmtrackers.tuners.tmoe.layer import TMoELinear

MODULES = cases(r"spmtrack-modules.*")
TMOE_PARTS = ["default", "scaled", "rs", "shared_low_rank", "routed_compression"]


def official_layer(weights: dict[str, Tensor], config: TMoEConfig) -> TMoELinear:
    """A layer with an official layer's tensors, whose names end in `linear.*` and `tmoe.*`."""
    base = nn.Linear(*weights["linear.weight"].T.shape)
    base.load_state_dict({name: weights[f"linear.{name}"] for name in ("weight", "bias")})
    layer = TMoELinear(base, "default", config)
    ups = [weights[f"tmoe.routed_experts.{e}"] for e in range(config.num_experts)]
    if config.shared_low_rank_expert:
        ups.append(weights["tmoe.shared_expert"])
    downs = [value for name, value in weights.items() if name.startswith("tmoe.compress_expert")]
    downs.append(weights["tmoe.expert_route.weight"])
    with torch.no_grad():
        layer.tmoe_up["default"].copy_(torch.cat(ups, 1))
        layer.tmoe_down["default"].copy_(torch.cat(downs))
    return layer


def weights_under(part: str, shapes: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """Tensors drawn by their full names, under what follows `part` in them."""
    return {
        name.partition(f".{part}.")[2]: seeded_tensor(name, tuple(shape), seed)
        for name, shape in shapes.items()
        if f".{part}." in name
    }


def by_loop(layer: TMoELinear, x: Tensor, scale: float) -> Tensor:
    """The definition: every expert's answer written out."""
    down, router = layer.tmoe_down["default"].split((len(layer.tmoe_down["default"]) - 3, 3))
    up = layer.tmoe_up["default"]
    gates = (x @ router.T).softmax(-1)
    y = layer.base_layer(x)
    r = layer.configs["default"].r
    for e, part in enumerate(up.split(r, 1)):
        gate = gates[..., e : e + 1] if e < gates.shape[-1] else 1.0
        compress = down if down.shape[0] == r else down[e * r : (e + 1) * r]
        y = y + scale * gate * ((x @ compress.T) @ part.T)
    return y


@pytest.mark.parametrize("part", TMOE_PARTS)
@pytest.mark.parametrize("case", MODULES)
def test_official_layer(case: str, part: str) -> None:
    description, tensors = load_case(case)
    facts = description["parts"][f"tmoe.{part}"]
    sizes = facts["config"]
    config = TMoEConfig(
        r=sizes["r"],
        alpha=sizes["alpha"],
        num_experts=sizes["e"],
        use_rsexpert=sizes["rs"],
        shared_low_rank_expert=sizes["shared"],
        routed_compression=sizes["routec"],
    )
    layer = official_layer(weights_under(part, facts["state_dict"], description["seed"]), config)
    x = seeded_input(facts["input"]["name"], facts["input"]["shape"], description["seed"])
    assert torch.equal(x, tensors[f"tmoe.{part}.x"])
    torch.testing.assert_close(layer(x), tensors[f"tmoe.{part}.y"], atol=2e-6, rtol=0)
    torch.testing.assert_close(layer.base_layer(x), tensors[f"tmoe.{part}.linear_only"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", MODULES)
def test_official_queries_keys_and_values(case: str) -> None:
    description, tensors = load_case(case)
    facts = description["parts"]["qkv"]
    config = TMoEConfig(r=facts["r"], alpha=facts["alpha"], num_experts=facts["num_experts"])
    answers = []
    for name in "qkv":
        weights = weights_under(f"qkv.{name}", facts["state_dict"], description["seed"])
        answers.append(official_layer(weights, config)(tensors["qkv.x"]))
    torch.testing.assert_close(torch.cat(answers, -1), tensors["qkv.y"], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("variant", "scale"),
    [
        ({}, 1.5),
        ({"use_rsexpert": True}, 6 / math.sqrt(4)),
        ({"shared_low_rank_expert": True}, 1.5),
        ({"routed_compression": True}, 1.5),
    ],
)
def test_one_product_equals_the_loop_in_values_and_gradients(variant: dict, scale: float) -> None:
    torch.manual_seed(0)
    base = nn.Linear(10, 7).requires_grad_(False)
    layer = TMoELinear(base, "default", TMoEConfig(r=4, alpha=6, num_experts=3, **variant)).double()
    scramble(layer, 1)
    x = torch.randn(2, 5, 10, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    assert len(leaves) == 3
    weights = torch.randn(2, 5, 7, dtype=torch.float64)
    ours, loop = layer(x), by_loop(layer, x, scale)
    torch.testing.assert_close(ours, loop, atol=1e-12, rtol=0)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), leaves),
        torch.autograd.grad((loop * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_no_expert_keeps_its_wide_answer_for_backward() -> None:
    layer = TMoELinear(nn.Linear(64, 512).requires_grad_(False), "default", TMoEConfig(r=4, alpha=4, num_experts=8))
    x, sizes = torch.randn(16, 64), []
    own = {p.data_ptr() for p in layer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            sizes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x)
    assert max(shape[-1] for shape in sizes) == 64
    assert torch.Size([16, 8 * 4]) in sizes


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    layer = TMoELinear(nn.Linear(8, 6), "default", TMoEConfig(r=2, alpha=2, dropout=0.999))
    x = torch.randn(64, 8)
    with torch.no_grad():
        assert not (layer.eval()(x) == layer.base_layer(x)).all(1).any()
        assert (layer.train()(x) == layer.base_layer(x)).all(1).float().mean() > 0.9


@pytest.mark.parametrize(("init", "down", "up"), [("bert", 0.02, 0.02), ("lora", 0.0255, 0), ("gaussian", 1 / 64, 0)])
def test_initial_values(init: str, down: float, up: float) -> None:
    torch.manual_seed(0)
    layer = TMoELinear(nn.Linear(512, 256), "default", TMoEConfig(init=init))
    assert layer.tmoe_down["default"][:-4].std().item() == pytest.approx(down, rel=0.02)
    assert layer.tmoe_up["default"].std().item() == pytest.approx(up, rel=0.02)
    router = layer.tmoe_down["default"][-4:]
    assert router.abs().max().item() == pytest.approx(1 / math.sqrt(512), rel=0.01)
    assert router.std().item() == pytest.approx(1 / math.sqrt(3 * 512), rel=0.05)


def test_ostrack_with_every_linear_map_adapted() -> None:
    model = OSTrackForTracking(OSTrackConfig(**TINY)).eval()
    model.load_state_dict(tiny_ostrack().state_dict())
    feed = inputs(model)
    plain = maps(model, feed)
    model.requires_grad_(False)
    model.add_adapter(TMoEConfig(r=2, alpha=2, num_experts=3))
    layers = [name for name, module in model.named_modules() if isinstance(module, TMoELinear)]
    places = [f"attention.{name}_proj" for name in "qkvo"] + ["mlp.fc1", "mlp.fc2"]
    assert layers == [f"model.layers.{i}.{place}" for i in range(4) for place in places]
    width, wide = TINY["hidden_size"], 4 * TINY["hidden_size"]
    sizes = [(width, width)] * 4 + [(width, wide), (wide, width)]
    expected = 4 * sum(2 * inner + 3 * outer * 2 + 3 * inner for inner, outer in sizes)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert not torch.equal(maps(model, feed), plain)


def test_any_model_of_linear_maps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4))
    wrapped = get_peft_model(model, TMoEConfig(r=2, target_modules=["0"]))
    assert isinstance(wrapped.base_model.model[0], TMoELinear)
    assert type(wrapped.base_model.model[2]) is nn.Linear
    assert wrapped(torch.randn(3, 6)).shape == (3, 4)
    assert wrapped(torch.randn(6)).shape == (4,)
    with pytest.raises(ValueError, match="gates are another for every token"):
        wrapped.merge_and_unload()


def test_autocast_agrees_with_float32() -> None:
    torch.manual_seed(0)
    layer = TMoELinear(nn.Linear(32, 48), "default", TMoEConfig(r=4, alpha=4))
    scramble(layer, 1)
    x = torch.randn(2, 9, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "at least 1"),
        ({"num_experts": 0}, "at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"init": "zeros"}, "'bert', 'lora' or 'gaussian'"),
        ({"shared_low_rank_expert": True, "routed_compression": True}, "switch one of them off"),
    ],
)
def test_wrong_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TMoEConfig(**fields)


def test_targets_that_are_no_linear_map() -> None:
    with pytest.raises(TypeError, match=r"layers\.0\.norm1 \(LayerNorm\): expected a linear map"):
        tiny_ostrack().add_adapter(TMoEConfig(target_modules=["norm1"]))


def test_two_active_adapters_are_refused() -> None:
    wrapped = get_peft_model(nn.Sequential(nn.Linear(4, 4)), TMoEConfig(r=2, target_modules=["0"]))
    wrapped.add_adapter("second", TMoEConfig(r=2, target_modules=["0"]))
    wrapped.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="active at once"):
        wrapped(torch.randn(1, 4))
