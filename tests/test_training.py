"""Pieces of the training loop: learning rates, meters, averages."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmtrackers.data.sequence import Sequence
from mmtrackers.training.monitor import LossMeter, validation_overlap
from mmtrackers.training.optimization import learning_rate, parameter_groups
from mmtrackers.training.recipes import RECIPES, Recipe
from mmtrackers.training.state import WeightAverage


@pytest.mark.parametrize(
    ("step", "fields", "expected"),
    [
        (99, {"schedule": "constant"}, 1.0),
        (79, {}, 1.0),
        (80, {}, 0.1),
        (50, {"lr_drop_epoch": 5}, 0.1),
        (25, {"schedule": "linear"}, 0.75),
        (50, {"schedule": "cosine"}, 0.5),
        (100, {"schedule": "cosine"}, 0.0),
        (0, {"schedule": "constant", "warmup_steps": 4}, 0.25),
        (3, {"schedule": "constant", "warmup_steps": 4}, 1.0),
    ],
)
def test_learning_rate(step: int, fields: dict[str, Any], expected: float) -> None:
    assert learning_rate(Recipe(lr=1.0, epochs=10, **fields), step, 10) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("update", "expected"), [(0, 1e-7), (1024, 5.005e-5), (2048, 1e-4), (87_040, 5.233e-5), (174_079, 1.0338e-6)]
)
def test_published_schedule_of_lorat(update: int, expected: float) -> None:
    """Values of LitingLin/LoRAT's scheduler, whose step lags by one."""
    assert learning_rate(RECIPES["lorat"], update + 1, 1024) == pytest.approx(expected, rel=1e-4)


def test_what_decays() -> None:
    model = nn.ModuleDict({"model": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "embedder": nn.Linear(4, 4)})
    model["head"] = nn.Linear(4, 1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decaying(**fields: Any) -> dict[float, set[str]]:
        groups = parameter_groups(model, Recipe(weight_decay=0.1, **fields))
        assert sum(len(group["params"]) for group in groups) == len(names)
        assert all(group["weight_decay"] == 0.1 * group["decays"] for group in groups)
        found: dict[float, set[str]] = {}
        for group in groups:
            found.setdefault(group["factor"], set()).update(names[id(p)] for p in group["params"] if group["decays"])
        return found

    assert decaying()[1.0] == set(names.values())
    assert decaying(decay="matrices")[1.0] == {"model.weight", "head.weight"}
    assert decaying(decay="weights", trunk_lr_factor=0.1) == {0.1: {"model.weight"}, 1.0: set()}


def test_meter_goes_on_from_its_state():
    meter = LossMeter()
    meter.add({"loss": torch.tensor(0.1)})
    restored = LossMeter(json.loads(json.dumps(meter.state())))
    for one in (meter, restored):
        one.add({"loss": torch.tensor(0.7)})
    assert restored.mean() == meter.mean()
    assert meter.mean() == {}


def test_weight_average_is_the_formula():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 0.0)
    average = WeightAverage(layer, decay=0.5)
    expected = 0.0
    for step in range(20):
        torch.nn.init.constant_(layer.weight, float(step))
        average.update(layer)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    average.swap(layer)
    assert layer.weight.item() == pytest.approx(expected, rel=1e-5)
    average.swap(layer)
    assert layer.weight.item() == 19.0
    with pytest.raises(ValueError, match=r"decay is 1.0; expected a number between 0 and 1"):
        WeightAverage(layer, decay=1.0)


class Follower:
    """Stands for a tracker: it knows the boxes of a video of `shift` pixels a frame, and breaks down at a frame."""

    def __init__(self, breaks_at: int = 99) -> None:
        self.model, self.breaks_at = nn.Linear(1, 1), breaks_at

    def track(self, frames: Iterable[int], box_xywh: np.ndarray) -> Iterator[SimpleNamespace]:
        assert not self.model.training
        for k, frame in enumerate(frames):
            if frame == self.breaks_at:
                raise ValueError("no such picture")
            yield SimpleNamespace(box=box_xywh + np.array([k, 0, 0, 0]))


class Shown(Sequence):
    def read(self, index: int) -> int:
        return index


def shown(name: str, *present: bool) -> Sequence:
    boxes = np.array([(10.0 + k, 5, 8, 8) for k in range(len(present))])
    boxes[~np.array(present)] = np.nan
    return Shown(name, {"rgb": [Path(f"{k}.png") for k in range(len(present))]}, boxes, np.array(present))


def test_validation_leaves_out_what_never_shows_the_target_again(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Follower()
    tracker.model.train()
    videos = [shown("gone", True, False, False), shown("late", False, True, False, True), shown("b", True, True)]
    assert validation_overlap(tracker, videos) == 1.0
    assert tracker.model.training and "gone" in caplog.text and "late" not in caplog.text
    with pytest.raises(ValueError, match="no validation sequence"):
        validation_overlap(tracker, videos[:1])
    tracker = Follower(breaks_at=1)
    with pytest.raises(ValueError, match="no such picture"):
        validation_overlap(tracker, videos)
    assert tracker.model.training
