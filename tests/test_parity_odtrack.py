"""ODTrack against outputs of the official code on the same weights, over consecutive frames."""

import re

import pytest
import torch
from official_names import seeded_net
from parity_tools import cases, load_case, seed_of, seeded_input
from torch import Tensor

from mmtrackers import ODTrackConfig, ODTrackForTracking
from mmtrackers.conversion.job import rename
from mmtrackers.models.odtrack.convert_odtrack import ODTRACK

CASES = cases(r"sdmoea-base-odtrack-.*|odtrack-.*")
pytestmark = pytest.mark.skipif(not CASES, reason="no ODTrack fixtures")
MAPS = ("score_map", "size_map", "offset_map")


def weights_of(description: dict) -> dict[str, Tensor]:
    net = seeded_net(description)
    if scaled := re.search(r"(\S+) and (\S+) are multiplied by ([\d.]+\d)", description["weights"]):
        for name in scaled.groups()[:2]:
            net[name] *= float(scaled[3])
    return net


def config_of(c: dict, config_class: type[ODTrackConfig] = ODTrackConfig, **changes) -> ODTrackConfig:
    elimination = c["candidate_elimination"]
    if isinstance(elimination, dict):  # else a sentence that says it is off
        changes = {"elimination_layers": elimination["layers"], **changes}
    return config_class(
        hidden_size=c["embed_dim"],
        num_hidden_layers=c["depth"],
        num_attention_heads=c["heads"],
        template_size=c["template_size"],
        search_size=c["search_size"],
        head_channels=c["head_channels"],
        num_templates=c["templates"],
        **changes,
    )


class Case:
    """A fixture: its model, crops and golden tensors."""

    def __init__(self, name: str):
        description, golden = load_case(name)
        self.c, self.net = description["config"], weights_of(description)

        def crops(role: str, index: str, count: int) -> list[Tensor]:
            side, seed = self.c[f"{role}_size"], seed_of(description, f"{role}.{index}")
            shape = (self.c["batch"], 3, side, side)
            return [seeded_input(f"{role}.{i}", shape, seed)[:, None] for i in range(count)]

        self.template = torch.stack(crops("template", "i", self.c["templates"]), 1)
        self.search = crops("search", "f", self.c["frames run in sequence"])
        self.golden = [
            {n.removeprefix(f"out.frame{f}."): t for n, t in golden.items() if f".frame{f}." in n}
            for f in range(len(self.search))
        ]

    def model(self, **changes) -> ODTrackForTracking:
        model = ODTrackForTracking(config_of(self.c, **changes)).eval()
        model.load_state_dict(rename(self.net, ODTRACK.names))
        return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def close(ours: Tensor, theirs: Tensor, name: str, atol: float = 1e-4, rtol: float = 0.0) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol, msg=lambda text: f"{name}: {text}")


@torch.no_grad()
def test_parity_odtrack_frames(case: Case) -> None:
    model, seen = case.model(), {}
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _m, _i, out, name=f"block{index}": seen.__setitem__(name, out[0]))
    model.model.norm.register_forward_hook(lambda _m, _i, out: seen.__setitem__("normed", out))
    model.head.register_forward_pre_hook(lambda _m, args: seen.__setitem__("head", args[0]))
    state, last = None, f"block{len(model.model.layers) - 1}"
    for search, golden in zip(case.search, case.golden, strict=True):
        output = model(search, case.template, state=state)
        for name in MAPS:
            close(output[name], golden[name], name)
        close(output.boxes, golden["pred_boxes"].flatten(0, 1), "boxes")
        close(output.state, golden["track_query"], "state", rtol=1e-3)
        if "head_input_corner" in golden:
            close(seen["normed"][:, 1:9], golden["feat_first_search_tokens"], "features", rtol=1e-3)
            side = model.config.search_grid
            head_input = seen["head"].transpose(1, 2).unflatten(2, (side, side))
            close(head_input[:, :, :2, :2], golden["head_input_corner"], "head input", rtol=1e-3)
        for name in [name for name in golden if name.startswith("block")]:
            block, theirs = name.split(".")[0], golden[name]
            rows, golden_rows = ([0, -1], [0, 2]) if block == last else ([0, 1, -1], [0, 1, 2])
            close(seen[block][:, rows], theirs[:, golden_rows], name, rtol=1e-3)
        state = output.state


@torch.no_grad()
def test_parity_odtrack_packed(case: Case) -> None:
    plain, packed, states = case.model(), case.model(), [None, None]
    packed.pack()
    template = packed.embed_template(case.template)
    for search, golden in zip(case.search, case.golden, strict=True):
        outputs = plain(search, case.template, state=states[0]), packed(search, template, state=states[1])
        for name in MAPS:
            close(outputs[1][name], golden[name], name)
            close(outputs[1][name], outputs[0][name], name, atol=3e-5 if name == "offset_map" else 1e-5)
        states = [output.state for output in outputs]


@torch.no_grad()
def test_parity_odtrack_two_equal_streams_are_one(case: Case) -> None:
    """Both streams fed the same pictures, with their own track tokens, are the single-stream tracker."""
    if case.model().config.elimination_layers:
        with pytest.raises(Exception, match="works with one stream only"):
            case.model(streams=2, modality="thermal")
        return
    model, state = case.model(streams=2, modality="thermal"), None
    for search, golden in zip(case.search, case.golden, strict=True):
        template = case.template.repeat(1, 1, 2, 1, 1, 1)
        output = model(search.repeat(1, 2, 1, 1, 1), template, state=state)
        for name in MAPS:
            close(output[name], golden[name], name)
        assert output.state.shape == (2 * len(search), 1, model.config.hidden_size)
        state = output.state


@torch.no_grad()
def test_a_clip_is_its_frames(case: Case) -> None:
    model = case.model()
    output = model(torch.stack(case.search, 1), case.template)
    for index, golden in enumerate(case.golden):
        for name in MAPS:
            close(output[name][:, index], golden[name], name)
        close(output.boxes[:, index], golden["pred_boxes"].flatten(0, 1), "boxes")
    close(output.state, case.golden[-1]["track_query"], "state", rtol=1e-3)
