"""Frame sources, the video writer, drawing and the plot."""

import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
import tracking_stub
from PIL import Image
from tracking_stub import RedPatchModel, frame

from mmtrackers import Prediction, Tracker
from mmtrackers.tracking.drawing import COLORS, annotate, plot_run, visible
from mmtrackers.tracking.sources import open_source, with_rig
from mmtrackers.tracking.video import VideoWriter


def write_video(path, count=12, size=(48, 64), fps=25.0):
    with VideoWriter(path, fps) as writer:
        for i in range(count):
            writer.write(np.full((*size, 3), 10 * i % 251, np.uint8))
    return path


def write_images(folder, count, size=(20, 30), suffix=".png", sixteen=False):
    folder.mkdir(parents=True)
    for i in range(count):
        image = np.full(size, 1000 + i, np.uint16) if sixteen else np.full((*size, 3), 10 * i, np.uint8)
        cv2.imwrite(str(folder / f"{i + 1}{suffix}"), image)
    return folder


def test_a_written_video_plays_in_browsers_and_is_read_back(tmp_path):
    path = write_video(tmp_path / "a" / "clip.mp4", size=(47, 63))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (64, 48)
    source = open_source(path)
    frames = list(source)
    assert (source.name, source.length, source.fps, source.modality) == ("clip", 12, 25.0, "rgb")
    assert len(frames) == 12 and frames[0]["rgb"].shape == (48, 64, 3)
    np.testing.assert_allclose([f["rgb"].mean() for f in frames], 10.0 * np.arange(12), atol=2)
    assert len(list(source)) == 12, "a source can be read again"


def test_a_writer_of_nothing_leaves_no_file_and_one_of_two_sizes_raises(tmp_path):
    with VideoWriter(tmp_path / "none.mp4"):
        pass
    assert not (tmp_path / "none.mp4").exists()
    with VideoWriter(tmp_path / "two.mp4") as writer:
        writer.write(np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(ValueError, match=r"two\.mp4: a frame of shape \(10, 8, 3\)"):
            writer.write(np.zeros((10, 8, 3), np.uint8))


def test_image_folders_come_in_natural_order(tmp_path):
    source = open_source(write_images(tmp_path / "pictures", 11))
    assert (source.length, source.boxes_xywh, source.first) == (11, None, 0)
    assert [int(f["rgb"][0, 0, 0]) for f in source] == [10 * i for i in range(11)]


def test_sequences_bring_boxes_and_begin_where_the_target_is_there(tmp_path):
    folder = write_images(tmp_path / "seq", 4)
    (folder / "groundtruth.txt").write_text("nan,nan,nan,nan\n1,2,10,8\n2,2,10,8\n3,2,10,8\n")
    source = open_source(folder)
    assert source.first == 1 and source.present.tolist() == [False, True, True, True]
    assert source.boxes_xywh[1].tolist() == [1, 2, 10, 8]


def test_two_folders_are_paired(tmp_path):
    rgb, depth = write_images(tmp_path / "rgb", 3), write_images(tmp_path / "d", 3, sixteen=True)
    source = open_source(rgb, {"depth": depth})
    frames = list(source)
    assert source.modality == "depth" and len(frames) == 3
    assert frames[2]["depth"].dtype == np.uint16 and int(frames[2]["depth"][0, 0]) == 1002


def test_a_folder_with_a_number_for_a_name_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "rgb", 2), write_images(tmp_path / "1", 2)
    assert len(list(open_source("rgb", {"thermal": "1"}))) == 2


def test_a_video_is_paired_with_a_folder_or_a_video(tmp_path):
    video = write_video(tmp_path / "clip.mp4", 3)
    assert len(list(open_source(video, {"thermal": write_images(tmp_path / "t", 3)}))) == 3
    assert list(next(iter(open_source(video, {"event": video})))) == ["rgb", "event"]


@pytest.mark.parametrize(("rgb", "thermal", "lacks"), [(3, 4, "rgb"), (4, 3, "thermal")])
def test_folders_of_different_length(tmp_path, rgb, thermal, lacks):
    folders = write_images(tmp_path / "a", rgb), write_images(tmp_path / "b", thermal)
    with pytest.raises(ValueError, match=rf"a and b: frame 4 \(4\.png\) has no {lacks} frame"):
        open_source(folders[0], {"thermal": folders[1]})


@pytest.mark.parametrize(
    ("video", "thermal", "message"),
    [(3, 4, "3 rgb frames but t has more than 3"), (4, 3, "more than 3 rgb frames but t has 3")],
)
def test_a_video_and_a_folder_of_different_length(tmp_path, video, thermal, message):
    source = open_source(write_video(tmp_path / "c.mp4", video), {"thermal": write_images(tmp_path / "t", thermal)})
    with pytest.raises(ValueError, match=message):
        list(source)


def test_sources_that_are_not_there_or_hold_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "void.mp4").write_bytes(b"")
    folder = write_images(tmp_path / "rgb", 2)
    video = write_video(tmp_path / "clip.mp4", 2)
    cases = [
        (tmp_path / "none", None, r"there is no .*none: give a video"),
        (tmp_path / "text.mp4", None, r"text\.mp4 cannot be read as a video"),
        (tmp_path / "void.mp4", None, r"void\.mp4 cannot be read as a video"),
        (tmp_path / "empty", None, r"no sequence was recognized in .*empty"),
        (folder, {"thermal": tmp_path / "none"}, "--thermal takes the folder of the thermal frames"),
        (folder, {"thermal": tmp_path / "empty"}, r"the folder .*empty holds no images"),
        (video, {"depth": video}, "depth comes as a folder of 16-bit images"),
    ]
    for source, second, message in cases:
        with pytest.raises(ValueError, match=message):
            open_source(source, second)
    with pytest.raises(ValueError, match=r"99 gave no picture .it cannot be opened.*plugged in"):
        next(iter(open_source("99")))


def test_a_video_of_no_frames(tmp_path):
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with pytest.raises(ValueError, match=r"none\.mp4 (has no frames|holds no video stream|cannot be)"):
        list(open_source(path))


@pytest.mark.parametrize(("name", "message"), [
    ("cut.mp4", r"cut\.mp4 is damaged or truncated: it ends after \d+ of 40 frames"),
    ("cut.mkv", r"cut\.mkv is damaged or truncated: it ends after \d+ frames, after [\d.]+ of 1\.6 seconds"),
])  # fmt: skip
def test_a_truncated_video_gives_its_good_frames_and_then_says_so(tmp_path, name, message):
    path, noise = tmp_path / name, np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "+faststart"} if name.endswith("mp4") else {}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for _ in range(40):
            picture = av.VideoFrame.from_ndarray(noise.integers(0, 255, (64, 64, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert len(list(open_source(path))) == 40
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames = []
    with pytest.raises(ValueError, match=message):
        for picture in open_source(path):
            frames.append(picture)
    assert 5 < len(frames) < 35


def test_a_trimmed_video_is_whole(tmp_path):
    path = tmp_path / "trimmed.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(40):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * i, np.uint8), format="rgb24")
            picture.pts = i - 15  # an edit list says that players begin at 0
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    moments = [round(float(picture["rgb"].mean())) for picture in open_source(path)]
    np.testing.assert_allclose(moments, 5 * np.arange(15, 40), atol=3)


def test_one_frame_of_a_video_and_the_end_of_python_print_nothing(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    code = f"from mmtrackers.tracking.sources import open_source; f = iter(open_source({str(path)!r})); next(f)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_truncated_and_unreadable_images_are_named(tmp_path):
    folder = write_images(tmp_path / "rgb", 3, suffix=".jpg", size=(64, 64))
    data = (folder / "2.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(data[: len(data) // 2])
    frames = iter(open_source(folder))
    next(frames)
    with pytest.raises(ValueError, match=r"2\.jpg is truncated"):
        next(frames)
    (folder / "1.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"1\.jpg is not a readable image"):
        next(iter(open_source(folder)))


# ------------------------------------------------------------------------------------------------------------ drawing


def prediction(box=(20.0, 30, 40, 20), score=0.7, present=True):
    return Prediction(np.array(box), score, present)


def colored(picture, color):
    return int((np.abs(picture.astype(int) - color).max(-1) < 30).sum())


def test_boxes_are_drawn_in_the_colours_of_their_targets():
    shown = annotate(frame(), [prediction(), prediction((90.0, 60, 30, 30))], 3)
    assert shown.shape == (144, 160, 3)
    assert colored(shown[:120], COLORS[0]) > 100 and colored(shown[:120], COLORS[1]) > 100
    assert colored(annotate(frame(), [], 3)[:120], COLORS[0]) == 0


def test_absent_targets_are_dashed_and_ground_truth_is_white():
    solid, dashed = (annotate(frame(), [prediction(present=p)], 0)[:120] for p in (True, False))
    assert 0 < colored(dashed, COLORS[0]) < 0.8 * colored(solid, COLORS[0])
    assert colored(annotate(frame(), [], 0, np.array([5.0, 5, 50, 50]))[:120], (255, 255, 255)) > 100
    assert colored(annotate(frame(), [], 0, np.full(4, np.nan))[:120], (255, 255, 255)) == 0


@pytest.mark.parametrize("modality", ["thermal", "depth", "event"])
def test_both_streams_are_shown_side_by_side(modality):
    assert annotate(frame(modality=modality), [prediction()], 0).shape == (144, 324, 3)


def test_boxes_far_outside_and_odd_pictures_can_be_drawn(monkeypatch):
    annotate(frame(size=(33, 47)), [prediction((-1e9, 5, 1e9, 1e9))], 0)
    near, far = (annotate(frame(), [prediction((x, 30, 90 - x, 900))], 0) for x in (-200.0, -1e9))
    np.testing.assert_array_equal(near, far)
    dashes, line = [], cv2.line
    monkeypatch.setattr(cv2, "line", lambda *args: dashes.append(args) or line(*args))
    annotate(frame(), [prediction((-5e5, -5e5, 1e6, 1e6), present=False)], 0)
    assert len(dashes) < 500, "what nobody sees takes no time"
    assert visible(np.zeros((4, 4), np.uint16), "depth").max() == 0
    assert visible(np.arange(16, dtype=np.uint16).reshape(4, 4) + 7000, "thermal").max() > 220
    assert visible(np.zeros((4, 4, 1), np.uint8), "thermal").shape == (4, 4, 3)


@pytest.mark.parametrize("known", [slice(None), slice(None, None, 10), slice(0, 1)])
def test_the_plot_is_a_picture_of_reasonable_size(tmp_path, known):
    overlaps = np.full(61, np.nan)
    overlaps[known] = 0.7
    plot_run(tmp_path / "plot.png", overlaps, np.linspace(1, 0.2, 61), "a$math_$b", absent_below=0.3)
    height, width = cv2.imread(str(tmp_path / "plot.png")).shape[:2]
    assert (width, height) == (1080, 552)


# --------------------------------------------------------------------------------------------- pairs, what is alone


def numbered(folder, numbers, **kwargs):
    write_images(folder, 0, **kwargs)
    for n in numbers:
        cv2.imwrite(str(folder / f"{n:04d}.png"), np.full((20, 30, 3), n, np.uint8))
    return folder


def test_folders_with_gaps(tmp_path):
    rgb = numbered(tmp_path / "rgb", [n for n in range(1, 13) if n != 9])
    thermal = numbered(tmp_path / "thermal", [n for n in range(1, 13) if n != 5])
    with pytest.raises(ValueError, match=r"rgb and thermal: frame 5 \(0005\.png\) has no thermal frame"):
        open_source(rgb, {"thermal": thermal})
    pairs = list(open_source(rgb, {"thermal": thermal}, pair_by="number"))
    assert [int(f["rgb"][0, 0, 0]) for f in pairs] == [1, 2, 3, 4, 6, 7, 8, 10, 11, 12]
    assert all(f["rgb"][0, 0, 0] == f["thermal"][0, 0, 0] for f in pairs)
    with pytest.raises(ValueError, match=r"does not say when its frames were taken: give --fps"):
        open_source(rgb, {"thermal": thermal}, pair_by="time")


def test_folders_named_by_time_are_paired_by_time(tmp_path):
    for name, times in (("rgb", (10.00, 10.10, 10.20, 10.30)), ("t", (9.96, 10.06, 10.12, 10.19, 10.29))):
        (tmp_path / name).mkdir()
        for i, time in enumerate(times):
            cv2.imwrite(str(tmp_path / name / f"{time:.6f}.png"), np.full((8, 9, 3), i, np.uint8))
    pairs = list(open_source(tmp_path / "rgb", {"thermal": tmp_path / "t"}))
    assert [int(f["thermal"][0, 0, 0]) for f in pairs] == [0, 2, 3, 4]


@pytest.mark.parametrize("rate", [12.5, 9, 50])
def test_videos_of_two_rates_are_paired_by_time(tmp_path, rate):
    fast, slow = write_video(tmp_path / "a.mp4", 25), tmp_path / "b.mp4"
    with VideoWriter(slow, rate) as writer:
        for i in range(round(1.1 * rate)):
            writer.write(np.full((48, 64, 3), 200 * i / rate, np.uint8))  # as bright as the moment
    pairs = list(open_source(fast, {"thermal": slow}))
    assert len(pairs) == 25
    moments = np.array([[f["rgb"].mean() / 250, f["thermal"].mean() / 200] for f in pairs])
    assert np.abs(np.diff(moments)).max() <= 0.5 / min(25, rate) + 0.012  # and what the codec makes of grey


def test_a_second_video_that_ends_early_or_goes_on(tmp_path):
    video, short, long = (write_video(tmp_path / f"{n}.mp4", n) for n in (25, 20, 55))
    with pytest.raises(ValueError, match=r"25 and 20: nothing within 0\.021 s of 0\.800 s"):
        list(open_source(video, {"thermal": short}))
    with pytest.warns(UserWarning, match="55 goes on for more than a second"):
        assert len(list(open_source(video, {"thermal": long}))) == 25


def test_folders_take_a_rate(tmp_path):
    folder = write_images(tmp_path / "rgb", 10)
    assert open_source(folder, fps=12.5).fps == 12.5
    video = write_video(tmp_path / "heat.mp4", 20)
    pairs = list(open_source(folder, {"thermal": video}, fps=12.5))
    assert [round(f["thermal"].mean() / 10) for f in pairs] == list(range(0, 20, 2))
    for rate in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=r"--fps .*positive"):
            open_source(folder, fps=rate)
    with pytest.raises(ValueError, match="--fps 25 is for folders of images and pages"):
        open_source(video, {"thermal": video}, fps=25)
    with pytest.raises(ValueError, match="modality 'ir': expected one of rgb"):
        open_source(folder, modality="ir")
    with pytest.raises(ValueError, match="not by 'name'"):
        open_source(folder, pair_by="name")


def test_pictures_of_16_bits_alone_are_thermal_or_depth(tmp_path):
    folder = write_images(tmp_path / "heat", 3, sixteen=True)
    for modality in (None, "thermal", "depth"):
        source = open_source(folder, modality=modality)
        assert (source.modality, source.without_rgb) == (modality or "thermal", True)
        assert [int(f[source.modality][0, 0]) for f in source] == [1000, 1001, 1002]
    with pytest.raises(ValueError, match=r"1\.png has one channel of uint16, so it is no RGB picture"):
        next(iter(open_source(folder, {"thermal": folder})))
    (folder / "groundtruth.txt").write_text("1,2,10,8\n" * 3)
    assert open_source(folder).boxes_xywh[0].tolist() == [1, 2, 10, 8]


def test_a_tiff_of_many_pages_is_a_sequence(tmp_path):
    pages = [Image.fromarray(np.full((20, 30), 7000 + k, np.uint16)) for k in range(4)]
    pages[0].save(tmp_path / "heat.tiff", save_all=True, append_images=pages[1:])
    source = open_source(tmp_path / "heat.tiff", fps=10)
    assert (source.modality, source.without_rgb, source.fps) == ("thermal", True, 10)
    assert [int(f["thermal"][0, 0]) for f in source] == [7000, 7001, 7002, 7003]
    folder = write_images(tmp_path / "rgb", 4)
    paired = list(open_source(folder, {"thermal": tmp_path / "heat.tiff"}))
    assert [int(f["thermal"][0, 0]) for f in paired] == [7000, 7001, 7002, 7003]


def test_a_tracker_takes_a_recording_with_its_rig(tmp_path):
    folder = write_images(tmp_path / "heat", 3, sixteen=True)
    tracker = Tracker(RedPatchModel(), tracking_stub.processor())
    found = list(tracker.track(folder, [3, 3, 10, 10]))
    assert len(found) == 3, "16-bit pictures alone are read in the place of RGB"
    two = Tracker(RedPatchModel(streams=2, modality="thermal"), tracking_stub.processor())
    pair = open_source(write_images(tmp_path / "rgb", 3, size=(40, 60)), {"thermal": folder})
    assert len(list(two.track(with_rig(pair, "scale", (900, 1100)), [3, 3, 10, 10]))) == 3
    with pytest.raises(ValueError, match="differ in size"):
        list(two.track(pair, [3, 3, 10, 10]))
