"""What a run leaves, however it ends: names that are nobody else's, lines as they are found, a video that plays."""

import json
import os
import signal
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from tracking_stub import RedPatchModel, frame, moving, processor

from mmtrackers import Prediction, Tracker
from mmtrackers.processing.files import FolderLock
from mmtrackers.tracking import threads
from mmtrackers.tracking.ahead import ReadAhead
from mmtrackers.tracking.recording import Recorder, ResultFiles, _Lines
from mmtrackers.tracking.runs import run, write_results
from mmtrackers.tracking.sources import FrameSource, open_source
from mmtrackers.tracking.threads import ThreadChoice
from mmtrackers.tracking.video import VideoWriter

BOX = (40, 50, 24, 20)


def tracker() -> Tracker:
    return Tracker(RedPatchModel(), processor())


def source(count=6, name="walk", **kwargs):
    frames = moving(count)[0]
    return FrameSource(name, lambda: iter(frames), length=count, **kwargs)


def frames_in(path):
    count = 0
    with av.open(str(path)) as container:
        try:
            for _ in container.decode(video=0):
                count += 1
        except av.FFmpegError:  # cut off
            pass
    return count


# ------------------------------------------------------------------------------------------------------------- names


def test_a_source_and_its_annotation_are_never_written_onto(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        for one in moving(5)[0]:
            writer.write(one["rgb"])
    folder = tmp_path / "boy" / "rgb"
    folder.mkdir(parents=True)
    for i, one in enumerate(moving(3)[0]):
        cv2.imwrite(str(folder / f"{i}.png"), one["rgb"][..., ::-1])
    (tmp_path / "boy" / "rgb.txt").write_text("40,50,24,20\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run(tracker(), open_source(tmp_path / "clip.mp4"), [BOX], tmp_path)
    result = run(tracker(), open_source(folder), [BOX], tmp_path / "boy")
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in result.files) == [
        "boy_tracked.json", "boy_tracked.mp4", "boy_tracked.txt", "boy_tracked_scores.txt"]  # fmt: skip
    assert all(path.is_file() for path in result.files)


def test_two_sequences_of_streams_of_one_name_have_files_of_their_own(tmp_path):
    for name in ("A", "B"):
        for stream in ("rgb", "infrared"):
            (tmp_path / name / stream).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / name / stream / "1.png"), frame(BOX)["rgb"])
    names = [open_source(tmp_path / name / "rgb").name for name in ("A", "B")]
    names.append(open_source(tmp_path / "A" / "rgb", {"thermal": tmp_path / "B" / "infrared"}).name)
    assert names == ["A", "B", "A"]


def test_results_of_another_run_are_kept_unless_they_may_go(tmp_path):
    run(tracker(), source(), [BOX], tmp_path, labels=["coco"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"earlier run on walk .*choose another --output, or --overwrite"):
        run(tracker(), source(3), [BOX], tmp_path)
    with pytest.raises(ValueError, match="lies outside"):
        run(tracker(), source(3), [(900, 900, 10, 10)], tmp_path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, "a run that never began"
    run(tracker(), source(3), [BOX], tmp_path, overwrite=True, video=False)
    assert len((tmp_path / "walk_tracked.txt").read_text().splitlines()) == 3
    assert not (tmp_path / "walk_tracked.mp4").exists() and not (tmp_path / "walk_coco.json").exists()
    run(tracker(), source(2, "other"), [BOX], tmp_path)


@pytest.mark.parametrize("name", ["walk_tracked.txt", "walk_tracked.mp4", "walk_tracked.json", "walk_mot.txt"])
def test_files_of_others_are_kept_also_with_overwrite(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"{name} was not written by mmtrackers track and is kept"):
        run(tracker(), source(), [BOX], tmp_path, overwrite=True, labels=["mot"])
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_record_cannot_name_files_of_others(tmp_path):
    run(tracker(), source(), [BOX], tmp_path / "out")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out" / "precious").write_text("mine")
    path = tmp_path / "out" / "walk_tracked.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"files": [*record["files"], "../precious", "precious"]}))
    run(tracker(), source(), [BOX], tmp_path / "out", overwrite=True)
    assert (tmp_path / "precious").exists() and (tmp_path / "out" / "precious").exists()


def test_one_run_at_a_time_writes_into_a_folder(tmp_path):
    with FolderLock(tmp_path), pytest.raises(OSError, match=rf"being written by process {os.getpid()}"):
        run(tracker(), source(), [BOX], tmp_path)
    assert run(tracker(), source(), [BOX], tmp_path).files


def test_a_result_found_in_another_way_is_written_the_same(tmp_path):
    found = run(tracker(), source(), [BOX, BOX], tmp_path / "a", video=False, settings={"model": "m"})
    files = write_results(found, tmp_path / "b", {"model": "m"})
    assert [path.name for path in files] == [path.name for path in found.files]
    for one, other in zip(found.files, files, strict=True):
        assert one.read_text() == other.read_text()


# --------------------------------------------------------------------------------------------------- ends of all kinds

RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from tracking_stub import RedPatchModel, moving, processor
from mmtrackers import Tracker, cli
from mmtrackers.tracking import sources
from mmtrackers.tracking.sources import FrameSource

def frames():
    for number, frame in enumerate(moving(400)[0]):
        yield frame
        time.sleep(0.02)

sources.open_source = lambda *_, **__: FrameSource("walk", frames, fps=50)
Tracker.from_pretrained = lambda *_, **__: Tracker(RedPatchModel(), processor())
sys.argv[1:] = ["track", "x", "--model", "m", "--box", "40,50,24,20", "--output", {output!r}]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGKILL", -9)])
def test_a_run_that_is_ended_leaves_boxes_and_a_video_that_plays(tmp_path, name, code):
    script = RUN.format(tests=str(Path(__file__).parent), output=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True)
    boxes, video = tmp_path / "walk_tracked.txt", tmp_path / "walk_tracked.mp4"
    for _ in range(1200):
        if boxes.exists() and len(boxes.read_text().splitlines()) >= 90:
            break
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    lines, scores = boxes.read_text().splitlines(), (tmp_path / "walk_tracked_scores.txt").read_text().splitlines()
    assert 90 <= len(lines) == len(scores) and all(len(line.split(",")) == 4 for line in lines)
    record = json.loads((tmp_path / "walk_tracked.json").read_text())
    if name == "SIGKILL":
        assert frames_in(video) >= 25 and "not finished" in record["stopped"]
        assert not (tmp_path / ".lock").exists() or FolderLock(tmp_path).__enter__(), "gone with its process"
    else:
        assert frames_in(video) == len(lines) == record["frames"] and record["stopped"] == "interrupted"
        assert f"interrupted after {len(lines)} frames; what was done is kept" in errors


def test_an_interrupt_between_finding_and_writing_leaves_equal_files(tmp_path, monkeypatch):
    put = Recorder.put

    def interrupted(self, index, *rest):
        if index == 4:
            raise KeyboardInterrupt
        put(self, index, *rest)

    monkeypatch.setattr(Recorder, "put", interrupted)
    result = run(tracker(), source(8), [BOX], tmp_path)
    assert result.stopped == "interrupted" and len(result.predictions) == 4
    assert len((tmp_path / "walk_tracked.txt").read_text().splitlines()) == 4
    assert frames_in(tmp_path / "walk_tracked.mp4") == 4


@pytest.mark.parametrize("what", ["lines", "video"])
def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch, what):
    def full(*_):
        raise OSError(28, "No space left on device")

    if what == "video":
        write = VideoWriter.write
        monkeypatch.setattr(VideoWriter, "write", lambda self, image: full() if self._full() else write(self, image))
        monkeypatch.setattr(VideoWriter, "_full", lambda self, n=[0]: n.append(0) or len(n) > 4, raising=False)
    else:
        # files take a hundred bytes, and the hundredth in mid-line
        monkeypatch.setattr(_Lines, "write", lambda self, data: FileIO.write(self, data[: 100 - self.tell()]))
    result = run(tracker(), source(200), [BOX], tmp_path)
    assert "pace left on" in result.stopped and 2 <= len(result.predictions) < 30
    lines = (tmp_path / "walk_tracked.txt").read_text().splitlines()
    assert len(lines) == len(result.predictions) and all(len(line.split(",")) == 4 for line in lines)
    assert json.loads((tmp_path / "walk_tracked.json").read_text())["stopped"] == result.stopped


@pytest.mark.parametrize(("fps", "rate"), [(480, 480), (1000, 1000), (29.97, 29.97), (0, 30), (float("inf"), 30)])
def test_a_video_plays_at_its_sources_rate(tmp_path, fps, rate):
    with VideoWriter(tmp_path / "a.mp4", fps) as writer:
        for one in moving(20)[0]:
            writer.write(one["rgb"])
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(rate, rel=1e-3)
        assert container.duration / av.time_base == pytest.approx(20 / rate, rel=0.1)


def test_without_a_video_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("mmtrackers.tracking.drawing.annotate", None)
    result = run(tracker(), source(), [BOX], tmp_path, video=False)
    assert len(result.predictions) == 6 and result.recording["drawing"] == result.recording["encoding"] == 0


def test_what_is_recorded_lies_at_the_frames_it_belongs_to(tmp_path):
    files = ResultFiles(tmp_path, "a", targets=2)
    files.claim()
    recorder = Recorder(files, source(fps=10), first=1)
    for index in (1, 2):
        recorder.put(index, frame(BOX), [Prediction(np.full(4, 10.0 * index + k), 0.5 + k / 4) for k in range(2)])
    recorder.close()
    assert (tmp_path / "a_tracked_2.txt").read_text().splitlines()[1] == "11.0000,11.0000,11.0000,11.0000"
    assert (tmp_path / "a_tracked_scores.txt").read_text() == "nan,nan\n" + "0.500000,0.750000\n" * 2


def test_large_videos_are_shrunk_and_the_boxes_with_them(tmp_path):
    big = frame((400, 500, 240, 200), size=(1620, 1700))
    found = run(tracker(), FrameSource("a", lambda: iter([big] * 3)), [(400, 500, 240, 200)], tmp_path)
    assert found.size == (1620, 1700) and np.allclose(found.boxes_xywh[0, 0], (400, 500, 240, 200))
    with av.open(str(tmp_path / "a_tracked.mp4")) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert 720 < shown.shape[0] <= 790 and shown.shape[1] == 756
    rows, columns = np.nonzero((shown[..., 0] > 200) & (shown[..., 1] < 60) & (shown[..., 2] < 60))
    assert np.allclose([columns.min(), rows.min()], np.array([400, 500]) / 2.25, atol=8), "what was inside the box"
    orange = (np.abs(shown[:720].astype(int) - (255, 159, 0)).max(-1) < 40).nonzero()
    assert np.allclose([orange[1].min(), orange[0].min()], np.array([400, 500]) / 2.25, atol=4)


# ------------------------------------------------------------------------------------------------------ reading ahead


def test_frames_read_ahead_come_in_order_and_errors_after_them():
    def broken():
        yield from moving(5)[0]
        raise ValueError("cut off")

    frames, seen = ReadAhead(broken()), []
    with frames, pytest.raises(ValueError, match="cut off"):
        for one in frames:
            seen.append(one)
    assert len(seen) == 5
    with pytest.raises(ValueError, match="cut off"):
        next(frames)


def test_reading_ahead_is_bounded_and_closes_its_source():
    made, closed = [], []

    def endless():
        try:
            while True:
                made.append(1)
                yield {"rgb": np.zeros((2000, 3000, 3), np.uint8)}
        finally:
            closed.append(1)

    with ReadAhead(endless()) as frames:
        for _ in range(3):
            next(frames)
        time.sleep(0.2)
        assert len(made) <= 3 + 3
    assert closed == [1] and not frames._thread.is_alive()


# ------------------------------------------------------------------------------------------------------------ threads


def simulated(choice, steps, seconds):
    """Steps of a loop in which `seconds(threads in use, step)` is how long a step takes."""
    used = []
    for number in range(steps):
        used.append(torch.get_num_threads())
        choice.step(seconds(used[-1], number))
    return used


@pytest.fixture
def four_cores(monkeypatch):
    """torch with four threads; what it is set to is only noted."""
    now = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    return now


@pytest.mark.parametrize(
    ("seconds", "best"),
    [(lambda n, _: 0.021 if n == 4 else 0.028, 4), (lambda n, _: 0.1 if n == 4 else 0.031, 1), (lambda n, _: 0.02, 4)],
    ids=["idle", "beside a busy process", "equal"],
)
def test_auto_finds_the_faster_number_of_threads(four_cores, seconds, best):
    with ThreadChoice("auto") as choice:
        used = simulated(choice, 2000, seconds)
        assert choice.threads == best == used[-1]
        spent, ideal = sum(seconds(n, 0) for n in used), 2000 * min(seconds(n, 0) for n in (1, 4))
        assert ideal / spent > 0.95
    assert four_cores == [4], "as before"


def test_auto_looks_again(four_cores):
    with ThreadChoice("auto") as choice:
        busy = threads.LOOK_AGAIN // 2  # steps; then the other process is gone
        used = simulated(choice, 3 * threads.LOOK_AGAIN, lambda n, step: 0.1 if (n == 4) == (step < busy) else 0.03)
        assert used[100] == 1 and used[busy + 20] == used[-1] == choice.threads == 4, "at once, as steps are long"


def test_a_number_fixes_the_threads(four_cores):
    with ThreadChoice(2) as choice:
        assert set(simulated(choice, 700, lambda n, _: 0.1)) == {2}
    with ThreadChoice("3") as choice:
        assert choice.threads == 3
    for wrong in (0, "many", "-1", 100_000):
        with pytest.raises(ValueError, match="expected a positive whole number or auto"):
            ThreadChoice(wrong)
