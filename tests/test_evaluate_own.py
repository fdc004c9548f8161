"""Evaluation: one's own sequences, and files that are damaged, shared or taken."""

import os

import numpy as np
import pytest
from test_evaluate import LENGTHS, call, dataset, stub, tiny, write_set  # noqa: F401 (fixtures)

from mmtrackers.data import open_dataset
from mmtrackers.evaluation import RawResult, Truth, run, score, truth_of
from mmtrackers.evaluation.plan import planned
from mmtrackers.evaluation.protocols import PROTOCOLS
from mmtrackers.evaluation.run import evaluate_tracker
from mmtrackers.processing.files import FolderLock


def test_a_damaged_file_of_frames_is_made_again_or_named(dataset, tmp_path):  # noqa: F811
    sequences = open_dataset(dataset)
    expected = evaluate_tracker(stub(), sequences, "lasher", output=tmp_path / "out")
    file = tmp_path / "out" / "frames" / "car.csv"
    whole = file.read_text()
    for text in ("", whole[:-30], whole.replace("1.0", "one"), "score\n"):
        file.write_text(text)
        tracker = stub()
        assert evaluate_tracker(tracker, sequences, "lasher", output=tmp_path / "out").scores == expected.scores
        assert tracker.model.seen == LENGTHS["car"] - 1
    job = planned([truth_of(s, "lasher") for s in sequences], sequences, PROTOCOLS["lasher"])[0]
    (tmp_path / "out" / "frames" / f"{job.label}.csv").write_text("score\n1,2\n")
    with pytest.raises(ValueError, match=rf"{job.label}\.csv .*delete it"):
        run._frame_table(tmp_path / "out", job)


def test_a_folder_that_another_run_writes_is_left_alone(dataset, tmp_path):  # noqa: F811
    with FolderLock(tmp_path / "out"), pytest.raises(OSError, match=f"is being written by process {os.getpid()}"):
        evaluate_tracker(stub(), open_dataset(dataset), "lasher", output=tmp_path / "out")
    assert not (tmp_path / "out" / "raw").exists()


def test_two_sequences_of_one_name_are_refused(dataset, tmp_path):  # noqa: F811
    twice = [*open_dataset(dataset), open_dataset(dataset)[0]]
    with pytest.raises(ValueError, match="1 names stand for several sequences: car"):
        evaluate_tracker(stub(), twice, "lasher")


def test_own_sequences_under_neutral_rules(tmp_path, tiny):  # noqa: F811
    """Frames without the target and the given one do not count; no set's published figures stand beside them."""
    boxes = [(40.0, 40, 24, 20)] * 6
    truth = Truth("a", np.array([(0, 0, 0, 0), *boxes[:3], [np.nan] * 4, boxes[0]]))
    moved = np.array(boxes)
    moved[:, 0] += [0, 99, 0, 12, 99, 99]
    result = score("folder", [truth], [RawResult(moved)])
    # counted: a hit, one of overlap 1/3 (7 of 21 thresholds, 12 pixels off), a miss
    assert result.scores["AUC"] == pytest.approx((20 + 7 + 0) / 21 / 3)
    assert (result.scores["P"], result.scores["OP50"]) == pytest.approx((2 / 3, 1 / 3))
    root = write_set(tmp_path / "mine", {"one": 5, "two": 4})
    found = call("--root", root, "--dataset", "folder", "--tracker", tiny, "--output", tmp_path / "o", "--report")
    assert found.exit_code == 0, found.output
    assert "mine: 2 sequences, rules of one-pass evaluation" in found.stdout
    report = (tmp_path / "o" / "folder-report" / "report.md").read_text()
    assert report.startswith("## mine\n") and "published" not in report


def test_nan_frames_of_uav123_hit_in_precision_and_miss_in_success():
    boxes = np.array([(30.0, 40, 24, 20)] * 4)
    truth = Truth("bike", np.where([[False], [True], [False], [False]], np.nan, boxes))
    result = score("uav123", [truth], [RawResult(boxes)])
    assert result.scores["P"] == 1.0 and result.scores["AUC"] == pytest.approx(3 / 4 * 20 / 21)
    assert score("nfs", [truth], [RawResult(boxes)]).scores["P"] == 0.75
