"""Runs over sets, raw results of others, and the `evaluate` command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import tracking_stub
from model_rows import ROWS
from tracking_stub import RedPatchModel
from typer.testing import CliRunner

from mmtrackers import OSTrackConfig, OSTrackForTracking, Tracker, TrackerImageProcessor, cli
from mmtrackers.data import open_dataset
from mmtrackers.evaluation import EvaluationResult
from mmtrackers.evaluation.plan import planned
from mmtrackers.evaluation.protocols import PROTOCOLS
from mmtrackers.evaluation.raw import score_folder, truth_of
from mmtrackers.evaluation.run import SCORES, _frames, evaluate_tracker
from mmtrackers.hub.card import TrainingFacts, read_facts, write_card
from mmtrackers.tracking.ahead import ReadAhead
from mmtrackers.tracking.session import update_together

LENGTHS = {"tree": 12, "walk": 9, "car": 7, "dog": 5}


class PatchModel(RedPatchModel):
    """Finds the red patch; counts frames in its state, and ends a run after `patience` of them."""

    patience = 10**9

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = 0
        self.config.to_dict = lambda: {"streams": self.config.streams}

    def state_dict(self):
        return {"score": torch.tensor(self.score)}

    def __call__(self, search, template, state=None):
        self.seen += len(search)
        if self.seen > self.patience:
            raise KeyboardInterrupt
        output = super().__call__(search, template, state)
        output.state = search.new_ones(len(search), 1) if state is None else state + 1
        return output


def stub(**kwargs):
    return Tracker(PatchModel(**kwargs), tracking_stub.processor())


def write_set(root, lengths=LENGTHS, size=(120, 160)):
    """A set in LasHeR's layout: a red patch that moves, at another speed in each sequence."""
    for k, (name, count) in enumerate(lengths.items()):
        boxes = [(30 + (k + 1) * i, 40 + i, 24 + k, 20) for i in range(count)]
        for modality in ("visible", "infrared"):
            (root / name / modality).mkdir(parents=True)
            (root / name / f"{modality}.txt").write_text("".join(",".join(map(str, box)) + "\n" for box in boxes))
        shutil.copy(root / name / "visible.txt", root / name / "init.txt")
        for i, box in enumerate(boxes):
            image = tracking_stub.frame(box, size=size)["rgb"]
            cv2.imwrite(str(root / name / "visible" / f"v{i:03d}.png"), image[..., ::-1])
            cv2.imwrite(str(root / name / "infrared" / f"i{i + 5:03d}.png"), image[..., 0])
    return root


@pytest.fixture
def dataset(tmp_path):
    return write_set(tmp_path / "set")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a random OSTrack of very small size."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = OSTrackConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_channels=16, template_size=32, search_size=64
    )
    OSTrackForTracking(config).save_pretrained(folder)
    TrackerImageProcessor(template_size=32, search_size=64).save_pretrained(folder)
    return folder


def raw_files(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in sorted((folder / "raw").rglob("*")) if p.is_file()}


# --------------------------------------------------------------------------------------------------------------- runs


def test_evaluate_tracker_in_a_notebook(dataset):
    result = evaluate_tracker(stub(), open_dataset(dataset), "lasher", name="patch")
    assert result.scores["PR"] == 1.0 and result.scores["SR"] > 0.8 and not result.partial
    assert [row.name for row in result.sequences] == ["car", "dog", "tree", "walk"]
    assert result.speed.frames == sum(LENGTHS.values()) - len(LENGTHS) - 10 and result.speed.warmup == 10
    assert set(result.speed.stages) == {"read", "crop", "model", "decode", "track", "total"}
    assert result.settings.modality == "rgb" and EvaluationResult.from_json(result.to_json()) == result


@pytest.mark.parametrize("batch", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(dataset, tmp_path, batch):
    sequences, whole, cut = open_dataset(dataset), tmp_path / "whole", tmp_path / "cut"
    expected = evaluate_tracker(stub(), sequences, "lasher", output=whole, batch=batch)
    broken = stub()
    broken.model.patience = 21 if batch == 1 else 27
    with pytest.raises(KeyboardInterrupt):
        evaluate_tracker(broken, sequences, "lasher", output=cut, batch=batch)
    done = raw_files(cut)
    assert 0 < len(done) < len(LENGTHS) and not (cut / SCORES).exists()
    stamps = {path: path.stat().st_mtime_ns for path in (cut / "raw").iterdir()}
    tracker = stub()
    found = evaluate_tracker(tracker, sequences, "lasher", output=cut, batch=batch)
    assert raw_files(cut) == raw_files(whole) and found.scores == expected.scores
    if batch == 1:
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
        assert tracker.model.seen == sum(n - 1 for name, n in LENGTHS.items() if f"raw/{name}.txt" not in done)
    again = stub()
    assert evaluate_tracker(again, sequences, "lasher", output=cut, batch=batch).scores == expected.scores
    assert again.model.seen == 0 and EvaluationResult.load(cut / SCORES).scores == expected.scores


def test_a_result_that_was_cut_or_changed_is_made_again(dataset, tmp_path):
    sequences = open_dataset(dataset)
    expected = evaluate_tracker(stub(), sequences, "lasher", output=tmp_path / "out").scores
    file = tmp_path / "out" / "raw" / "car.txt"
    for text in ("".join(file.read_text().splitlines(keepends=True)[:3]), "9,9,9,9\n" * LENGTHS["car"]):
        file.write_text(text)
        tracker = stub()
        assert evaluate_tracker(tracker, sequences, "lasher", output=tmp_path / "out").scores == expected
        assert tracker.model.seen == LENGTHS["car"] - 1


def test_results_of_other_settings_are_not_reused(dataset, tmp_path):
    sequences = open_dataset(dataset)
    evaluate_tracker(stub(), sequences, "lasher", output=tmp_path)
    other = stub(score=0.9)
    with pytest.raises(ValueError, match=r"results of other settings \(weights '\w+' -> '\w+'\).*--overwrite"):
        evaluate_tracker(other, sequences, "lasher", output=tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(batch 1 -> 2\)"):
        evaluate_tracker(stub(), sequences, "lasher", output=tmp_path, batch=2)
    evaluate_tracker(other, sequences, "lasher", output=tmp_path, overwrite=True)
    assert other.model.seen == sum(LENGTHS.values()) - len(LENGTHS)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"raw is there without settings\.json"):
        evaluate_tracker(other, sequences, "lasher", output=tmp_path)


def test_results_on_other_frames_are_not_reused(dataset, tmp_path):
    """A copy of a set has its names, boxes and lengths; frames of a run that is still to do may be mended."""
    shutil.copytree(dataset, tmp_path / "copy")
    sequences, copy, out = open_dataset(dataset), open_dataset(tmp_path / "copy"), tmp_path / "out"
    evaluate_tracker(stub(), copy, "lasher", output=out)
    (out / "raw" / "car.txt").unlink()
    car = next(sequence for sequence in copy if sequence.name == "car").frames["rgb"]
    car[-1].write_bytes(car[0].read_bytes())
    evaluate_tracker(tracker := stub(), copy, "lasher", output=out)
    assert tracker.model.seen == LENGTHS["car"] - 1
    with pytest.raises(ValueError, match=r"on other frames than 1 of these sequences have \(car\).*--overwrite"):
        evaluate_tracker(stub(), sequences, "lasher", output=out)
    evaluate_tracker(other := stub(), sequences, "lasher", output=out, overwrite=True)
    assert other.model.seen == sum(LENGTHS.values()) - len(LENGTHS)


def test_sequences_side_by_side(dataset, tiny):
    """A batch gives what one sequence at a time gives, up to the rounding of batched products."""
    tracker, sequences = Tracker.from_pretrained(str(tiny)), open_dataset(dataset)
    single, batched = (evaluate_tracker(tracker, sequences, "lasher", batch=n) for n in (1, 4))
    for a, b in zip(single.sequences, batched.sequences, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-6)
    assert batched.speed.batch == 4 and batched.settings.fingerprint != single.settings.fingerprint


@pytest.mark.parametrize("streams", [1, 2])
def test_videos_of_one_batch_keep_their_own_state(streams):
    modality = "thermal" if streams == 2 else None
    tracker = stub(streams=streams, modality=modality or "rgb")
    place = [(40, 50, 24, 20), (60, 30, 24, 20), (20, 70, 24, 20)]
    starts = [tracking_stub.frame(box, size=size, modality=modality) for box, size in
              zip(place, [(120, 160), (150, 200), (120, 160)], strict=True)]  # fmt: skip
    sessions = [tracker.start(frame, box) for frame, box in zip(starts, place, strict=True)]
    late = sessions[0].update(starts[0])
    assert late.box == pytest.approx(np.array(place[0]), abs=1.5)
    tracker.model.batches.clear()
    found = update_together(sessions, starts)
    assert [len(shape) and shape[0] for shape in tracker.model.batches] == [1, 2]  # one video is a frame ahead
    assert [float(session._state) for session in sessions] == [2, 1, 1]
    for prediction, box in zip(found, place, strict=True):
        assert prediction.box == pytest.approx(np.array(box), abs=1.5)
    with pytest.raises(ValueError, match="2 sessions, 1 frames"):
        update_together(sessions[:2], starts[:1])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_videos_side_by_side_equal_each_alone(row):
    """With templates, states and streams of every kind of model; three videos of two sizes."""
    model = row.build()
    modality = "thermal" if model.config.modality == "any" else model.config.modality
    tracker = Tracker(model, TrackerImageProcessor(template_size=32, search_size=64), modality=modality)
    random = np.random.default_rng(0)
    videos = []
    for size in ((120, 160), (90, 120), (120, 160)):
        frames = random.integers(0, 255, (4, *size, 3), dtype=np.uint8)
        second = {} if modality == "rgb" else {modality: frames[::-1, ..., 0].astype(
            np.uint16 if modality == "depth" else np.uint8)}  # fmt: skip
        videos.append([{"rgb": frames[i]} | {name: rows[i] for name, rows in second.items()} for i in range(4)])
    boxes = [(40, 50, 24, 20), (50, 30, 30, 24), (20, 40, 24, 30)]
    alone, together = ([tracker.start(v[0], b) for v, b in zip(videos, boxes, strict=True)] for _ in range(2))
    for i in (1, 2, 3):
        found = update_together(together, [video[i] for video in videos])
        for session, video, prediction in zip(alone, videos, found, strict=True):
            expected = session.update(video[i])
            assert prediction.box == pytest.approx(expected.box, abs=2e-3)
            assert prediction.score == pytest.approx(expected.score, abs=1e-5)


def test_the_given_box_is_that_of_the_first_frame_with_the_target(tmp_path, dataset):
    sequence = open_dataset(dataset)[0]
    flags = np.array([0.0, 0.0, *[1.0] * (len(sequence) - 2)])
    late = replace(sequence, present=flags == 1, extras={"absent_label": flags})
    result = evaluate_tracker(stub(), [late], "visevent", output=tmp_path)
    lines = (tmp_path / "raw" / "car.txt").read_text().splitlines()
    assert len(lines) == len(sequence) and lines[0] == lines[1] == lines[2]
    assert result.scores["PR"] == pytest.approx((len(sequence) - 2) / len(sequence))


def test_layouts_of_the_toolkits(tmp_path, dataset):
    sequences = open_dataset(dataset)
    covered = [replace(s, extras={"cover": np.full(len(s), 8.0)}) for s in sequences]
    evaluate_tracker(stub(), covered, "got10k", output=tmp_path / "got")
    times = (tmp_path / "got" / "raw" / "car" / "car_time.txt").read_text().splitlines()
    assert len(times) == 7 and (tmp_path / "got" / "raw" / "car" / "car_001.txt").is_file()

    result = evaluate_tracker(stub(), sequences, "depthtrack", output=tmp_path / "long")
    folder = tmp_path / "long" / "raw" / "car"
    assert (folder / "car_001.txt").read_text().splitlines()[0] == "1"
    assert (folder / "car_001_confidence.value").read_text().splitlines()[:2] == ["", "0.800000"]
    assert result.scores["Re"] > 0.7

    anchored = [replace(s, extras={"anchor": np.eye(1, len(s), 0)[0] - np.eye(1, len(s), 4)[0]}) for s in sequences]
    result = evaluate_tracker(stub(), anchored, "vot22rgbd", output=tmp_path / "multi")
    assert sorted(p.name for p in (tmp_path / "multi" / "raw" / "car").glob("*.txt")) == [
        "car_00000000.txt", "car_00000004.txt"
    ]  # fmt: skip
    backward = (tmp_path / "multi" / "raw" / "car" / "car_00000004.txt").read_text().splitlines()
    assert len(backward) == 5 and result.scores["R"] == 1.0


@pytest.mark.parametrize(("protocol", "file"), [("got10k", "car/car_001.txt"), ("trackingnet", "car.txt")])
def test_a_set_whose_ground_truth_is_on_a_server(tmp_path, dataset, protocol, file):
    sequences = [replace(s, annotated=np.arange(len(s)) == 0) for s in open_dataset(dataset)]
    for sequence in sequences:
        sequence.boxes_xywh[1:] = np.nan
    result = evaluate_tracker(stub(), sequences, protocol, output=tmp_path)
    assert result.scores == {} and "upload" in result.notes[0] and result.speed is not None
    lines = (tmp_path / "raw" / file).read_text().splitlines()
    assert len(lines) == len(sequences[0]) and all(len(line.split(",")) == 4 for line in lines)


def test_streams_that_are_missing(dataset):
    tracker = stub(streams=2, modality="depth")
    with pytest.raises(ValueError, match="'car' has rgb and thermal, but the tracker reads depth"):
        evaluate_tracker(tracker, open_dataset(dataset), "lasher")


@pytest.mark.parametrize("ahead", [False, True])
def test_frames_that_are_read_ahead(dataset, ahead):
    sequence, spent = open_dataset(dataset)[1], []
    (dataset / "dog" / "visible" / "v003.png").write_bytes(b"no picture")
    (job,) = planned([truth_of(sequence, "lasher")], [sequence], PROTOCOLS["lasher"])
    frames = _frames(sequence, job, spent)
    frames = ReadAhead(frames) if ahead else frames
    for step in range(3):
        assert np.array_equal(next(frames)["rgb"], sequence.read(step)["rgb"]) and spent[step] > 0
    with pytest.raises(ValueError, match=r"dog, frame 3: .*v003\.png is not a readable image"):
        next(frames)


def test_a_frame_that_cannot_be_read_is_named(dataset):
    (dataset / "dog" / "visible" / "v003.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"dog, frame 3: .*v003\.png is not a readable image"):
        evaluate_tracker(stub(), open_dataset(dataset), "lasher")


# -------------------------------------------------------------------------------------------------------- raw results


def line_of(box, delimiter=","):
    return delimiter.join(f"{value:g}" for value in box) + "\n"


@pytest.fixture
def others(tmp_path, dataset):
    """A folder of perfect results, and the truths."""
    truths = [truth_of(sequence, "lasher") for sequence in open_dataset(dataset)]
    folder = tmp_path / "others"
    folder.mkdir()
    for truth in truths:
        (folder / f"{truth.name}.txt").write_text("".join(map(line_of, truth.boxes_xywh)))
    return folder, truths


@pytest.mark.parametrize("delimiter", [",", "\t", " ", ", "])
@pytest.mark.parametrize("form", ["xywh", "corners", "xyxy"])
def test_forms_of_lines(others, delimiter, form):
    folder, truths = others
    for truth in truths:
        rows = []
        for x, y, w, h in truth.boxes_xywh:
            eight = (x, y, x + w, y, x + w, y + h, x, y + h)
            rows.append({"xywh": (x, y, w, h), "corners": eight, "xyxy": (x, y, x + w, y + h)}[form])
        (folder / f"{truth.name}.txt").write_text("".join(line_of(row, delimiter) for row in rows))
    result = score_folder(folder, truths, "lasher", form="xyxy" if form == "xyxy" else "xywh")
    assert result.scores["SR"] == pytest.approx(20 / 21) and result.tracker == "others" and not result.notes
    if form == "xyxy":
        with pytest.raises(ValueError, match=r"car\.txt, line 1: .* as two corners: say so with --form xyxy"):
            score_folder(folder, truths, "lasher")


def change(folder, name, edit):
    file = folder / f"{name}.txt"
    lines = file.read_text().splitlines()
    edit(lines)
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("protocol", "edit", "message"),
    [
        ("lasher", lambda lines: lines.pop(), r"dog\.txt ends at line 4, but 'dog' has 5 frames.*--partial"),
        ("lasher", lambda lines: lines.__setitem__(2, "1,2,3"), r"dog\.txt, line 3: 3 numbers"),
        ("lasher", lambda lines: lines.__setitem__(2, "1,2,three,4"), r"dog\.txt, line 3: '1,2,three,4' is not a row"),
        ("lasher", lambda lines: lines.__setitem__(1, "1,2,inf,4"), r"dog\.txt, line 2: .*infinite"),
        ("lasher", lambda lines: lines.clear(), r"dog\.txt holds no box"),
        ("otb100", lambda lines: lines.__setitem__(3, "1,2,nan,4"), r"dog\.txt, line 4: .*OTB100 takes no NaN"),
        ("otb100", lambda lines: lines.__setitem__(3, "1,2,-3,4"), r"dog\.txt, line 4: .*no negative side"),
    ],
)
def test_lines_that_cannot_be_used(others, protocol, edit, message):
    folder, truths = others
    change(folder, "dog", edit)
    with pytest.raises(ValueError, match=message):
        score_folder(folder, truths, protocol)


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        (lambda lines: lines.append("1,1,1,1"), r"dog.txt: 6 lines for 5 frames; those from line 6 on are left out"),
        (lambda lines: lines.__setitem__(3, "nan,nan,nan,nan"), "dog.txt, line 4: [nan, nan, nan, nan] is no box and"
                                                                " takes the box before it"),
        (lambda lines: lines.__setitem__(0, "90,90,5,5"), "dog.txt, line 1: [90.0, 90.0, 5.0, 5.0] is not the box of"
                                                          " the ground truth"),
    ],
)
def test_what_is_noticed_and_said(others, edit, note):
    folder, truths = others
    change(folder, "dog", edit)
    result = score_folder(folder, truths, "lasher")
    (row,) = [row for row in result.sequences if row.notes]
    assert row.name == "dog" and note in row.notes[0] and not result.partial and row.file.endswith("dog.txt")


def test_mixed_pixel_bases(others):
    folder, truths = others
    for name in ("dog", "car"):
        boxes = next(t for t in truths if t.name == name).boxes_xywh - [1, 1, 0, 0]
        (folder / f"{name}.txt").write_text("".join(map(line_of, boxes)))
    (note,) = score_folder(folder, truths, "lasher").notes
    assert note.startswith("mixed pixel bases: line 1 of 2 of 4 results is the ground truth's box moved by one pixel")
    assert "car.txt" in note and "dog.txt" in note


def test_missing_sequences_and_partial_scores(others):
    folder, truths = others
    (folder / "walk.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 4 sequences: walk\. Scores of a part.*--partial"):
        score_folder(folder, truths, "lasher")
    change(folder, "dog", lambda lines: lines.pop())
    result = score_folder(folder, truths, "lasher", partial=True)
    assert result.partial and result.missing == ("walk",)
    assert [row.partial for row in result.sequences] == [False, True, False]
    assert result.sequences[1].scores["PR"] == pytest.approx(4 / 5)
    (folder / "walk.txt").write_text("")
    with pytest.raises(ValueError, match=r"walk\.txt holds no box"):
        score_folder(folder, truths, "lasher", partial=True)


def test_folders_without_results(others, tmp_path):
    _, truths = others
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no result of a sequence of LasHeR in .*empty: expected .*car\.txt: the"):
        score_folder(tmp_path / "empty", truths, "lasher")
    with pytest.raises(ValueError, match="there is no folder"):
        score_folder(tmp_path / "none", truths, "lasher")


def test_files_of_no_sequence_are_named(others):
    folder, truths = others
    (folder / "tre.txt").write_text("1,2,3,4\n")
    assert score_folder(folder, truths, "lasher").notes == ("1 files of no listed sequence: tre.txt",)


def test_event_results_that_begin_where_the_target_does(others):
    folder, truths = others
    late = [replace(t, visible=np.arange(len(t)) >= 2) for t in truths]
    for truth in late:
        (folder / f"{truth.name}.txt").write_text("".join(map(line_of, truth.boxes_xywh[2:])))
    result = score_folder(folder, late, "visevent")
    assert "begins at frame 2" in result.sequences[0].notes[0]
    assert result.sequences[0].scores["PR"] == pytest.approx(5 / 7) and not result.partial


def test_confidences(others, tmp_path):
    folder, truths = others
    sized = [replace(t, image_size=(160, 120)) for t in truths]
    result = score_folder(folder, sized, "depthtrack")
    assert "no car_confidence.value beside" in result.sequences[0].notes[0]
    (folder / "car_confidence.value").write_text("\n0.5\n0.4\n")
    with pytest.raises(ValueError, match=r"car_confidence\.value has 3 lines, but its boxes have 7"):
        score_folder(folder, sized, "depthtrack")
    (folder / "car_confidence.value").write_text("\n0.5\nhigh\n")
    with pytest.raises(ValueError, match=r"car_confidence\.value, line 3: 'high' is not a number"):
        score_folder(folder, sized, "depthtrack")


def test_our_raw_results_score_as_the_run_did(dataset, tmp_path):
    for protocol in ("lasher", "rgbt234", "depthtrack", "got10k"):
        sequences = open_dataset(dataset)
        result = evaluate_tracker(stub(), sequences, protocol, output=tmp_path / protocol)
        truths = [truth_of(sequence, protocol) for sequence in sequences]
        assert score_folder(tmp_path / protocol / "raw", truths, protocol).scores == result.scores


# -------------------------------------------------------------------------------------------------------- the command


def call(*arguments):
    result = CliRunner().invoke(cli.app, ["evaluate", *[str(a) for a in arguments]])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command(dataset, tiny, others, tmp_path):
    folder, _ = others
    arguments = ("--root", dataset, "--protocol", "lasher", "--tracker", tiny, "--results", f"theirs={folder}")
    result = call(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "set: 4 sequences, rules of opacity-black/RGBT_toolkit" in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.startswith("theirs"))
    assert [float(v) for v in row.split()[1:]] == [100.0, 100.0, 95.24]
    assert "frames per second without reading (cpu" in result.stdout and "middle half" in result.stdout
    saved = EvaluationResult.load(tmp_path / "out" / "lasher" / "tiny" / SCORES)
    assert saved.settings.system == "OSTrackForTracking" and saved.sequences[0].frames_per_second > 0
    assert EvaluationResult.load(tmp_path / "out" / "lasher" / "theirs" / SCORES).scores["PR"] == 1.0
    again = call(*arguments, "--output", tmp_path / "out", "--report")
    assert "tiny: 4 of 4 runs are there already" in again.stdout
    report = (tmp_path / "out" / "lasher-report" / "report.md").read_text()
    assert "theirs" in report and "95.2" in report and "published" not in report and "LasHeR" not in report
    other = call(*arguments, "--output", tmp_path / "out", "--pack")
    assert other.exit_code == 2 and "other settings (pack False -> True)" in other.stderr
    packed = call(*arguments, "--output", tmp_path / "packed", "--pack")
    assert packed.exit_code == 0, packed.output


def test_a_set_by_its_name_and_split(tiny, tmp_path):
    folder = tmp_path / "GOT-10k" / "val" / "GOT-10k_Val_000001"
    folder.mkdir(parents=True)
    for i in range(1, 5):
        cv2.imwrite(str(folder / f"{i:08d}.jpg"), tracking_stub.frame((30, 40, 24, 20))["rgb"])
    (folder / "groundtruth.txt").write_text("30,40,24,20\n" * 4)
    (folder / "absence.label").write_text("0\n" * 4)
    (folder / "cover.label").write_text("8\n8\n0\n8\n")
    (folder.parent / "list.txt").write_text("GOT-10k_Val_000001\n")
    options = ("--dataset", "got10k", "--root", tmp_path / "GOT-10k", "--tracker", tiny, "--output", tmp_path)
    result = call(*options, "--split", "val")
    assert result.exit_code == 0, result.output
    saved = EvaluationResult.load(tmp_path / "got10k-val" / "tiny" / SCORES)
    assert saved.split == "val" and set(saved.scores) == {"AO", "SR0.5", "SR0.75"}
    missing = call(*options)
    assert missing.exit_code == 2 and "test" in missing.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--protocol", "lasher"), "nothing to evaluate: give --tracker REPO, or --results FOLDER"),
        (("--tracker", "x"), "which rules? Give --dataset or --protocol"),
        (("--dataset", "lasherr", "--tracker", "x"), "there is no protocol 'lasherr'"),
        (("--protocol", "lasher", "--tracker", "a/x", "--tracker", "x=y", "--results", "x=z"), "x: a name for a"),
        (("--protocol", "lasher", "--tracker", "x=a", "--tracker", "x=b"), "would both be called x"),
        (("--protocol", "lasher", "--results", "x", "--form", "ltrb"), "expected xywh or xyxy"),
        (("--protocol", "lasher", "--tracker", "org/x", "--card"), "org/x is none: download it first"),
    ],
)
def test_requests_that_cannot_be_met(dataset, tmp_path, options, message):
    result = call("--root", dataset, "--output", tmp_path, *options)
    assert result.exit_code == 2 and message in result.stderr


def test_figures_go_to_the_card(dataset, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    write_card(model, TrainingFacts(data="mine", figures=[{"dataset": "LasHeR", "value": 0.1, "metric": "AUC"}]))
    for _ in range(2):
        options = ("--protocol", "lasher", "--tracker", model, "--output", tmp_path / "o", "--card")
        result = call("--root", dataset, *options)
        assert result.exit_code == 0, result.output
    figures = read_facts(model).figures
    assert [f["metric"] for f in figures] == ["AUC", "PR", "NPR", "SR"]
    assert figures[1]["settings"]["protocol"] == "lasher" and figures[1]["settings"]["sequences"] == 4
    card = (model / "README.md").read_text()
    assert "model-index" in card and "protocol lasher (rules of opacity-black/RGBT_toolkit" in card
    partial = replace(EvaluationResult.load(tmp_path / "o" / "lasher" / "model" / SCORES), partial=True)
    from mmtrackers.evaluation.card import add_to_card

    with pytest.raises(ValueError, match="is no figure for a card"):
        add_to_card(model, partial)
    (model / "README.md").write_text("---\nlibrary_name: mmtrackers\n---\nmy own words\n")
    add_to_card(model, replace(partial, partial=False, scores={"SR": 0.25}))
    assert "my own words" in (model / "README.md").read_text() and read_facts(model).figures[-1]["value"] == 0.25


def test_track_prints_where_the_time_goes(tiny, dataset, tmp_path):
    source = dataset / "tree" / "visible"
    arguments = ["track", str(source), "--box", "30,40,24,20", "--model", str(tiny), "--output", str(tmp_path)]
    result = CliRunner().invoke(cli.app, [*arguments, "--profile"])
    assert result.exit_code == 0, result.output
    stages = [line.split()[0] for line in result.stdout.splitlines() if " - " in line]
    assert stages == ["read", "crop", "model", "decode", "track", "total"]
    assert "6 frames after 5 of warm-up" in result.stdout
    assert "middle half" not in CliRunner().invoke(cli.app, arguments).stdout


# ----------------------------------------------------------------------------------------------------- many processes


def launch(dataset, tiny, output, processes, wait=True):
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable]
    if processes > 1:  # what `accelerate launch` starts where there are GPUs; on the CPU it would want MPI
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "mmtrackers.cli", "evaluate", "--root", str(dataset), "--protocol", "lasher"]
    command += ["--tracker", str(tiny), "--output", str(output)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)  # fmt: skip
    if wait:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
        return text
    return process


@pytest.mark.slow
def test_two_processes_equal_one(dataset, tiny, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    launch(dataset, tiny, one, 1)
    text = launch(dataset, tiny, two, 2)
    assert "process 1 of 2" in text and text.count("rules of opacity-black") == 1
    assert raw_files(one / "lasher" / "tiny") == raw_files(two / "lasher" / "tiny")
    a, b = (json.loads((p / "lasher" / "tiny" / SCORES).read_text()) for p in (one, two))
    assert a["scores"] == b["scores"]


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files(tmp_path, tiny):
    dataset = write_set(tmp_path / "set", {f"s{k:02d}": 12 for k in range(40)})
    folder = tmp_path / "out" / "lasher" / "tiny"
    process = launch(dataset, tiny, tmp_path / "out", 1, wait=False)
    deadline = time.monotonic() + 120
    while not list((folder / "raw").glob("*.txt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = list((folder / "raw").glob("*.txt"))
    assert 0 < len(done) < 40 and all(len(path.read_text().splitlines()) == 12 for path in done)
    text = launch(dataset, tiny, tmp_path / "out", 1)
    assert f"{len(done)} of 40 runs are there already" in text and (folder / SCORES).is_file()
