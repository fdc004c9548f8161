"""`convert --verify`: boxes of a tracker against a folder of raw results."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from model_rows import ROWS
from typer.testing import CliRunner

from mmtrackers import Tracker, TrackerImageProcessor
from mmtrackers.cli import app
from mmtrackers.data import open_dataset
from mmtrackers.evaluation.verify import verify

BOX = [60.0, 40, 30, 20]


@pytest.fixture
def tracker() -> Tracker:
    row = next(row for row in ROWS if row.name == "ostrack")
    return Tracker(row.plain(), TrackerImageProcessor(search_size=64, template_size=32))


@pytest.fixture
def place(tracker: Tracker, tmp_path: Path) -> Path:
    """Three sequences; raw results of the same tracker for two of them, the second of them off from frame 3 on."""
    random = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    for name in "abc":
        frames = random.integers(0, 255, (6, 120, 160, 3), dtype=np.uint8)
        (tmp_path / "set" / name).mkdir(parents=True)
        for k, frame in enumerate(frames):
            cv2.imwrite(str(tmp_path / "set" / name / f"{k}.png"), frame[..., ::-1])
        (tmp_path / "set" / name / "groundtruth.txt").write_text("60,40,30,20\n" * 6)
        boxes = np.array([p.box for p in tracker.track(frames, BOX)])
        if name == "b":
            boxes[3:] += [boxes[3, 2], 0, 0, 0]
        if name != "c":
            np.savetxt(tmp_path / "raw" / f"{name}.txt", boxes, fmt="%.4f", delimiter="\t")
    return tmp_path


def test_the_same_boxes_and_the_first_that_differs(tracker: Tracker, place: Path) -> None:
    same, other = verify(tracker, open_dataset(place / "set"), place / "raw")
    assert (same.sequence, same.frames, same.first_different) == ("a", 5, None) and same.mean_iou > 0.999
    assert (other.sequence, other.first_different) == ("b", 3)
    assert other.mean_iou < 0.8 and str(other).endswith("the first that differs is 3")


def test_results_that_do_not_belong_to_the_set(tracker: Tracker, place: Path) -> None:
    with pytest.raises(ValueError, match="has no <sequence>"):
        list(verify(tracker, open_dataset(place / "set"), place / "set"))
    (place / "raw" / "a.txt").write_text("1,2,3,4\n")
    with pytest.raises(ValueError, match=r"a\.txt has 1 boxes and sequence a 6 frames"):
        list(verify(tracker, open_dataset(place / "set"), place / "raw"))


def test_the_command_says_it_after_converting(tracker: Tracker, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(system: str, file: Path, out: Path, **_: object) -> str:
        tracker.model.save_pretrained(out)
        tracker.image_processor.save_pretrained(out)
        return f"{system} from {file}"

    monkeypatch.setattr("mmtrackers.conversion.systems.convert_checkpoint", convert)
    command = ["convert", "ostrack", "a.pth", str(place / "out")]
    done = CliRunner().invoke(app, [*command, "--verify", str(place / "raw"), "--root", str(place / "set")])
    assert done.exit_code == 0, done.output
    assert "ostrack from a.pth" in done.output and "a: mean overlap 1.0000 over 5 frames, none differs" in done.output
    assert CliRunner().invoke(app, [*command, "--verify", str(place / "raw")]).exit_code == 2
