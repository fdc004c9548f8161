"""SDMoEA's adapter: its size, what its equations imply, and that processes and forms of computing agree."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from model_rows import TINY, difference, inputs, maps, scramble
from peft.tuners.tuners_utils import cast_adapter_dtype
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tracking_stub import frame as stub_frame

from mmtrackers import (
    ODTrackConfig,
    ODTrackForTracking,
    OSTrackConfig,
    OSTrackForTracking,
    SDMoEAForTracking,
    SDMoEConfig,
    Tracker,
    TrackerImageProcessor,
)
from mmtrackers.processing.frames import MODALITIES
from mmtrackers.tuners.registration import TrackerTunerLayer
from mmtrackers.tuners.sdmoe.fusion import GSAHF, HyperConv
from mmtrackers.tuners.sdmoe.layer import HypergraphFusion, MixtureJunction
from mmtrackers.tuners.sdmoe.mixture import SDMoE, balance_loss
from mmtrackers.tuners.sdmoe.packed import PackedMixtureJunction

SMALL = {"adapter_dim": 4, "hyper_dim": 8}
WIDTH = 32


def tracker(**changes: Any) -> OSTrackForTracking:
    """A tiny two-stream base with a scrambled adapter."""
    torch.manual_seed(0)
    config = OSTrackConfig(**TINY, elimination_layers=[], streams=2, modality="thermal", fusion="mean")
    model = OSTrackForTracking(config)
    scramble(model, 0.1)
    model.requires_grad_(False)
    model.add_adapter(SDMoEConfig(**(SMALL | changes)))
    scramble(model, 0.1, trainable_only=True)
    return model.eval()


def mixture(**changes: Any) -> SDMoE:
    torch.manual_seed(0)
    module = SDMoE(WIDTH, SDMoEConfig(**(SMALL | changes)))
    scramble(module, 0.3)
    return module


def fusion(**changes: Any) -> GSAHF:
    torch.manual_seed(0)
    module = GSAHF(WIDTH, 3, SDMoEConfig(**(SMALL | changes)))
    scramble(module, 0.3)
    return module


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- sizes and targets


@pytest.mark.parametrize(
    ("width", "depth", "fields", "millions"),
    [
        (768, 12, {}, 8.80),
        (1024, 24, {}, 30.52),
        (768, 12, {"expert_gate": "serial"}, 6.64),
        (1024, 24, {"expert_gate": "serial"}, 22.86),
        (768, 12, {"expert_gate": "none"}, 6.44),
        (1024, 24, {"expert_gate": "none"}, 22.17),
    ],
)
def test_adapter_size_at_real_size(width: int, depth: int, fields: dict[str, Any], millions: float) -> None:
    config = SDMoEConfig(**fields)
    with torch.device("meta"):
        parts = [SDMoE(width, config), GSAHF(width, len(config.levels(depth)), config)]
    block, joined = (sum(p.numel() for p in part.parameters()) for part in parts)
    assert (depth * block + joined) / 1e6 == pytest.approx(millions, abs=0.005)
    if not fields:
        assert (block, joined) == {768: (712_192, 256_200), 1024: (1_257_700, 340_168)}[width]


def test_adapter_is_on_every_mlp_and_on_the_fusion() -> None:
    model = tracker()
    kinds = {name: type(m) for name, m in model.named_modules() if isinstance(m, TrackerTunerLayer)}
    expected = {f"model.layers.{i}.mlp_junction": MixtureJunction for i in range(3)}
    assert kinds == expected | {"model.fusion": HypergraphFusion}
    assert model.peft_config["default"].hyper_levels == [0, 1, 2]
    assert SDMoEConfig().levels(12) == [2, 5, 8, 11] and SDMoEConfig().levels(24) == [5, 11, 17, 23]


def test_initial_values() -> None:
    torch.manual_seed(0)
    module, joined = SDMoE(768, SDMoEConfig()), GSAHF(768, 4, SDMoEConfig())
    for name, parameter in [*module.named_parameters(), *joined.named_parameters()]:
        leaf = name.rsplit(".", 2)[-2:]
        if leaf[0] in ("up", "shared_up", "out") or name == "level_weight" or name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expert_gate": "swiglu"}, "expert_gate is 'swiglu', expected one of .*'parallel'"),
        ({"dense_gate": "max"}, "dense_gate is 'max'"),
        ({"gram_mode": "token"}, "gram_mode is 'token'"),
        ({"hyperedge_rule": "ball"}, "hyperedge_rule is 'ball'"),
        ({"hyper_scope": "all"}, "hyper_scope is 'all'"),
        ({"hyper_conv": "max"}, "hyper_conv is 'max'"),
        ({"top_k": 5}, "top_k is 5, but there are only 4 experts"),
        ({"num_experts": 0}, "num_experts must be at least 1"),
        ({"adapter_dim": 0}, "adapter_dim must be at least 1"),
        ({"router_renormalise": True}, "could not reach the router"),
        ({"hyper_epsilon": 2.0}, "hyper_epsilon 2.0"),
        ({"gram_temperature": 0.0}, "gram_temperature is 0.0"),
        ({"hyper_levels": [1, 0]}, r"hyper_levels is \[1, 0\], expected increasing numbers of blocks from 0 to 2"),
        ({"hyper_levels": [3]}, "from 0 to 2"),
        ({"adapter_dim": None, "adapter_reduction": 64}, "adapter_reduction=64 leaves nothing of the token width 32"),
        ({"target_modules": ["mlp"]}, "SDMOE cannot adapt model.layers.0.mlp"),
    ],
)
def test_config_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        tracker(**fields)


def test_one_stream_has_experts_but_no_fusion() -> None:
    model = OSTrackForTracking(OSTrackConfig(**TINY, elimination_layers=[]))
    with pytest.raises(ValueError, match=r"SDMOE mixes two streams.*streams=1"):
        model.add_adapter(SDMoEConfig(**SMALL))
    model = OSTrackForTracking(OSTrackConfig(**TINY, elimination_layers=[])).eval()
    feed = inputs(model.config)
    before = maps(model, feed)
    model.add_adapter(SDMoEConfig(**SMALL, use_gsahf=False))
    scramble(model, 0.1, trainable_only=True)
    assert difference(maps(model, feed), before) > 1e-3


def test_neighbors_must_exist() -> None:
    with pytest.raises(ValueError, match="hyper_knn is 9, but a graph has only 8 vertices"):
        fusion(hyperedge_rule="knn", hyper_knn=9).hyperedges(tokens(1, 8, 8))


# ------------------------------------------------------------------------------------------------------- every field


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 3},
        {"top_k": 2},
        {"top_k": 2, "router_renormalise": True},
        {"adapter_dim": 8},
        {"adapter_dim": None, "adapter_reduction": 4},
        {"expert_gate": "serial"},
        {"expert_gate": "none"},
        {"num_shared_subnets": 2},
        {"dense_gate": "mean"},
        {"dense_gate": "sum"},
        {"adapter_prenorm": False},
        {"adapter_scale": 0.5},
        {"hyper_levels": [0, 2]},
        {"hyper_dim": 4},
        {"gram_mode": "channel_cross"},
        {"gram_mode": "none"},
        {"gram_temperature": 1.0},
        {"hyperedge_rule": "knn", "hyper_knn": 5},
        {"hyper_epsilon": 1.2},
        {"hyper_scope": "per_level"},
        {"hyper_conv": "sym"},
        {"hyper_layers": 2},
        {"use_gsahf": False},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()),
)
def test_every_field_acts_and_trains(changes: dict[str, Any]) -> None:
    standard, model = tracker(), tracker(**changes)
    feed = inputs(model.config)
    assert difference(maps(model, feed), maps(standard, feed)) > 1e-5
    model.train()
    output = model(**feed, labels=torch.tensor([[0.3, 0.35, 0.3, 0.2]]).repeat(2, 1))
    output.loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_balance_loss_is_weighted_and_summed_over_blocks() -> None:
    feed = inputs(tracker().config)
    losses = {coef: tracker(balance_loss_coef=coef).train()(**feed).auxiliary_loss for coef in (0.01, 1.0)}
    assert losses[1.0].item() == pytest.approx(100 * losses[0.01].item(), rel=1e-5)
    model = tracker(balance_loss_coef=1.0).train()
    own = []
    for layer in model.model.layers:
        layer.mlp_junction.sdmoe_mixture["default"].register_forward_hook(lambda _m, _i, out: own.append(out))
    total = model(**feed).auxiliary_loss
    assert total.item() == pytest.approx(sum(loss.item() for _, loss in own), rel=1e-6)
    # every token of every block is counted, the last one's template tokens too
    assert {added.shape[1] for added, _ in own} == {4 + 16}
    assert model.eval()(**feed).auxiliary_loss is None


# ------------------------------------------------------------------------------------ what the equations must satisfy


def test_fresh_adapter_is_the_mean_of_both_streams() -> None:
    torch.manual_seed(0)
    config = {**TINY, "elimination_layers": []}
    one = OSTrackForTracking(OSTrackConfig(**config)).eval()
    scramble(one, 0.1)
    two = OSTrackForTracking(OSTrackConfig(**config, streams=2, modality="thermal", fusion="mean")).eval()
    two.load_state_dict(one.state_dict())
    two.add_adapter(SDMoEConfig(**SMALL))
    feed = inputs(one.config)
    pairs = {"search": feed["search"].repeat(1, 2, 1, 1, 1), "template": feed["template"].repeat(1, 1, 2, 1, 1, 1)}
    assert difference(maps(two, pairs), maps(one, feed)) <= 1e-6


def test_swapped_streams_change_nothing_when_their_weights_are_equal() -> None:
    model = tracker()
    level_weight = model.model.fusion.sdmoe_fusion["default"].level_weight
    feed = inputs(model.config)
    swapped = {"search": feed["search"].flip(1), "template": feed["template"].flip(2)}
    assert difference(maps(model, feed), maps(model, swapped)) > 1e-5
    level_weight.data.copy_(level_weight.data[:, :1].expand(-1, 2))
    assert difference(maps(model, feed), maps(model, swapped)) <= 1e-5


@pytest.mark.parametrize("rule", ["epsilon", "knn"])
def test_every_vertex_is_in_a_hyperedge_and_means_keep_constants(rule: str) -> None:
    module = fusion(hyperedge_rule=rule, hyper_knn=5)
    edges = module.hyperedges(tokens(2, 40, 8))
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert (edges.diagonal(dim1=1, dim2=2) == 1).all()
    assert (edges.sum(1) >= 1).all() and (edges.sum(2) >= 1).all()
    if rule == "knn":
        assert (edges.sum(2) == 5).all() and not torch.equal(edges, edges.mT)
    constant = tokens(1, 1, 8).expand(2, 40, 8)
    assert difference(HyperConv(8, "mean").propagate(constant, edges), constant) <= 1e-6


def test_hyperedges_carry_no_gradient_and_are_float32() -> None:
    x = tokens(1, 40, 8).requires_grad_()
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            edges = fusion().hyperedges(x.to(dtype))
        assert (edges.dtype, edges.requires_grad) == (torch.float32, False)
    exact = torch.cdist(*[nn.functional.normalize(x.detach().double(), dim=-1)] * 2) < 0.8
    assert torch.equal(fusion().hyperedges(x) == 1, exact | torch.eye(40, dtype=torch.bool))


def test_all_experts_chosen_are_a_dense_mixture() -> None:
    sparse, h = mixture(top_k=4), tokens(50, WIDTH)
    probabilities, chosen = sparse.route(h)
    assert (chosen.sort(1).values == torch.arange(4)).all()
    torch.testing.assert_close(probabilities.gather(1, chosen).sum(1), torch.ones(50))
    inner = (nn.functional.silu(sparse.gate(h)) * sparse.down(h)).unflatten(1, (4, -1))
    ups = sparse.up.weight.unflatten(1, (4, -1))
    answers = torch.einsum("ner,cer->nec", inner, ups)
    torch.testing.assert_close(sparse.sparse(h, probabilities, chosen), (probabilities[:, :, None] * answers).sum(1))


@pytest.mark.parametrize("top_k", [1, 2])
def test_balance_loss_of_ties_and_of_collapse(top_k: int) -> None:
    module = mixture(top_k=top_k)
    nn.init.zeros_(module.router.weight)
    probabilities, chosen = module.route(tokens(30, WIDTH))
    assert (chosen == torch.arange(top_k)).all()  # equal probabilities: the lower index
    assert balance_loss(probabilities, chosen).item() == pytest.approx(1.0)
    certain = torch.zeros(30, 4).index_fill_(1, torch.tensor([2]), 1.0)
    assert balance_loss(certain, torch.full((30, 1), 2)).item() == pytest.approx(4.0)


def test_router_learns_from_the_tracking_loss() -> None:
    model = tracker(balance_loss_coef=0.0).train()
    model(**inputs(model.config), labels=torch.tensor([[0.3, 0.35, 0.3, 0.2]]).repeat(2, 1)).loss.backward()
    for layer in model.model.layers:
        assert layer.mlp_junction.sdmoe_mixture["default"].router.weight.grad.abs().max() > 1e-6


def test_tokens_are_adapted_one_by_one() -> None:
    module, x = mixture(), tokens(2, 25, WIDTH)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(module(x[:, order])[0], module(x)[0][:, order])


def test_saved_and_loaded_adapter_is_the_same(tmp_path: Path) -> None:
    base = OSTrackForTracking(OSTrackConfig(**TINY, elimination_layers=[])).eval()
    scramble(base, 0.1)
    base.save_pretrained(tmp_path / "base")
    config = OSTrackConfig(**TINY, elimination_layers=[], streams=2, modality="depth", fusion="mean")
    model = OSTrackForTracking.from_pretrained(tmp_path / "base", config=config)
    model.requires_grad_(False).add_adapter(SDMoEConfig(**SMALL))
    scramble(model, 0.1, trainable_only=True)
    feed = inputs(config)
    expected = maps(model.eval(), feed)
    model.save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "**unofficial reconstruction**" in card and "`hyper_epsilon`" in card
    again = OSTrackForTracking.from_pretrained(tmp_path / "adapter")
    assert torch.equal(maps(again, feed), expected)


def test_one_adapter_tracks_every_second_stream(tmp_path: Path) -> None:
    config = {**TINY, "num_templates": 2}
    base = ODTrackForTracking(ODTrackConfig(**config))
    scramble(base, 0.1)
    base.save_pretrained(tmp_path)
    model = SDMoEAForTracking.from_base(tmp_path, adapter_config=SDMoEConfig(**SMALL)).eval()
    scramble(model, 0.1, trainable_only=True)
    assert (model.config.streams, model.config.modality, model.config.fusion) == (2, "any", "mean")
    tracker = Tracker(model, TrackerImageProcessor(template_size=32, search_size=64))
    videos = {kind: [stub_frame((40 + i, 50, 24, 20), modality=kind) for i in range(6)] for kind in MODALITIES[1:]}
    alone = {kind: [p.box for p in tracker.track(video, (40, 50, 24, 20))] for kind, video in videos.items()}
    sessions = {kind: tracker.start(video[0], (40, 50, 24, 20)) for kind, video in videos.items()}
    for index in range(1, 6):
        for kind, session in sessions.items():
            assert (session.update(videos[kind][index]).box == alone[kind][index]).all()
    # the pictures of thermal and event are the same here, depth is colored
    last = {kind: boxes[-1].tolist() for kind, boxes in alone.items()}
    assert last["thermal"] == last["event"] != last["depth"]


# --------------------------------------------------------------------------------------------- forms of computing


@pytest.mark.parametrize("changes", [{}, {"top_k": 2}, {"expert_gate": "serial"}, {"expert_gate": "none"}], ids=str)
def test_gathered_experts_equal_masked_ones(changes: dict[str, Any]) -> None:
    results = []
    for gather in (False, True):
        fields = {"adapter_dim": 5, "num_experts": 6, "adapter_prenorm": False, "gather_experts": gather}
        module = mixture(**(fields | changes)).train()
        x = tokens(2, 40, WIDTH).index_fill_(2, torch.tensor([0]), 10.0).requires_grad_()
        # an expert that no token chooses
        module.router.weight.data[:, 0] = torch.tensor([0.0, 0.0, -10.0, 0.0, 0.0, 0.0])
        added, loss = module(x)
        chosen = module.route(module.norm(x).flatten(0, 1))[1]
        (added * tokens(2, 40, WIDTH, seed=1)).sum().backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        results.append((added, loss, x.grad, grads, chosen))
    masked, gathered = results
    assert set(masked[4].flatten().tolist()) == {0, 1, 3, 4, 5}
    for one, other in zip(masked[:3], gathered[:3], strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert masked[3].keys() == gathered[3].keys()
    for name in masked[3]:
        torch.testing.assert_close(masked[3][name], gathered[3][name], atol=2e-5, rtol=1e-4, msg=name)


def test_the_graph_is_not_kept_for_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    module, made = fusion(), []
    original = module.hyperedges

    def watched(x: Tensor) -> Tensor:
        edges = original(x)
        made.append(weakref.ref(edges))
        return edges

    monkeypatch.setattr(module, "hyperedges", watched)
    levels = tuple(tokens(4, 16, WIDTH, seed=s).requires_grad_() for s in range(3))
    result = module(levels)
    assert len(made) == 1 and made[0]() is None
    result.square().sum().backward()
    assert len(made) == 2
    kept = [level.grad.clone() for level in levels]
    monkeypatch.setattr("mmtrackers.tuners.sdmoe.fusion.checkpoint", lambda call, x, use_reentrant: call(x))
    for level in levels:
        level.grad = None
    result = module(levels)
    assert made[-1]() is not None
    result.square().sum().backward()
    assert all(torch.equal(level.grad, before) for level, before in zip(levels, kept, strict=True))


def test_bfloat16_base_and_autocast_keep_the_choice() -> None:
    module, h = mixture(), tokens(400, WIDTH)
    expected = module.route(h)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.route(h)[1], expected)
        added, loss = module.train()(h[None])
    assert loss.dtype == torch.float32
    with torch.no_grad():
        assert difference(added.float(), module(h[None])[0]) <= 0.05 * added.abs().max().item()


# ------------------------------------------------------------------------------------------------------- processes


def step(folder: str, rank: int, processes: int) -> None:
    """One training step on this process's part of four pairs; what the first process sees is written down."""
    torch.set_num_threads(1)
    model = tracker(balance_loss_coef=1.0).train()
    feed = inputs(model.config, batch=4) | {"labels": torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) / 2}
    feed = {name: value.chunk(processes)[rank] for name, value in feed.items()}
    wrapped = model
    if processes > 1:
        # the blocks' shares are summed over processes again when a block is computed again
        model.activation_checkpointing_enable()
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes
        )
        wrapped = DistributedDataParallel(model)
    output = wrapped(**feed)
    output.loss.backward()
    if rank == 0:
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        save_file(found | {"balance": output.auxiliary_loss.detach()}, f"{folder}/of_{processes}.safetensors")
    if processes > 1:
        # as in training's loop: a wrapped model that outlives the process group can hang its process at the end
        del wrapped, output
        distributed.destroy_process_group()


def step_of_two(rank: int, folder: str) -> None:
    step(folder, rank, 2)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    step(str(tmp_path), 0, 1)
    torch.multiprocessing.spawn(step_of_two, (str(tmp_path),), nprocs=2)
    one, two = (load_file(tmp_path / f"of_{processes}.safetensors") for processes in (1, 2))
    assert one.keys() == two.keys() and len(one) > 30
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=2e-4, msg=lambda m, name=name: f"{name}: {m}")


# --------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 2},
        {"top_k": 3, "router_renormalise": True},
        {"expert_gate": "serial"},
        {"expert_gate": "none"},
        {"dense_gate": "mean"},
        {"dense_gate": "sum"},
        {"adapter_prenorm": False, "adapter_scale": 0.5},
        {"gather_experts": True},
    ],
    ids=str,
)
def test_packed_is_plain(changes: dict[str, Any]) -> None:
    model = tracker(**changes)
    feed = inputs(model.config)
    expected = maps(model, feed)
    model.pack()
    junction = model.model.layers[0].mlp_junction
    assert isinstance(junction, MixtureJunction if "gather_experts" in changes else PackedMixtureJunction)
    assert difference(maps(model, feed), expected) <= 1e-5


def test_packed_without_the_adapter_is_the_base() -> None:
    model = tracker()
    feed = inputs(model.config)
    model.disable_adapters()
    expected = maps(model, feed)
    model.pack()
    assert difference(maps(model, feed), expected) <= 1e-5


def test_packed_in_bfloat16_chooses_in_float32() -> None:
    plain, packed = tracker().to(torch.bfloat16), tracker().to(torch.bfloat16)
    for model in (plain, packed):
        cast_adapter_dtype(model, "default")
    packed.pack()
    routers = [layer.mlp_junction.routers for layer in packed.model.layers]
    seen: list[torch.dtype] = []
    for router in routers:
        router.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    feed = {name: value.bfloat16() for name, value in inputs(plain.config).items()}
    exact = maps(tracker(), inputs(plain.config))
    errors = [difference(maps(model, feed).float(), exact) for model in (plain, packed)]
    assert set(seen) == {torch.float32}
    assert errors[1] <= 1.5 * errors[0] + 0.01


class Maps(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, search: Tensor, template: Tensor) -> Tensor:
        return maps(self.model, {"search": search, "template": template})


@torch.no_grad()
def test_exports_with_static_shapes() -> None:
    """The expert that a token takes changes no shape, so that a program or a graph of a frame can be kept."""
    model = tracker()
    feed = inputs(model.config)
    program = torch.export.export(Maps(model), tuple(feed.values())).module()
    for given in (feed, {name: value.flip(0) for name, value in feed.items()}):
        assert difference(program(*given.values()), maps(model, given)) <= 1e-6
