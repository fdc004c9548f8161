"""SPMTrack against the official code's numbers, on weights and inputs drawn by name."""

import re
from collections.abc import Iterator

import pytest
import torch
from parity_tools import cases, load_case, seeded_input, seeded_tensor
from torch import Tensor
from torch.nn import functional as F

from mmtrackers import SPMTrackConfig, SPMTrackForTracking, TMoEConfig, Tracker, TrackerImageProcessor
from mmtrackers.conversion.job import names_of
from mmtrackers.modeling.clips import forward_clip
from mmtrackers.modeling.dinov2 import SwiGLU, resample_positions
from mmtrackers.modeling.losses import covered_cells
from mmtrackers.modeling.mlp_head import MlpHead
from mmtrackers.models.spmtrack.convert_spmtrack import SPMTRACK_NAMES, rename_spmtrack
from mmtrackers.processing.crops import hann_window
from mmtrackers.tuners.tmoe.config import tmoe_config

SMALL = cases(r"spmtrack-(small|swiglu).*")
BASE = cases(r"spmtrack-base.*")
TRACK = cases(r"spmtrack-track.*")
MODULES = cases(r"spmtrack-modules.*")


def official_net(description: dict) -> dict[str, Tensor]:
    """The official model's tensors, as the fixture says to draw them."""
    config = description["config"]
    net = {
        name: seeded_tensor(name, tuple(facts["shape"]), description["seed"])
        for name, facts in description["state_dict"].items()
    }
    for name, factor in config.get("post_scale", {}).items():
        net[name] *= factor
    for name, term in config.get("post_add", {}).items():
        net[name] += term
    return net


def adapter_config(description: dict) -> TMoEConfig:
    config = description["config"]
    return tmoe_config(
        r=config["r"],
        alpha=config["alpha"],
        num_experts=config["num_experts"],
        use_rsexpert=config["use_rsexpert"],
        shared_low_rank_expert=config["shared_expert"],
        routed_compression=config["route_compression"],
    )


def official_model(description: dict, **fields) -> SPMTrackForTracking:
    """Our model with the official tensors: the frozen ones in the base, the trained ones in an adapter."""
    config = description["config"]
    model = SPMTrackForTracking(
        SPMTrackConfig(
            hidden_size=config["hidden_size"],
            num_hidden_layers=config["num_layers"],
            num_attention_heads=config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
            use_swiglu_ffn=config["ffn"] == "swiglu",
            template_size=config["template_grid_wh"][0] * config["patch_size"],
            search_size=config["search_grid_wh"][0] * config["patch_size"],
            **fields,
        )
    )
    ours = rename_spmtrack(official_net(description))
    base = {name: tensor for name, tensor in ours.items() if ".tmoe_" not in name}
    model.load_state_dict(base)
    model.requires_grad_(False)
    model.add_adapter(adapter_config(description))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in ours.keys() - base.keys():
            parameters[f"{name}.default"].copy_(ours[name])
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert {name for name in trained if ".tmoe_" in name} == {f"{name}.default" for name in ours.keys() - base.keys()}
    return model.eval()


def drawn(description: dict, step: str) -> tuple[Tensor, Tensor]:
    """Search crops `[B, 1, 3, H, W]` and references `[B, 3, 1, 3, h, w]` of a step."""
    return inputs_of(description, f"{step}.x")[:, None], references(description, step)


def inputs_of(description: dict, name: str) -> Tensor:
    """The input whose name ends in `name`."""
    facts = next(facts for facts in description["inputs"] if facts["name"].endswith(f".{name}"))
    return seeded_input(facts["name"], facts["shape"], description["seed"])


def references(description: dict, step: str) -> Tensor:
    return torch.stack([inputs_of(description, f"{step}.z_{i}") for i in range(3)], 1)[:, :, None]


def masks(tensors: dict[str, Tensor], step: str) -> Tensor:
    return torch.stack([tensors[f"{step}.in.z_{i}_mask"] for i in range(3)], 1)


def logits_of(output) -> Tensor:
    return output.score_map.double().logit().float().squeeze(-3)


@pytest.mark.parametrize("case", SMALL)
@torch.no_grad()
def test_three_calls_over_two_sequences(case: str) -> None:
    description, tensors = load_case(case)
    model, kept = official_model(description), {}
    for step, ids in enumerate(description["tracking"]["steps_ids"]):
        search, template = drawn(description, f"step{step}")
        width = model.config.hidden_size
        state = torch.cat([kept.get(i, torch.zeros(1, 1, width)) for i in ids])
        output = model(search, template, masks(tensors, f"step{step}"), state=state)
        kept |= {i: output.state[row : row + 1] for row, i in enumerate(ids)}
        torch.testing.assert_close(output.state, tensors[f"step{step}.out.state"], atol=5e-6, rtol=0)
        torch.testing.assert_close(logits_of(output), tensors[f"step{step}.out.score_map"], atol=2e-5, rtol=1e-5)
        boxes = output.box_map.permute(0, 2, 3, 1)
        torch.testing.assert_close(boxes, tensors[f"step{step}.out.boxes"], atol=5e-6, rtol=0)


def clip(description: dict, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The training sample: three references and two search frames with their boxes."""
    boxes = torch.stack([tensors[f"train.in.gt_box_{frame}"] for frame in range(2)], 1)
    return {
        "search": torch.stack([inputs_of(description, f"train.x_{frame}") for frame in range(2)], 1)[:, :, None],
        "template": references(description, "train"),
        "template_mask": masks(tensors, "train"),
        "labels": torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1),
    }


def gradient(model: SPMTrackForTracking, official: str, r: int) -> Tensor:
    """The gradient of an official tensor: experts are parts of one matrix here."""
    (name,) = names_of(official, SPMTRACK_NAMES)
    parameters = dict(model.named_parameters())
    if ".tmoe_" in name:
        found = parameters[f"{name}.default"].grad
    else:
        found = parameters[re.sub(r"(head|token_type|track_token)\.", r"\1.modules_to_save.default.", name)].grad
    if official.endswith("compress_expert"):
        return found[:r]
    if official.endswith("expert_route.weight"):
        return found[r:]
    expert = re.search(r"routed_experts\.(\d+)$", official)
    return found if expert is None else found[:, int(expert[1]) * r :][:, :r]


@pytest.mark.parametrize("case", SMALL)
def test_two_search_frames_losses_and_gradients(case: str) -> None:
    description, tensors = load_case(case)
    batch = clip(description, tensors)
    for epoch, weight in (("epoch_0", 10.0), ("epoch_5", 1.0)):
        facts, model = description["train"]["losses"][epoch], official_model(description)
        output = model(**batch, box_weight=weight)
        assert output.loss.item() == pytest.approx(facts["total"], rel=1e-6)
        bce, iou = (sum(facts[f"Loss/{part}_{frame}"] for frame in range(2)) / 2 for part in ("bce", "iou"))
        assert output.loss_parts["bce"].item() == pytest.approx(bce, rel=1e-6)
        assert output.loss_parts["giou"].item() == pytest.approx(iou / weight, rel=1e-6)
        for frame in range(2):
            boxes = output.box_map[:, frame].permute(0, 2, 3, 1)
            torch.testing.assert_close(boxes, tensors[f"train.out.boxes_{frame}"], atol=5e-6, rtol=0)
            logits = logits_of(output)[:, frame]
            torch.testing.assert_close(logits, tensors[f"train.out.score_map_{frame}"], atol=2e-5, rtol=1e-5)
    output.loss.backward()
    names = [name.removeprefix("train.grad.") for name in tensors if name.startswith("train.grad.")]
    assert len(names) == 9
    for name in names:
        expected = tensors[f"train.grad.{name}"]
        found = gradient(model, name, description["config"]["r"]).view(expected.shape)
        torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4, msg=name)


@pytest.mark.parametrize("case", SMALL)
def test_frames_backpropagated_one_after_the_other(case: str) -> None:
    description, tensors = load_case(case)
    batch, together, apart = clip(description, tensors), official_model(description), official_model(description)
    expected = together(**batch)
    expected.loss.backward()
    output = forward_clip(apart, **batch, backward=torch.Tensor.backward)
    torch.testing.assert_close(output.loss, expected.loss.detach())
    assert not output.loss.requires_grad
    for (name, ours), theirs in zip(apart.named_parameters(), together.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", BASE)
@torch.no_grad()
def test_base_at_true_size(case: str) -> None:
    description, tensors = load_case(case)
    model, seen = official_model(description), {}
    rows = {"tokens_in": [0, 1, 2, 196, 197, 393, 588, 589, 700, 1317], "block0_out": [0, 1, 197, 589, 1317]}
    model.model.layers[0].register_forward_pre_hook(lambda _m, args: seen.update(tokens_in=args[0]))
    model.model.layers[0].register_forward_hook(lambda _m, _args, out: seen.update(block0_out=out[0]))
    model.model.norm.register_forward_hook(lambda _m, _args, out: seen.update(norm_out=out))
    model.head.register_forward_pre_hook(lambda _m, args: seen.update(head_in=args[0]))
    # the last layer drops the references' rows: state, then search tokens
    rows |= {"norm_out": [0, 1, 112, 729], "head_in": [0, 100, 364, 728]}
    state = None
    for packed in (False, True):
        if packed:
            model.pack()
            state = None
        for step in ("step0", "step1"):
            search, template = drawn(description, step)
            output = model(search, template, masks(tensors, step), state)
            state = output.state
            for name, kept in rows.items() if not packed else ():
                expected = tensors[f"{step}.mid.{name}"]
                expected = expected[:, [0, 3, 4, 5]] if name == "norm_out" else expected
                torch.testing.assert_close(seen[name][:, kept], expected, atol=1e-5, rtol=1e-5, msg=name)
            expected = tensors[f"{step}.out.score_map"]
            torch.testing.assert_close(logits_of(output), expected, atol=5e-6, rtol=0)
            torch.testing.assert_close(output.state, tensors[f"{step}.out.state"], atol=5e-6, rtol=0)
            boxes = output.box_map.permute(0, 2, 3, 1)
            torch.testing.assert_close(boxes, tensors[f"{step}.out.boxes"], atol=5e-6, rtol=0)


def followed(description: dict, tensors: dict[str, Tensor], rule: str) -> Iterator[tuple]:
    """Each frame's fixture entry, what the session predicted, and what model and memory saw of it."""
    run = next(run for run in description["runs"] if run["rule"] == rule)
    model = official_model(description, reference_rule="thirds" if rule == "lasot_base" else "quarters")
    processor = TrackerImageProcessor(
        crop_style="lorat",
        template_size=model.config.template_size,
        search_size=model.config.search_size,
        template_factor=description["settings"]["template_area_factor"],
        search_factor=description["settings"]["search_area_factor"],
    )
    pictures = tensors["frames_u8"].numpy()
    x1, y1, x2, y2 = description["video"]["first_box_xyxy"]
    session = Tracker(model, processor).start(pictures[0], [x1, y1, x2 - x1, y2 - y1])
    seen = {}
    session.model.register_forward_pre_hook(lambda _m, args: seen.update(search=args[0]))
    session.model.register_forward_hook(lambda _m, _args, out: seen.update(output=out))
    for step in run["steps"]:
        seen["references"] = [[one.clone() for one in session._memory[index]] for index in step["reference_frames"]]
        assert list(session._memory.policy.indices(step["frame"])) == step["reference_frames"]
        prediction = session.update(pictures[step["frame"]])
        yield step, prediction, seen


@pytest.mark.parametrize("rule", ["general", "lasot_base"])
@pytest.mark.parametrize("case", TRACK)
def test_the_whole_loop_on_a_video(case: str, rule: str) -> None:
    description, tensors = load_case(case)
    dataset = {"general": "GOT-10k", "lasot_base": "LaSOT"}[rule]
    for step, prediction, seen in followed(description, tensors, rule):
        prefix, box = f"{dataset}.f{step['frame']}", step["box_xyxy"]
        for (pixels, mask), mean, (x1, y1, x2, y2) in zip(
            seen["references"], step["z_mean"], step["foreground_cells"], strict=True
        ):
            assert TrackerImageProcessor().normalize(pixels).mean().item() == pytest.approx(mean, abs=1e-5)
            cells = torch.zeros(14, 14, dtype=torch.int64)
            cells[y1:y2, x1:x2] = 1
            assert torch.equal(mask[0], cells)
        x, y, width, height = prediction.box.tolist()
        assert [x, y, x + width, y + height] == pytest.approx(box, abs=1e-4)
        assert prediction.score == pytest.approx(step["confidence"], abs=1e-5)
        search = seen["search"][0, 0]
        assert search.mean().item() == pytest.approx(step["x_crop_mean"], abs=1e-4)
        assert search.std().item() == pytest.approx(step["x_crop_std"], abs=1e-4)
        for name, found in {
            "score_map": logits_of(seen["output"])[0],
            "boxes": seen["output"].box_map[0].permute(1, 2, 0),
            "state": seen["output"].state[0],
            "x_row100": search[:, 100],
            "x_crop_8x8": F.avg_pool2d(search, 42),
        }.items():
            expected = tensors.get(f"{prefix}.{name}", found)  # not every frame has all of them
            torch.testing.assert_close(found, expected, atol=5e-6, rtol=0, msg=f"{prefix}.{name}")


@pytest.mark.parametrize("case", MODULES)
@torch.no_grad()
def test_swiglu(case: str) -> None:
    description, tensors = load_case(case)
    shapes = description["parts"]["swiglu"]["state_dict"]
    mlp = SwiGLU(SPMTrackConfig(hidden_size=24, num_attention_heads=2, use_swiglu_ffn=True))
    weights = {name: seeded_tensor(name, tuple(shape), description["seed"]) for name, shape in shapes.items()}
    weights = {name.partition(".swiglu.")[2]: weight for name, weight in weights.items()}
    mlp.load_state_dict(weights)
    torch.testing.assert_close(mlp.project(mlp.inner(tensors["swiglu.x"])), tensors["swiglu.y"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", MODULES)
def test_positions(case: str) -> None:
    description, tensors = load_case(case)
    facts = description["parts"]["pos"]["input"]
    table = seeded_input(facts["name"], facts["shape"], description["seed"])
    for side in (16, 27):
        torch.testing.assert_close(resample_positions(table, side), tensors[f"pos.out{side}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", MODULES)
def test_crops(case: str) -> None:
    description, tensors = load_case(case)
    facts, image = description["parts"]["crop"], tensors["crop.image_u8"].permute(1, 2, 0).numpy()
    for entry in facts["cases"]:
        x1, y1, x2, y2 = facts["boxes"][entry["box"]]
        box, size = [x1, y1, x2 - x1, y2 - y1], entry["size"]
        processor = TrackerImageProcessor(
            crop_style="lorat", template_size=size, template_factor=entry["area_factor"], search_size=size
        )
        picture, where = processor.crop(image, box, "template")
        expected = tensors[f"crop.{entry['box']}.{size}.out"].permute(1, 2, 0).numpy()
        assert picture == pytest.approx(expected, abs=1e-3)
        assert where.scale.tolist() == entry["adjusted_scale"]
        assert where.translation.tolist() == entry["adjusted_translation"]
        left, top, right, bottom = entry["foreground_cells_xyxy"]
        cells = torch.zeros(size // 14, size // 14, dtype=torch.int64)
        cells[top:bottom, left:right] = 1
        assert torch.equal(processor.template_mask([where], size // 14)[0], cells)


@pytest.mark.parametrize("case", MODULES)
def test_positive_cells_and_best_cell(case: str) -> None:
    description, tensors = load_case(case)
    facts = description["parts"]["positive_cells"]
    for entry in facts["cases"]:
        cells = covered_cells(torch.tensor(entry["box"]) / facts["search"][0], facts["map"][0])
        assert cells.flatten().nonzero().flatten().tolist() == entry["cells"]
    facts = description["parts"]["post_process"]
    scores, boxes = (seeded_input(part["name"], part["shape"], description["seed"]) for part in facts["inputs"])
    window = torch.from_numpy(hann_window(6, zeros=True))
    torch.testing.assert_close(window, tensors["pp.window"], atol=1e-7, rtol=0)
    maps = {"score_map": scores.sigmoid()[:, None], "box_map": boxes.permute(0, 3, 1, 2)}
    found, confidence = MlpHead(8, 6).decode(maps, window)
    torch.testing.assert_close(confidence, tensors["pp.confidence"], atol=1e-6, rtol=0)
    corners = torch.cat([found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2], 1)
    torch.testing.assert_close(corners * facts["search"][0], tensors["pp.box"], atol=1e-4, rtol=0)
