"""Targets that come and go, sources that `Tracker.track` opens, and label files for other tools."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from model_rows import ROWS

from mmtrackers import Prediction, Targets, Tracker, TrackerImageProcessor
from mmtrackers.tracking.export import export, rows, to_pandas, to_supervision
from mmtrackers.tracking.runs import RunResult
from mmtrackers.tracking.sources import FrameSource, as_source
from mmtrackers.tracking.video import VideoWriter

BOX, OTHER = [60.0, 40, 30, 20], [20.0, 30, 25, 40]
FRAMES = np.random.default_rng(0).integers(0, 255, (7, 120, 160, 3), dtype=np.uint8)


def make_tracker(name: str) -> Tracker:
    row = next(row for row in ROWS if row.name == name)
    model = row.plain()
    return Tracker(model, TrackerImageProcessor(search_size=64, template_size=32))


def test_row_names() -> None:
    assert {"ostrack", "odtrack"} <= {row.name for row in ROWS}


@pytest.mark.parametrize("name", ["ostrack", "odtrack"])
def test_targets_come_and_go_as_if_each_were_alone(name: str) -> None:
    tracker = make_tracker(name)
    alone = {1: tracker.start(FRAMES[0], BOX), 2: tracker.start(FRAMES[2], OTHER)}
    targets = Targets(tracker)
    assert targets.add(FRAMES[0], BOX) == 1 and targets.update(FRAMES[1]).keys() == {1}
    alone[1].update(FRAMES[1])
    expected, found = [], []
    for k in range(2, 7):
        if k == 3:
            assert targets.add(FRAMES[2], OTHER) == 2
        if k == 5:
            targets.correct(2, [22, 33, 25, 40])
            alone[2].boxes_xywh = [22, 33, 25, 40]
        found.append(targets.update(FRAMES[k]))
        expected.append({n: alone[n].update(FRAMES[k]) for n in found[-1]})
    assert [sorted(now) for now in found] == [[1]] + [[1, 2]] * 4
    for now, then in zip(found, expected, strict=True):
        for number in now:
            assert np.allclose(now[number].box, then[number].box, atol=1e-3)
            assert now[number].score == pytest.approx(then[number].score, abs=1e-5)
    targets.remove(1)
    assert targets.add(FRAMES[6], BOX) == 3 and len(targets) == 2
    with pytest.raises(ValueError, match=r"there is no target 1; followed are \[2, 3\]"):
        targets.remove(1)
    with pytest.raises(ValueError, match="target 2 is followed already"):
        targets.add(FRAMES[6], BOX, number=2)


def test_a_bad_frame_moves_no_target() -> None:
    targets = Targets(make_tracker("ostrack"))
    targets.add(FRAMES[0], BOX)
    targets.add(FRAMES[0], OTHER)
    with pytest.raises(ValueError, match="a box has no meaning across sizes"):
        targets.update(FRAMES[1][:100])
    assert [session.frame_index for session in targets.sessions.values()] == [0, 0]
    assert Targets(make_tracker("ostrack")).update(FRAMES[0]) == {}


def annotated(first: int = 2) -> FrameSource:
    boxes = np.tile(np.array(BOX), (7, 1))
    return FrameSource("seq", lambda: ({"rgb": frame} for frame in FRAMES), boxes_xywh=boxes,
                       present=np.arange(7) >= first)  # fmt: skip


def test_track_opens_paths_and_sources(tmp_path: Path) -> None:
    tracker = make_tracker("ostrack")
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        for frame in FRAMES:
            writer.write(frame)
    decoded = [frame["rgb"] for frame, _ in zip(as_source(tmp_path / "clip.mp4"), range(3), strict=False)]
    known = [p.to_dict() for p in tracker.track(decoded, BOX)]
    assert [p.to_dict() for p in tracker.track(tmp_path / "clip.mp4", BOX, max_frames=3)] == known
    from_truth = [p.to_dict() for p in tracker.track(annotated())]
    assert from_truth == [p.to_dict() for p in tracker.track(FRAMES[2:], BOX)]
    assert len(list(tracker.track(annotated(), OTHER))) == 7
    with pytest.raises(ValueError, match="where is the target in the first frame"):
        tracker.track(FRAMES)


def test_a_second_source_must_show_what_it_is_given_as() -> None:
    rgb, heat = (FrameSource(name, lambda: iter(()), name) for name in ("rgb", "thermal"))
    assert as_source(rgb, {"thermal": heat}).modality == "thermal"
    with pytest.raises(ValueError, match="rgb shows rgb: open it with modality='thermal'"):
        as_source(rgb, {"thermal": rgb})


def test_objects_say_what_they_are() -> None:
    tracker = make_tracker("ostrack")
    session = tracker.start(FRAMES[0], [BOX, OTHER])
    assert repr(tracker) == "Tracker(OSTrackForTracking, rgb, float32 on cpu)"
    assert repr(session) == "TrackingSession(2 targets, 160x120, frame 0, rgb)"
    assert repr(session.initial_prediction()[0]) == "Prediction(x=60.0, y=40.0, width=30.0, height=20.0, score=1.000)"


# ---------------------------------------------------------------------------------------------- other tools


@pytest.fixture
def result() -> RunResult:
    """Three frames from number 2 on: the first target is absent in the last, the second comes one frame later."""
    nowhere = Prediction(np.zeros(4), 0.0, False)
    found = [
        [Prediction(np.array([10.0, 20, 30, 40]), 1.0), nowhere],
        [Prediction(np.array([11.5, 21, 30, 40]), 0.5), Prediction(np.array([50.0, 60, 7, 8]), 1.0)],
        [Prediction(np.array([11.5, 21, 30, 40]), 0.1, False), Prediction(np.array([51.0, 61, 7, 8]), 0.75)],
    ]
    return RunResult(FrameSource("clip", lambda: iter(()), fps=25), 2, found, size=(120, 160))


def test_tables(result: RunResult) -> None:
    pandas = pytest.importorskip("pandas")
    table = to_pandas(result)
    assert table[["frame", "target"]].values.tolist() == [[2, 1], [3, 1], [3, 2], [4, 1], [4, 2]]
    assert table["present"].tolist() == [True, True, True, False, True]
    assert isinstance(table, pandas.DataFrame) and len(table) == len(list(rows(result)))


def test_coco(result: RunResult, tmp_path: Path) -> None:
    (path,) = export(result, tmp_path, ["coco"])
    api = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed").COCO(str(path))
    assert [image["file_name"] for image in api.loadImgs(api.getImgIds())] == [f"clip/{k:06d}.jpg" for k in (2, 3, 4)]
    seen = api.loadAnns(api.getAnnIds(imgIds=[4]))
    assert [(a["track_id"], a["score"]) for a in seen] == [(1, 0.5), (2, 1.0)]
    assert [a["bbox"] for a in seen] == [[11.5, 21, 30, 40], [50, 60, 7, 8]]
    assert len(api.getAnnIds()) == 4


def test_mot(result: RunResult, tmp_path: Path) -> None:
    (path,) = export(result, tmp_path, ["mot"])
    assert path.read_text().splitlines()[1] == "4,1,12.50,22.00,30.00,40.00,0.5000,-1,-1,-1"
    mot = pytest.importorskip("motmetrics", reason="motmetrics is not installed")
    table = mot.io.loadtxt(str(path), fmt="mot15-2D")
    assert table.index.tolist() == [(3, 1), (4, 1), (4, 2), (5, 2)]
    assert table.loc[(4, 1)][["X", "Y", "Width", "Height", "Confidence"]].tolist() == [11.5, 21, 30, 40, 0.5]


def test_cvat(result: RunResult, tmp_path: Path) -> None:
    (path,) = export(result, tmp_path, ["cvat"])
    root = ElementTree.parse(path).getroot()
    assert root.find("meta/task/original_size/width").text == "160" and root.find("version").text == "1.1"
    boxes = {track.get("id"): [box.attrib for box in track] for track in root.findall("track")}
    assert [(b["frame"], b["outside"]) for b in boxes["0"]] == [("2", "0"), ("3", "0"), ("4", "1")]
    assert [b["frame"] for b in boxes["1"]] == ["3", "4"]
    assert [boxes["0"][1][side] for side in ("xtl", "ytl", "xbr", "ybr")] == ["11.50", "21.00", "41.50", "61.00"]


def test_supervision(result: RunResult) -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    detections = to_supervision(result.predictions[2])
    assert detections.xyxy.tolist() == [[51, 61, 58, 69]] and detections.tracker_id.tolist() == [2]
    assert len(to_supervision(result.predictions[0][1])) == 0


def test_unknown_kinds_are_refused(result: RunResult, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot export to yolo: known are coco, mot and cvat"):
        export(result, tmp_path, ["coco", "yolo"])
    assert list(tmp_path.iterdir()) == []


def test_run_result_to_dict(result: RunResult) -> None:
    told: dict[str, Any] = json.loads(json.dumps(result.to_dict()))
    assert told["first_frame"] == 2 and told["targets"][1]["boxes_xywh"][2] == [51, 61, 7, 8]
