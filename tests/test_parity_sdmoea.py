"""SDMoEA's modules against an independent float64 evaluation of their equations (there is no official code)."""

from typing import Any

import pytest
import torch
from parity_tools import cases, load_case
from test_parity_odtrack import MAPS, Case, close, config_of

from mmtrackers import SDMoEAConfig, SDMoEAForTracking
from mmtrackers.conversion.job import rename
from mmtrackers.models.odtrack.convert_odtrack import ODTRACK
from mmtrackers.tuners.sdmoe.config import SDMoEConfig
from mmtrackers.tuners.sdmoe.fusion import GSAHF
from mmtrackers.tuners.sdmoe.mixture import SDMoE, balance_loss

CASES = cases(r"sdmoea-modules.*") or [pytest.param(None, marks=pytest.mark.skip("no SDMoEA fixtures"))]
BASES = [pytest.param(n, marks=[pytest.mark.slow] * ("vitb" in n)) for n in cases(r"sdmoea-base-odtrack-.*")]
ATOL = 2e-5


@pytest.fixture(scope="module", params=CASES)
def case(request):
    description, tensors = load_case(request.param)
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    return description["config"], floats


def near(ours: torch.Tensor, golden: torch.Tensor) -> None:
    torch.testing.assert_close(ours, golden, atol=ATOL, rtol=0)


def adapter(sizes: dict[str, Any], **changes: Any) -> SDMoEConfig:
    fields = {"num_experts": sizes["num_experts"], "top_k": sizes["top_k"], "adapter_dim": sizes["adapter_dim"]}
    fields |= {"num_shared_subnets": sizes["num_shared_subnets"], "hyper_dim": sizes["hyper_dim"]}
    fields |= {"hyper_layers": sizes["hyper_layers"], "hyper_epsilon": sizes["hyper_epsilon"]}
    return SDMoEConfig(**(fields | {"gram_temperature": sizes["gram_temperature"]} | changes))


def mixture(sizes: dict[str, Any], tensors: dict[str, torch.Tensor], **changes: Any) -> SDMoE:
    """The module with the fixture's weights, whose experts are kept apart there."""
    config = adapter(sizes, **changes)
    module = SDMoE(sizes["hidden_size"], config)
    weights = {name.removeprefix("w.sdmoe."): t for name, t in tensors.items() if name.startswith("w.sdmoe.")}

    def joined(names: str, count: int, dim: int = 0) -> torch.Tensor:
        return torch.cat([weights[names.format(i)] for i in range(count)], dim)

    state = {name: weights[name] for name in ("norm.weight", "norm.bias", "router.weight")}
    if config.expert_gate == "parallel":
        state["gate.weight"] = joined("experts.{}.gate.weight", config.num_experts)
    elif config.expert_gate == "serial":
        serial = [tensors[f"w.sdmoe_serial.experts.{e}.gate.weight"] for e in range(config.num_experts)]
        state["gate"] = torch.stack(serial)
    state["down.weight"] = joined("experts.{}.down.weight", config.num_experts)
    state["up.weight"] = joined("experts.{}.up.weight", config.num_experts, 1)
    if config.dense_gate == "softmax":
        state["shared_router.weight"] = weights["shared.router.weight"]
    state["shared_down.weight"], state["shared_up.weight"] = weights["shared.down.weight"], weights["shared.up.weight"]
    state["subnets.weight"] = joined("shared.subnets.{}.weight", config.num_shared_subnets)
    module.load_state_dict(state)
    return module


def fusion(sizes: dict[str, Any], tensors: dict[str, torch.Tensor], **changes: Any) -> GSAHF:
    module = GSAHF(sizes["hidden_size"], sizes["levels"], adapter(sizes, **changes))
    weights = {name.removeprefix("w.gsahf."): t for name, t in tensors.items() if name.startswith("w.gsahf.")}
    module.load_state_dict(weights)
    return module


def stacked(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return torch.cat([tensors[f"in.{name}_rgb"], tensors[f"in.{name}_x"]], dim=-3)


@torch.no_grad()
def test_parity_sdmoea_router_experts_and_balance(case):
    sizes, tensors = case
    module = mixture(sizes, tensors)
    tokens = stacked(tensors, "tokens")
    h = module.norm(tokens).flatten(0, 1)
    probabilities, chosen = module.route(h)
    shape = (2, sizes["batch"], sizes["tokens_per_stream"], -1)
    near(probabilities.view(shape), tensors["out.sdmoe.probs"])
    assert torch.equal(chosen.view(shape).squeeze(3), tensors["out.sdmoe.expert_index"])
    near(module.sparse(h, probabilities, chosen).view(shape), tensors["out.sdmoe.sparse"])
    near(module.shared(h).view(shape), tensors["out.sdmoe.shared"])
    near(balance_loss(probabilities, chosen), tensors["out.sdmoe.balance_loss"][0])


VARIANTS = {
    "out.sdmoe": {},
    "var.sdmoe.top2": {"top_k": 2},
    "var.sdmoe.top2_renorm": {"top_k": 2, "router_renormalise": True},
    "var.sdmoe.serial_gate": {"expert_gate": "serial"},
    "var.sdmoe.no_gate": {"expert_gate": "none"},
    "var.sdmoe.dense_mean": {"dense_gate": "mean"},
    "var.sdmoe.dense_sum": {"dense_gate": "sum"},
}


@pytest.mark.parametrize("gather", [False, True], ids=["masked", "gathered"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_parity_sdmoea_tokens(case, variant, gather):
    sizes, tensors = case
    module = mixture(sizes, tensors, **VARIANTS[variant], gather_experts=gather).train()
    tokens = stacked(tensors, "tokens")
    added, loss = module(tokens)
    near((tokens + added).view_as(tensors[f"{variant}.tokens"]), tensors[f"{variant}.tokens"])
    if f"{variant}.balance_loss" in tensors:
        near(loss, tensors[f"{variant}.balance_loss"][0])


@torch.no_grad()
def test_parity_sdmoea_fusion_step_by_step(case):
    sizes, tensors = case
    module = fusion(sizes, tensors)
    levels = tuple(stacked(tensors, "levels"))
    reduced = module.reduced(levels)
    aligned = module.aligned(reduced)
    for index, stream in enumerate(("rgb", "x")):
        near(reduced[:, index], tensors[f"out.gsahf.reduced_{stream}"])
        near(aligned[:, index], tensors[f"out.gsahf.aligned_{stream}"])
    vertices = aligned.permute(2, 0, 1, 3, 4).contiguous()
    near(vertices.flatten(1, 3), tensors["out.gsahf.vertices"])
    edges = module.hyperedges(vertices.flatten(1, 3))
    assert torch.equal(edges.mT, tensors["out.gsahf.incidence"].float())
    hyper = module.convolved(vertices)
    near(hyper.flatten(1, 3), tensors["out.gsahf.hyper"])
    near(module.level_weight.flatten().softmax(0).view(-1, 2), tensors["out.gsahf.level_weights"])


FUSIONS = {
    "out.gsahf": {},
    "var.gsahf.sym": {"hyper_conv": "sym"},
    "var.gsahf.knn": {"hyperedge_rule": "knn", "hyper_knn": 5},
    "var.gsahf.channel_cross": {"gram_mode": "channel_cross"},
    "var.gsahf.no_gram": {"gram_mode": "none"},
    "var.gsahf.per_level": {"hyper_scope": "per_level"},
}


@pytest.mark.parametrize("variant", FUSIONS)
def test_parity_sdmoea_fused(case, variant):
    sizes, tensors = case
    module = fusion(sizes, tensors, **FUSIONS[variant])
    levels, final = tuple(stacked(tensors, "levels")), stacked(tensors, "final")
    mean = final.unflatten(0, (2, -1)).mean(0)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            near(mean + module(levels), tensors[f"{variant}.fused"])


@pytest.mark.parametrize("name", BASES)
@torch.no_grad()
def test_parity_sdmoea_fresh_adapter_is_odtrack_on_equal_streams(name):
    """A fresh adapter on two equal streams gives the official base's numbers, over frames with carried tokens."""
    case, state = Case(name), None
    model = SDMoEAForTracking(config_of(case.c, SDMoEAConfig))
    model.load_state_dict(rename(case.net, ODTRACK.names))
    model.add_adapter(SDMoEConfig())
    template = case.template.repeat(1, 1, 2, 1, 1, 1)
    for search, golden in zip(case.search, case.golden, strict=True):
        output = model.eval()(search.repeat(1, 2, 1, 1, 1), template, state=state)
        for part in MAPS:
            close(output[part], golden[part], part)
        close(output.boxes, golden["pred_boxes"].flatten(0, 1), "boxes")
        state = output.state
        for stream in state.chunk(2):
            close(stream, golden["track_query"], "track token", rtol=1e-3)


@torch.no_grad()
def test_parity_sdmoea_head_input(case):
    """What the head reads: fused features times their product with the mean of both streams' track tokens."""
    sizes, tensors = case
    module = fusion(sizes, tensors)
    final, query = (stacked(tensors, name).unflatten(0, (2, -1)).mean(0) for name in ("final", "query"))
    fused = final + module(tuple(stacked(tensors, "levels")))
    weighted = (fused * (fused @ query.mT)).mT.unflatten(2, (4, 4))
    torch.testing.assert_close(weighted, tensors["out.gsahf.head_input"], atol=2e-4, rtol=1e-5)
