"""SEATrack and its adapter against outputs and gradients of the official code on the same weights."""

import re

import numpy as np
import pytest
import torch
from official_names import seeded_net
from parity_tools import cases, load_case, seeded_input, stated_input

from mmtrackers import AMGLoraConfig, SEATrackConfig, SEATrackForTracking, Tracker, TrackerImageProcessor
from mmtrackers.conversion.job import rename
from mmtrackers.modeling.seams import TokenLayout
from mmtrackers.models.seatrack.convert_seatrack import SEATRACK_NAMES, split_official
from mmtrackers.tuners.amg_lora.hmoe import HMoE
from mmtrackers.tuners.amg_lora.layer import GuidedAttentionCore, LowRankLinear

MODELS = cases(r"seatrack-(?!modules).*")
MODULES = cases(r"seatrack-modules.*")
NONE = [pytest.param(None, marks=pytest.mark.skip("no SEATrack fixtures in the fixtures folder"))]


def config_of(c: dict) -> tuple[SEATrackConfig, AMGLoraConfig]:
    config = SEATrackConfig(
        hidden_size=c["embed_dim"],
        num_hidden_layers=c["depth"],
        num_attention_heads=c["num_heads"],
        patch_size=c["patch_size"],
        template_size=c["template_size"],
        search_size=c["search_size"],
        head_channels=c["head"]["channels"],
    )
    adapter = AMGLoraConfig(
        r=c["lora_rank"],
        hmoe_rank=c["hmoe_rank"],
        hmoe_heads=c["hmoe_heads"],
        hmoe_experts_attn=c["attn_experts"],
        hmoe_experts_ffn=c["ffn_experts"],
        adapter_layers=c["lora_layers"],
    )
    return config, adapter


def load_official(model: SEATrackForTracking, net: dict[str, torch.Tensor]) -> None:
    """Official tensors into a model whose adapter is called `default`; every tensor must find its place."""
    base, adapter = split_official(net)
    ours = base | adapter
    slots = {}
    for name in model.state_dict():
        plain = name.replace(".base_layer.", ".").replace(".amg_lora_hmoe.default.", ".amg_lora_hmoe.")
        slots[name] = plain.removesuffix(".default")
    assert sorted(slots.values()) == sorted(ours)
    model.load_state_dict({name: ours[plain] for name, plain in slots.items()})


def build(description: dict) -> SEATrackForTracking:
    config, adapter = config_of(description["configuration"])
    model = SEATrackForTracking(config)
    model.add_adapter(adapter)
    load_official(model, seeded_net(description))
    return model.eval()


@pytest.fixture(scope="module", params=MODELS or NONE)
def case(request):
    description, golden = load_case(request.param)
    search, template = (stated_input(description, role) for role in ("search", "template"))
    return description, golden, build(description), search.unflatten(1, (2, 3)), template.unflatten(1, (2, 3))[:, None]


def assert_near(ours: torch.Tensor, golden: torch.Tensor, atol: float, name: str) -> None:
    torch.testing.assert_close(ours, golden, atol=atol, rtol=0, msg=lambda text: f"{name}: {text}")


@torch.no_grad()
def test_parity_seatrack_outputs(case):
    description, golden, model, search, template = case
    atol = 5e-5 if "base" in description["case"] else 2e-5
    output = model(search, template)
    for name in ("score_map", "size_map", "offset_map"):
        assert_near(output[name], golden[name], atol, name)
    assert_near(output.boxes, golden["pred_boxes"].flatten(0, 1), atol, "boxes")


@torch.no_grad()
def test_parity_seatrack_tokens(case):
    description, golden, model, search, template = case
    base = "base" in description["case"]
    atol, step = (5e-4, 8) if base else (1e-4, 1)
    states = {}
    last = len(model.model.layers) - 1
    for index in {0, 1, last}:
        layer = model.model.layers[index]
        layer.register_forward_hook(lambda _m, _i, out, index=index: states.update({index: out[0]}))
    fused = model.model(search, template).last_hidden_state
    assert_near(fused[:, ::step, ::step], golden["fused_search"], atol, "fused_search")
    for index, place in [(0, "block0_out"), (1, "block1_out"), (last, "last_block_out")]:
        if f"{place}.rgb" not in golden:
            continue
        rgb, x = states[index].chunk(2)
        for ours, stream in [(rgb, "rgb"), (x, "x")]:
            expected = golden[f"{place}.{stream}"]
            expected = expected[:, expected.shape[1] - ours[:, ::step].shape[1] :]
            assert_near(ours[:, ::step, ::step], expected, atol, f"{place}.{stream}")


@torch.no_grad()
def test_parity_seatrack_packed(case):
    description, golden, plain, search, template = case
    expected = plain(search, template)
    model = build(description)
    model.pack()
    output = model(search, template)
    for name in ("score_map", "size_map", "offset_map"):
        assert_near(output[name], golden[name], 5e-5, name)
        # offsets have no bound, and cells at the border reach several units
        atol = 5e-5 if name == "offset_map" else 1e-5
        assert_near(output[name], expected[name], atol, f"{name} against the plain model")


def test_parity_seatrack_tracking_loop(case):
    description, golden, model, _, _ = case
    if "track" not in description:
        pytest.skip("this case holds no tracking loop")
    c, seed = description["configuration"], description["seed"]
    processor = TrackerImageProcessor(template_size=c["template_size"], search_size=c["search_size"])
    session = None
    previous = description["track"]["init_bbox_xywh"]
    for index in range(5):
        noise = seeded_input(f"frame{index}", (15, 20, 6), seed).numpy()
        frame = np.clip(np.round(128 + 48 * np.kron(noise, np.ones((8, 8, 1)))), 0, 255).astype(np.uint8)
        frame = {"rgb": frame[..., :3].copy(), "thermal": frame[..., 3:].copy()}
        if session is None:
            session = Tracker(model, processor, modality="thermal").start(frame, previous)
            continue
        session.boxes_xywh = np.asarray([previous], dtype=np.float64)
        prediction = session.update(frame)
        previous = golden["track.boxes"][index - 1].tolist()
        np.testing.assert_allclose(prediction.box, previous, atol=1e-3)
        assert prediction.score == pytest.approx(float(golden["track.scores"][index - 1]), abs=2e-5)


@pytest.fixture(scope="module", params=MODULES or NONE)
def modules(request):
    description, golden = load_case(request.param)
    return description, golden, seeded_net(description)


@pytest.mark.parametrize("part", ["hmoe4", "hmoe8", "hmoe4w768"])
@pytest.mark.parametrize("form", ["factored", "plain"])
@torch.no_grad()
def test_parity_seatrack_hmoe(modules, part, form):
    description, golden, weights = modules
    sizes = description["parts"][part]
    mixture = HMoE(sizes["dim"], sizes["experts"], sizes["heads"], sizes["rank"]).eval()
    official = {
        f"backbone.blocks.0.attn_moe.{name.removeprefix(part + '.')}": tensor
        for name, tensor in weights.items()
        if name.startswith(f"{part}.")
    }
    prefix = "model.layers.0.attention_junction.amg_lora_hmoe."
    mixture.load_state_dict({n.removeprefix(prefix): t for n, t in rename(official, SEATRACK_NAMES).items()})
    if form == "plain":
        mixture._factored = mixture._plain
        mixture.dropout = 0.0
    shape = re.search(r"\((\d+),(\d+),(\d+)\)", sizes["input"])
    x = seeded_input(f"{part}.x", tuple(map(int, shape.groups())), description["seed"])
    combine, answers = mixture(x.unsqueeze(0))
    assert_near(combine[0] @ answers, golden[f"{part}.out"], 1e-5, f"{part}.out")
    if f"{part}.combine" in golden:
        assert_near(combine[0], golden[f"{part}.combine"], 1e-5, f"{part}.combine")
        assert_near(answers, golden[f"{part}.expert_tokens"], 1e-5, f"{part}.expert_tokens")


def test_parity_seatrack_guided_attention_and_gradients(modules):
    description, golden, weights = modules
    part = description["parts"]["amg"]
    dim, heads, rank = part["dim"], part["heads"], part["rank"]
    net = {name.removeprefix("amg."): tensor for name, tensor in weights.items() if name.startswith("amg.")}
    qkv_name = next(name for name in net if name.endswith("qkv.weight")).removesuffix("weight")
    proj_name = next(name for name in net if name.endswith("proj.weight")).removesuffix("weight")
    lora_a, lora_b = (net[f"{qkv_name}lora_{letter}"].chunk(2) for letter in "AB")
    config = AMGLoraConfig(r=rank, lora_dropout=0.0)
    layers = {}
    for index, name in enumerate("qkv"):
        linear = torch.nn.Linear(dim, dim)
        linear.weight.data = net[f"{qkv_name}weight"].chunk(3)[index].clone()
        linear.bias.data = net[f"{qkv_name}bias"].chunk(3)[index].clone()
        linear.requires_grad_(False)
        layers[name] = linear if name == "q" else LowRankLinear(linear, "default", config, dim)
        if name != "q":
            layers[name].amg_lora_A["default"].data = lora_a[index - 1].clone()
            layers[name].amg_lora_B["default"].data = lora_b[index - 1].clone()
    core = GuidedAttentionCore(torch.nn.Identity(), "default", config, dim)
    core.amg_lora_x_to_rgb["default"].data = net["dte2r_scaling"].clone()
    core.amg_lora_rgb_to_x["default"].data = net["r2dte_scaling"].clone()

    tokens = torch.cat([seeded_input(f"amg.{s}", (2, 20, dim), description["seed"]) for s in ("rgb", "x")])
    h = torch.nn.functional.layer_norm(tokens, (dim,), net["norm1.weight"], net["norm1.bias"], 1e-6)

    def attend() -> torch.Tensor:
        query, key, value = (layers[n](h).view(4, 20, heads, -1).transpose(1, 2) for n in "qkv")
        layout = TokenLayout(2, 0, 4, 16, (2, 2), (4, 4))
        output, maps = core(query, key, value, (dim // heads) ** -0.5, layout)
        projection = net[f"{proj_name}weight"], net[f"{proj_name}bias"]
        return torch.nn.functional.linear(output.flatten(2), *projection), maps

    with torch.no_grad():
        output, maps = attend()
    for index, stream in enumerate(("rgb", "x")):
        assert_near(output.chunk(2)[index], golden[f"amg.out.{stream}"], 1e-5, f"out.{stream}")
        assert_near(maps.chunk(2)[index], golden[f"amg.prob.{stream}"], 1e-5, f"prob.{stream}")
    output, _ = attend()
    direction = seeded_input("amg.grad", (2, 20, dim), description["seed"])
    (output * direction.repeat(2, 1, 1)).sum().backward()
    gradients = {
        "lora_A": torch.cat([layers[n].amg_lora_A["default"].grad for n in "kv"]),
        "lora_B": torch.cat([layers[n].amg_lora_B["default"].grad for n in "kv"]),
        "dte2r_scaling": core.amg_lora_x_to_rgb["default"].grad,
        "r2dte_scaling": core.amg_lora_rgb_to_x["default"].grad,
    }
    for name, ours in gradients.items():
        torch.testing.assert_close(ours, golden[f"amg.grad.{name}"], atol=5e-5, rtol=1e-4)
