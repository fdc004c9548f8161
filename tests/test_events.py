"""Event recordings: readers, pictures, and which events go with which frame."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mmtrackers.data import events as module
from mmtrackers.data.events import NEGATIVE, POSITIVE, Events, event_picture, in_windows, open_events
from mmtrackers.tracking.sources import open_source
from mmtrackers.tracking.video import VideoWriter

FIXTURES = Path(__file__).parent / "fixtures" / "events"
SIZE = (24, 32)


def recorded() -> Events:
    with np.load(FIXTURES / "davis.npz") as arrays:
        return Events(*(arrays[name].astype(bool if name == "p" else np.int64) for name in "txyp"))


def evt2(events: Events, path, header=b"% evt 2.0\n% geometry 32x24\n% end\n"):
    words, high = [0x0 << 28 | 5 << 11 | 6], None  # an event before the first time is dropped
    for t, x, y, p in zip(*events, strict=True):
        if t >> 6 != high:
            high = int(t >> 6)
            words.append(8 << 28 | high & 0xFFFFFFF)
        words.append(int(p) << 28 | (int(t) & 63) << 22 | int(x) << 11 | int(y))
    words.append(0xA << 28)  # a trigger
    path.write_bytes(header + np.array(words, "<u4").tobytes())


def dat(events: Events, path):
    words = np.empty((len(events.t), 2), "<u4")
    words[:, 0] = events.t & 0xFFFFFFFF
    words[:, 1] = events.x | events.y << 14 | events.p.astype(np.int64) << 28
    path.write_bytes(b"% Data file containing CD events.\n% Height 24\n% Width 32\n\x0c\x08" + words.tobytes())


def h5(events: Events, path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w") as file:
        for name, values in zip("txyp", events, strict=True):
            file.create_dataset(f"events/{name}", data=values - (1000 if name == "t" else 0))
        file["t_offset"] = 1000


def text(events: Events, path):
    rows = (f"{t / 1e6:.6f} {x} {y} {int(p)}\n" for t, x, y, p in zip(*events, strict=True))
    path.write_text("32 24\n" + "".join(rows))


def csv(events: Events, path):
    rows = (f"{x},{y},{2 * int(p) - 1},{t}\n" for t, x, y, p in zip(*events, strict=True))
    path.write_text("x,y,polarity,timestamp\n" + "".join(rows))


def npz(events: Events, path):
    np.savez(path, ts=events.t / 1e6, xs=events.x.astype(np.uint16), ys=events.y.astype(np.uint16), pol=events.p)


WRITERS = {"a.raw": evt2, "a.dat": dat, "a.h5": h5, "a.txt": text, "a.csv": csv, "a.npz": npz}


@pytest.mark.parametrize("chunk", [1_000_000, 7])
@pytest.mark.parametrize("name", WRITERS)
def test_formats_give_the_same_events(tmp_path, monkeypatch, name, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    expected = recorded()
    if name in ("a.raw", "a.dat"):
        expected = expected._replace(t=expected.t - expected.t[0] + 12_345)
    WRITERS[name](expected, tmp_path / name)
    file = open_events(tmp_path / name)
    found = Events(*map(np.concatenate, zip(*file.chunks(), strict=True)))
    for side, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(side, other)
    assert file.start() == expected.t[0]
    assert file.size == (SIZE if name in ("a.raw", "a.dat") else None)


@pytest.mark.parametrize(
    "written",
    [
        "0 5 7 1\n0.001 6 7 0\n1 6 7 0\n",  # as `%g` writes seconds
        "0E0 5 7 1\n1E-3 6 7 0\n1E0 6 7 0\n",
        "0.0 5 7 1\n1000.0 6 7 0\n1000000.0 6 7 0\n",  # whole numbers are microseconds, also as floats
        "\ufefft,x,y,p\n0,5,7,1\n1000,6,7,0\n1000000,6,7,0\n",
    ],
)
def test_seconds_or_microseconds(tmp_path, monkeypatch, written):
    """The numbers decide, not how the first of them is written; and for the whole recording."""
    monkeypatch.setattr(module, "_CHUNK", 2)
    (tmp_path / "a.txt").write_text(written, encoding="utf-8")
    found = np.concatenate([events.t for events in open_events(tmp_path / "a.txt").chunks()])
    assert found.tolist() == [0, 1_000, 1_000_000]


def test_whole_microseconds_in_an_array_of_floats(tmp_path):
    np.savez(tmp_path / "a.npz", t=np.array([1e3, 2e6]), x=np.ones(2), y=np.ones(2), p=np.ones(2))
    assert next(open_events(tmp_path / "a.npz").chunks()).t.tolist() == [1_000, 2_000_000]


def test_dat_counts_on_behind_32_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    t = (1 << 32) + np.array([-30, -10, 5, 20, 40], np.int64)
    dat(Events(t, *[np.ones(5, np.int64)] * 2, np.ones(5, bool)), tmp_path / "a.dat")
    found = np.concatenate([events.t for events in open_events(tmp_path / "a.dat").chunks()])
    assert found.tolist() == t.tolist()


def test_aedat4():
    pytest.importorskip("aedat", reason="aedat is not installed")
    file, expected = open_events(FIXTURES / "davis.aedat4"), recorded()
    found = Events(*map(np.concatenate, zip(*file.chunks(), strict=True)))
    for side, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(side, other)
    assert file.size == SIZE and file.exposures.shape == (4, 2)
    assert np.diff(file.exposures, axis=1).ravel().tolist() == [8000] * 4


def test_the_picture():
    events = Events(np.arange(3), np.array([1, 1, 2]), np.array([0, 0, 1]), np.array([False, True, True]))
    picture = event_picture(events, (2, 3))
    assert picture[0, 1].tolist() == list(NEGATIVE), "negative ones are drawn last"
    assert picture[1, 2].tolist() == list(POSITIVE) and picture[1, 0].tolist() == [255] * 3
    with pytest.raises(ValueError, match="x 2, y 1 lies outside the picture of 2 x 2"):
        event_picture(events, (2, 2))


def test_windows_are_half_open_and_clocks_may_not_go_back():
    t = np.arange(0, 100, 10)
    chunks = [Events(part, part, part, part > 0) for part in np.split(t, [3, 4, 9])]
    parts = [w.t.tolist() for w in in_windows(chunks, [(0, 20), (20, 30), (55, 60), (60, 500)])]
    assert parts == [[0, 10], [20], [], [60, 70, 80, 90]]
    mixed = [chunks[1], chunks[0], chunks[2]]  # a packet that comes a little late
    assert [w.t.tolist() for w in in_windows(mixed, [(0, 35)])] == [[0, 10, 20, 30]]
    late = [Events(t + 5_000_000, t, t, t > 0), Events(t, t, t, t > 0)]
    with pytest.raises(ValueError, match="time stamps go back from 5000090 to 0"):
        list(in_windows(late, [(5_000_000, 9_000_000)]))


def write_clip(path, count=4, fps=25):
    with VideoWriter(path, fps) as writer:
        for i in range(count):
            writer.write(np.full((*SIZE, 3), 30 * i % 250, np.uint8))
    return path


def test_events_beside_a_video_by_time(tmp_path):
    clip, events = write_clip(tmp_path / "clip.mp4"), recorded()
    npz(events, tmp_path / "e.npz")
    frames = list(open_source(clip, {"event": tmp_path / "e.npz"}))
    assert len(frames) == 4
    for k, frame in enumerate(frames):
        within = (events.t >= events.t[0] + 40_000 * k) & (events.t < events.t[0] + 40_000 * (k + 1))
        expected = event_picture(Events(*(values[within] for values in events)), SIZE)
        np.testing.assert_array_equal(frame["event"], expected)
    later = list(open_source(clip, {"event": tmp_path / "e.npz"}, event_start=int(events.t[0]) + 40_000))
    np.testing.assert_array_equal(later[0]["event"], frames[1]["event"])
    source = open_source(clip, {"event": tmp_path / "e.npz"})
    assert source.modality == "event" and "from each frame to the next" in source.notes[0]


def test_a_recording_with_frames_of_its_own():
    pytest.importorskip("aedat", reason="aedat is not installed")
    path, events = FIXTURES / "davis.aedat4", recorded()
    begins = 1_600_000_000_005_000 + 40_000 * np.arange(4)
    for window, span in ((None, 8_000), ("exposure", 8_000), ("interval", 40_000)):
        frames = list(open_source(path, {"event": path}, event_window=window))
        assert [frame["rgb"][0, 0].tolist() for frame in frames] == [[10, 20, 30 * k] for k in range(4)]
        for begin, frame in zip(begins, frames, strict=True):
            within = (events.t >= begin) & (events.t < begin + span)
            expected = event_picture(Events(*(values[within] for values in events)), SIZE)
            np.testing.assert_array_equal(frame["event"], expected)


def test_exposures_beside_a_folder_of_the_same_frames(tmp_path):
    pytest.importorskip("aedat", reason="aedat is not installed")
    for i in range(3):  # the last one is left out, as VisEvent does
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((*SIZE, 3), np.uint8))
    source = open_source(tmp_path, {"event": FIXTURES / "davis.aedat4"})
    assert "within the exposure" in source.notes[0] and len(list(source)) == 3


def test_recordings_that_cannot_be_used(tmp_path):
    one = Events(*[np.ones(2, np.int64)] * 3, np.ones(2, bool))
    evt2(one, tmp_path / "three.raw", b"% evt 3.0\n% end\n")
    evt2(one, tmp_path / "bare.raw", b"")
    (tmp_path / "b.dat").write_bytes(b"% x\n\x00\x04abcd")
    np.savez(tmp_path / "not.npz", x=np.ones(2), y=np.ones(2), p=np.ones(2))
    np.savez(tmp_path / "odd.npz", events=np.ones((5, 4)))
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    (tmp_path / "three.txt").write_text("1 2 3\n4 5 6\n")
    (tmp_path / "words.txt").write_text("1 2 3 4\none two three four\n")
    (tmp_path / "a.h5").write_bytes(b"nothing")
    (tmp_path / "a.aedat4").write_bytes(b"nothing")
    (tmp_path / "a.bag").write_bytes(b"")
    (tmp_path / "void.txt").write_text("")
    cases = {
        "none.npz": "there is no event file",
        "a.bag": r"events are read from \.aedat4",
        "three.raw": "is EVT 3.0: EVT 2.0 is read; convert it",
        "bare.raw": "a raw file without a header",
        "b.dat": r"no DAT file of change events \(its type is \[0, 4\]",
        "not.npz": "the events have no time stamps",
        "odd.npz": r"holds events \(5, 4\): expected arrays t, x, y and p",
        "bad.npz": "cannot be read as .npz",
        "three.txt": "has 3 numbers a line, expected four.*without time stamps",
        "a.h5": "cannot be read as HDF5",
        "a.aedat4": "cannot be read as AEDAT4",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            open_events(tmp_path / name)
    with pytest.raises(ValueError, match="no table of events"):
        list(open_events(tmp_path / "words.txt").chunks())
    with pytest.raises(ValueError, match="holds no events"):
        open_events(tmp_path / "void.txt").start()


def test_frames_and_events_that_do_not_go_together(tmp_path):
    clip, folder = write_clip(tmp_path / "clip.mp4", 60), tmp_path / "rgb"
    folder.mkdir()
    cv2.imwrite(str(folder / "0.png"), np.zeros((*SIZE, 3), np.uint8))
    npz(recorded(), tmp_path / "e.npz")
    with pytest.raises(ValueError, match="rgb does not say when its frames were taken: give --fps"):
        open_source(folder, {"event": tmp_path / "e.npz"})
    with pytest.raises(ValueError, match=r"has no exposures and clip 60 frames: use --event-window interval"):
        open_source(clip, {"event": tmp_path / "e.npz"}, event_window="exposure")
    with pytest.raises(ValueError, match="expected exposure or interval"):
        open_source(clip, {"event": tmp_path / "e.npz"}, event_window="frame")
    with pytest.warns(UserWarning, match=r"no event in the first 50 frames of clip.*--event-start"):
        list(open_source(clip, {"event": tmp_path / "e.npz"}, event_start=5))
