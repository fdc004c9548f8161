"""Sessions that smooth sizes, say how sure they are, and look for a target that is lost."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from example_scripts import load
from tracking_stub import SIZE, RedPatchModel, frame, moving, processor

from mmtrackers import Tracker, TrackerImageProcessor
from mmtrackers.tracking.confidence import probability
from mmtrackers.tracking.recovery import PATIENCE, VOTES, round_trip

BOX = (40, 50, 24, 20)


class SureOfRed(RedPatchModel):
    """Scores 0.9 where it sees red, 0.1 where it does not; carries a state of one number per target."""

    def __call__(self, search: torch.Tensor, template: torch.Tensor, state: object = None) -> SimpleNamespace:
        output = super().__call__(search, template, state)
        output.state = template.new_full((len(template), 1), float(len(self.states)))
        return output

    def decode(self, output: SimpleNamespace, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes, _ = super().decode(output, window)
        red = ((output.search[:, 0, 0] > 1.2) & (output.search[:, 0, 1] < 0)).flatten(1).any(1)
        return boxes, torch.where(red, 0.9, 0.1)


def gone(count: int) -> list[dict]:
    return [frame() for _ in range(count)]


def test_a_size_keeps_a_share_of_the_last_one() -> None:
    frames = [frame(BOX), frame((30, 40, 48, 40))]
    boxes = []
    for kept in (None, 0.0, 0.5):
        tracker = Tracker(RedPatchModel(), processor(), size_momentum=kept)
        session = tracker.start(frames[0], BOX)
        boxes.append(session.update(frames[1]).box)
    assert np.array_equal(boxes[0], boxes[1]), "off unless it is saved or asked for"
    np.testing.assert_allclose(boxes[2][2:], 0.5 * (np.array(BOX[2:]) + boxes[0][2:]))
    np.testing.assert_allclose(boxes[2][:2] + boxes[2][2:] / 2, boxes[0][:2] + boxes[0][2:] / 2)


def test_settings_are_saved_with_the_processor(tmp_path: Path) -> None:
    saved = TrackerImageProcessor(
        template_size=32, search_size=64, size_momentum=0.5, absent_below=0.2, calibration=[0.0, 1.0, 0.0]
    )
    saved.save_pretrained(tmp_path)
    loaded = TrackerImageProcessor.from_pretrained(tmp_path)
    tracker = Tracker(RedPatchModel(score=0.7), loaded)
    assert (tracker.size_momentum, tracker.absent_below) == (0.5, 0.2)
    assert Tracker(RedPatchModel(), loaded, absent_below=0.0, size_momentum=0.0).size_momentum == 0.0
    session = tracker.start(frame(BOX), BOX)
    assert session.update(frame(BOX)).score == pytest.approx(0.7, abs=1e-6), "these weights return the score itself"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size_momentum": 1.0}, "size_momentum is 1.0, expected a number from 0 to below 1"),
        ({"absent_below": 2}, "absent_below is 2, expected a number from 0 to 1"),
        ({"calibration": [1.0]}, "calibration is .*expected 3 finite numbers"),
        ({"calibration": [1.0, 2.0, float("nan")]}, "expected 3 finite numbers"),
    ],
)
def test_settings_that_mean_nothing(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackerImageProcessor(**setting)


def test_arguments_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match=r"recover looks for absent targets: .*absent_below=0.3"):
        Tracker(RedPatchModel(), processor(), recover=True)
    with pytest.raises(ValueError, match="size_momentum is a share"):
        Tracker(RedPatchModel(), processor(), size_momentum=-0.1)


def returns_after(place: tuple[int, int, int, int], recover: bool = True) -> tuple[list, RedPatchModel]:
    tracker = Tracker(SureOfRed(), processor(), absent_below=0.3, recover=recover)
    session = tracker.start(frame(BOX), BOX)
    frames = [frame(BOX)] * 3 + gone(10) + [frame(place)] * 30
    return [session.update(one) for one in frames], tracker.model


def test_a_target_that_comes_back_elsewhere_is_found() -> None:
    elsewhere = (128, 4, 24, 20)
    predictions, model = returns_after(elsewhere)
    present = [p.present for p in predictions]
    assert present[:3] == [True] * 3 and not any(present[3:13])
    assert all(np.array_equal(p.box, predictions[2].box) for p in predictions[3:13])
    first = present.index(True, 13)
    assert VOTES <= first - 13 + 1 <= 20 and all(present[first:])
    assert np.abs(predictions[first].box - elsewhere).max() <= 2.5
    assert len(model.batches) <= 3 + 2 * (len(predictions) - 3), "at most one more forward pass a frame"
    assert not any(p.present for p in returns_after(elsewhere, recover=False)[0][13:]), "off unless asked for"


@pytest.mark.parametrize(("place", "found"), [((70, 40, 24, 20), True), ((60, 30, 48, 40), False)])
def test_what_comes_back_in_another_size_is_not_the_target(place: tuple[int, int, int, int], found: bool) -> None:
    settings = processor()
    settings.calibration = [0.0, 2.0, -12.0]
    tracker = Tracker(SureOfRed(), settings, absent_below=0.3, recover=True)
    session = tracker.start(frame(BOX), BOX)
    present = [session.update(one).present for one in [frame(BOX)] * 3 + gone(10) + [frame(place)] * 30]
    assert any(present[13:]) is found
    assert not found or all(present[present.index(True, 13) :]), "it is trusted from then on"


def test_coming_back_is_the_same_every_time() -> None:
    first, second = (returns_after((128, 90, 24, 20))[0] for _ in range(2))
    assert all(np.array_equal(a.box, b.box) and a.present == b.present for a, b in zip(first, second, strict=True))


def test_a_flash_does_not_count_as_a_return() -> None:
    tracker = Tracker(SureOfRed(), processor(), absent_below=0.3, recover=True)
    session = tracker.start(frame(BOX), BOX)
    flash = [*gone(PATIENCE + 1), *[frame((128, 4, 24, 20))] * (VOTES - 1), *gone(6)]
    assert not any(session.update(one).present for one in flash)
    assert session.update(frame(BOX)).present, "where it was lost it is found at once, as without recovery"


def test_a_target_that_stays_costs_one_pass_and_moves_as_without_recovery() -> None:
    frames, boxes = moving(12)
    found = []
    for recover in (False, True):
        tracker = Tracker(SureOfRed(), processor(), absent_below=0.3, recover=recover)
        session = tracker.start(frames[0], boxes[0])
        found.append([session.update(one).box for one in frames[1:]])
        assert len(tracker.model.batches) == len(frames) - 1
    assert np.array_equal(*map(np.array, found))


def test_one_of_two_targets_is_lost() -> None:
    left, right = (10, 50, 24, 20), (110, 50, 24, 20)
    tracker = Tracker(SureOfRed(), processor(), absent_below=0.3, recover=True)
    session = tracker.start(frame(left, right), [left, right])
    for _ in range(6):
        first, second = session.update(frame(left))
    assert first.present and not second.present
    assert session._state.shape == (2, 1)


def test_a_correction_need_not_prove_itself() -> None:
    left, right, elsewhere = (10, 50, 24, 20), (110, 50, 24, 20), (20, 90, 24, 20)
    tracker = Tracker(SureOfRed(), processor(), absent_below=0.3, recover=True)
    session = tracker.start(frame(left, right), [left, right])
    for _ in range(PATIENCE + 1):
        session.update(frame())
    session.boxes_xywh = [elsewhere, session.boxes_xywh[1]]
    first, second = session.update(frame(elsewhere))
    assert first.present and np.abs(first.box - elsewhere).max() <= 2.5
    assert not second.present, "whose box is as it was, is lost still"


@pytest.mark.parametrize(("box", "size"), [((10, 10, 40, 40), SIZE), ((0, 0, 12, 9), (480, 640)), (BOX, (1080, 1920))])
def test_a_round_covers_the_frame(box: tuple, size: tuple[int, int]) -> None:
    places = np.array(round_trip(box, size, 4.0))
    side = 4.0 * np.sqrt(places[:, 2] * places[:, 3])
    x1, y1 = (places[:, :2] + places[:, 2:] / 2 - side[:, None] / 2).T
    for x in np.linspace(0, size[1], 23):
        for y in np.linspace(0, size[0], 17):
            assert ((x1 <= x) & (x <= x1 + side) & (y1 <= y) & (y <= y1 + side)).any()


def test_a_fit_finds_the_weights_that_made_the_answers() -> None:
    calibrate = load("calibrate")
    rng = np.random.default_rng(0)
    evidence = np.concatenate([np.ones((20_000, 1)), rng.normal(size=(20_000, 2))], 1)
    weights = np.array([0.5, 1.0, -2.0])
    sure = probability(evidence, weights)
    right = rng.random(20_000) < sure
    np.testing.assert_allclose(calibrate.fit(evidence, right), weights, atol=0.1)
    error = calibrate.calibration_error
    assert error(sure, right) < 0.01 and error(sure**3, right) > 0.1
    with pytest.raises(ValueError, match="needs right and wrong answers"):
        calibrate.fit(evidence, np.ones(20_000, dtype=bool))
