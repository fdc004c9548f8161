"""The measuring script: its probe of sizes tells a tracker that follows sizes from one that does not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from example_scripts import load
from tracking_stub import RedPatchModel, moving, processor

from mmtrackers import Tracker
from mmtrackers.processing.image_processing import TrackerImageProcessor

measure = load("measure")


class Square:
    """A white square that stands in the middle of black frames."""

    name, present = "square", np.array([True, True, True, True, False, True])

    def __init__(self, size: int) -> None:
        self.boxes_xywh = np.tile(np.array([160.0 - size / 2, 120.0 - size / 2, size, size]), (6, 1))
        self.frame = np.zeros((240, 320, 3), np.uint8)
        self.frame[120 - size // 2 : 120 + size // 2, 160 - size // 2 : 160 + size // 2] = 255

    def __len__(self) -> int:
        return 6

    def read(self, index: int) -> dict[str, np.ndarray]:
        return {"rgb": self.frame}


def tracker_with_gain(gain: float, center: float = 0.5) -> SimpleNamespace:
    """Measures the white square in the crop, and follows its size relative to a quarter with a gain."""

    def model(search: torch.Tensor, template: torch.Tensor) -> SimpleNamespace:
        assert template.shape[:2] == (len(search), 1)
        white = (search[:, 0, 0] * 0.229 + 0.485).mean((1, 2)).sqrt()  # its share of the red channel
        size = 0.25 * (white / 0.25) ** gain
        return SimpleNamespace(boxes=torch.stack((0 * size + center, 0 * size + center, size, size), 1))

    processor = TrackerImageProcessor(template_size=64, search_size=128)
    reading = {"modality": "rgb", "streams": 1, "allow_missing": False}
    return SimpleNamespace(model_for=lambda: model, image_processor=processor, dtype=torch.float32, **reading)


@pytest.mark.parametrize("gain", [1.0, 0.6, 0.0])
def test_the_probe_finds_the_gain_of_predicted_sizes(gain):
    found = measure.probe_sizes(tracker_with_gain(gain), [Square(24), Square(40)])
    assert found.gain == pytest.approx(gain, abs=0.02) and found.hits == 1.0
    assert np.allclose(found.errors, [(1 - gain) * np.log(factor / 4) for factor in measure.FACTORS], atol=0.03)


def test_a_target_that_comes_later_is_measured_from_its_first_box():
    frames, boxes = moving(6)
    present = np.array([False, False, True, True, True, True])
    boxes = np.where(present[:, None], boxes, np.nan)
    sequence = measure.Clip(frames, boxes, present, annotated=np.ones(6, dtype=bool))
    assert measure.mean_overlap(Tracker(RedPatchModel(), processor()), sequence) > 0.8


def test_the_probe_counts_only_what_is_hit():
    with pytest.raises(ValueError, match="no search crop"):
        measure.probe_sizes(tracker_with_gain(1.0, center=0.05), [Square(24)])


def test_a_sequence_in_grey_keeps_boxes_and_brightness():
    colored = Square(24)
    colored.read = lambda index: {"rgb": np.full((240, 320, 3), (250, 40, 90), np.uint8), "depth": np.ones((2, 2))}
    grey = measure.in_grey(colored)
    assert np.unique(grey.read(3)["rgb"]).tolist() == [108] and grey.read(3)["depth"].sum() == 4
    assert np.array_equal(grey.boxes_xywh, colored.boxes_xywh) and len(grey) == 6


def test_the_difference_of_two_trackers_has_an_interval() -> None:
    rng = np.random.default_rng(1)
    second = rng.random(200)
    mean, low, high = measure.paired_difference(list(second + rng.normal(0.05, 0.1, 200)), list(second))
    assert low < 0.05 < high and high - low == pytest.approx(2 * 1.96 * 0.1 / 200**0.5, rel=0.25) and low < mean < high


@pytest.mark.parametrize(
    ("name", "message"),
    [("mosse", "known are csrt, kcf and nano:FOLDER"), ("nano:nowhere", "no nowhere.nanotrack_backbone_sim.onnx")],
)
def test_rivals_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        measure.Rival(name)


def test_oracle_starts_each_frame_from_the_true_box() -> None:
    frames, boxes = moving(5)
    clip = measure.Clip(frames, boxes, np.ones(5, dtype=bool), np.ones(5, dtype=bool))

    class Lazy(RedPatchModel):
        def decode(self, output: SimpleNamespace, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            count = len(output.search)
            return torch.tensor([[0.5, 0.5, 0.25, 0.25]] * count), torch.ones(count)

    tracker = Tracker(Lazy(), processor())
    stays, follows = (measure.mean_overlap(tracker, clip, oracle=oracle) for oracle in (False, True))
    assert follows > stays + 0.1
