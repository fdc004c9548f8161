"""Pieces of the training loop: learning rates, meters, averages."""

import json

import pytest
import torch

from mmtrackers.training import LossMeter, WeightAverage, learning_rate


@pytest.mark.parametrize(
    "schedule, step, more, expected",
    [
        ("constant", 99, {}, 1.0),
        ("step", 79, {}, 1.0),
        ("step", 80, {}, 0.1),
        ("step", 50, {"drop_epoch": 5}, 0.1),
        ("linear", 25, {}, 0.75),
        ("cosine", 50, {}, 0.5),
        ("cosine", 100, {}, 0.0),
        ("constant", 0, {"warmup_steps": 4}, 0.25),
        ("constant", 3, {"warmup_steps": 4}, 1.0),
    ],
)
def test_learning_rate(schedule, step, more, expected):
    rate = learning_rate(1.0, step, steps_per_epoch=10, epochs=10, schedule=schedule, **more)
    assert rate == pytest.approx(expected, abs=1e-12)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="'polynomial'; expected 'constant', 'step', 'linear' or 'cosine'"):
        learning_rate(1.0, 0, 1, 1, "polynomial")


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
