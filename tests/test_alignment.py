"""Alignment: matrices and their files, crops through them, registration."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import tracking_stub
from example_scripts import load
from tracking_stub import RedPatchModel

from mmtrackers import Tracker, TrackerImageProcessor
from mmtrackers.processing.alignment import check_alignment, frame_matrix, read_alignment, warp, write_alignment
from mmtrackers.processing.registration import matrix_from_points, overlay, read_points, register
from mmtrackers.tracking.sources import open_source

MATRIX = np.array([[1.1, 0.02, -9.0], [-0.015, 1.05, 6.0], [0, 0, 1]])
STYLES = ("ostrack", "lorat")


def scene(seed: int = 0, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """Blocks and discs of many sizes, uint8 grey."""
    rng, (height, width) = np.random.default_rng(seed), size
    picture = np.full(size, 90, np.uint8)
    for _ in range(60):
        x, y, r = rng.integers(0, width), rng.integers(0, height), int(rng.integers(4, 40))
        shade = int(rng.integers(0, 256))
        if rng.random() < 0.5:
            cv2.rectangle(picture, (x, y), (x + r, y + 2 * r // 3), shade, -1)
        else:
            cv2.circle(picture, (x, y), r // 2, shade, -1)
    return cv2.GaussianBlur(picture, (0, 0), 1)


def colors(grey: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def corner_error(found: np.ndarray, true: np.ndarray, height: int, width: int) -> float:
    corners = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], float)
    apart = cv2.perspectiveTransform(corners, found) - cv2.perspectiveTransform(corners, true)
    return float(np.linalg.norm(apart[0], axis=1).mean())


# ------------------------------------------------------------------------------------------------------------ crops


def test_a_lorat_crop_does_not_depend_on_the_number_of_threads():
    processor, box = TrackerImageProcessor(crop_style="lorat"), (100, 80, 40, 30)
    joined = processor.stack({"rgb": colors(scene(1)), "thermal": scene(2)}, "thermal", 2)
    threads, crops = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        crops.append([processor.crop(joined, box, role)[0] for role in ("template", "search")])
    torch.set_num_threads(threads)
    for one, two in zip(*crops, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("box", [(100, 80, 40, 30), (-10, 5, 60, 40), (300, 220, 30, 30), (2, 2, 8, 6)])
def test_an_identity_gives_the_crops_of_joined_streams(style, box):
    processor = TrackerImageProcessor(crop_style=style)
    frame = {"rgb": colors(scene(1)), "thermal": scene(2)}
    joined = processor.stack(frame, "thermal", 2)
    plain, aligned = (
        processor.views(frame, "thermal", 2, alignment=alignment) for alignment in (None, {"thermal": np.eye(3)})
    )
    for role in ("template", "search"):
        expected, where = processor.crop(joined, box, role)
        cut, _ = processor.crop(plain, box, role)
        assert cut.dtype == expected.dtype
        np.testing.assert_array_equal(cut, expected)
        found, there = processor.crop(aligned, box, role)
        assert repr(there) == repr(where)
        assert found.shape == expected.shape
        apart = np.abs(found.astype(float) - expected)
        assert apart.mean() < 0.35 and np.quantile(apart, 0.995) <= 2


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("matrix", [MATRIX, np.vstack((MATRIX[:2], (1e-4, -5e-5, 1)))], ids=["affine", "full"])
def test_a_crop_through_the_matrix_is_a_crop_of_the_warped_frame(style, matrix):
    processor = TrackerImageProcessor(crop_style=style)
    other, rgb = colors(scene(3, (260, 300))), colors(scene(1))
    warped = warp(other, matrix, (320, 240), "thermal")
    views = processor.views({"rgb": rgb, "thermal": other}, "thermal", 2, alignment={"thermal": matrix})
    for box in ((150, 100, 40, 30), (30, 30, 60, 40)):
        found, _ = processor.crop(views, box, "search")
        expected, _ = processor.crop(processor.stack({"rgb": rgb, "thermal": warped}, "thermal", 2), box, "search")
        assert np.abs(found.astype(float) - expected).mean() < 1.5  # once interpolated, not twice


def test_borders_and_interpolation_belong_to_the_modality():
    shift = np.array([[1, 0, 4.5], [0, 1, 0], [0, 0, 1]])
    thermal = warp(np.full((8, 8, 3), 77, np.uint8), shift, 8, "thermal")
    assert thermal.min() == 77
    event = warp(np.full((8, 8, 3), 77, np.uint8), shift, 8, "event")
    assert event[0, 0].tolist() == [255] * 3 and event[0, -1].tolist() == [77] * 3
    two = np.repeat(np.array([[[128, 0, 0], [0, 0, 128]]], np.uint8), 4, axis=1)
    shift[0, 2] = 2.5
    depth = warp(two, shift, 8, "depth")
    assert {tuple(pixel) for pixel in depth.reshape(-1, 3).tolist()} == {(128, 0, 0), (0, 0, 128)}


def test_a_matrix_is_applied_behind_the_reading_of_16_bits():
    thermal = np.random.default_rng(0).integers(7000, 7100, (40, 60)).astype(np.uint16)
    shift = {"thermal": np.array([[1.0, 0, 40], [0, 1, 0], [0, 0, 1]])}
    views = TrackerImageProcessor().views({"rgb": colors(scene(0, (40, 60))), "thermal": thermal}, "thermal", 2,
                                          alignment=shift)  # fmt: skip
    cut, _ = TrackerImageProcessor().crop(views, (25, 15, 10, 10), "search")
    assert np.ptp(cut[..., 3:]) > 200, "no zeros of a border in the range"


def test_scale_takes_pictures_of_two_sizes():
    large = scene(5, (240, 320))
    small = cv2.resize(large, (160, 120), interpolation=cv2.INTER_AREA)
    processor = TrackerImageProcessor()
    views = processor.views({"rgb": colors(large), "thermal": small}, "thermal", 2, alignment={"thermal": "scale"})
    cut, _ = processor.crop(views, (140, 100, 40, 40), "search")
    assert np.abs(cut[..., :3].astype(float) - cut[..., 3:]).mean() < 6
    with pytest.raises(ValueError, match=r"differ in size.*rgb 320 x 240, thermal 160 x 120.*--align FILE.*'scale'"):
        processor.views({"rgb": colors(large), "thermal": small}, "thermal", 2)


# ------------------------------------------------------------------------------------------------ matrices and files


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((3, 3)), "singular"),
        ([[1, 2, 3], [2, 4, 6], [0, 0, 1]], "singular"),
        (np.diag([1.0, 1.0, 0.0]), "singular"),
        (np.eye(4), r"the shape \(4, 4\); it maps thermal pixels to rgb pixels.*mmtrackers align"),
        ([[1, 0, np.nan], [0, 1, 0], [0, 0, 1]], "not finite"),
        ("shift", "no matrix of numbers"),
        (None, "no matrix of numbers|shape"),
    ],
)
def test_matrices_that_cannot_be_used(matrix, message):
    with pytest.raises(ValueError, match=message):
        check_alignment(matrix, "thermal")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 0, 5000], [0, 1, 0], [0, 0, 1]], r"corners of the thermal picture \(30 x 20\) at \(5000, 0\).*inverse"),
        ([[1, 0, 0], [0, 1, 0], [-0.1, 0, 1]], "inside out"),
    ],
)
def test_matrices_that_do_not_fit_the_pictures(matrix, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        frame_matrix(check_alignment(matrix), (20, 30), (40, 60), "thermal")


def test_files_of_matrices(tmp_path):
    write_alignment(tmp_path / "a.txt", MATRIX)
    (tmp_path / "b.txt").write_text("# by hand\n1.1, 0.02, -9\n-0.015, 1.05, 6\n")
    (tmp_path / "c.json").write_text(json.dumps(MATRIX.tolist()))
    (tmp_path / "d.json").write_text(json.dumps({"note": "x", "homography": (2 * MATRIX).tolist()}))
    storage = cv2.FileStorage(str(tmp_path / "e.yaml"), cv2.FILE_STORAGE_WRITE)
    storage.write("width", 640)
    storage.write("H", MATRIX)
    storage.release()
    for file in sorted(tmp_path.iterdir()):
        np.testing.assert_allclose(read_alignment(file), MATRIX, atol=1e-12, err_msg=file.name)
    (tmp_path / "f.txt").write_text("one two three\n")
    (tmp_path / "g.json").write_text("{")
    (tmp_path / "h.json").write_text('{"width": 3}')
    for name in ("f.txt", "g.json", "h.json"):
        with pytest.raises(ValueError, match=rf"{name}: the alignment.*(no matrix|shape)"):
            read_alignment(tmp_path / name)
    with pytest.raises(ValueError, match=r"none\.txt cannot be read: No such file"):
        read_alignment(tmp_path / "none.txt")


# ----------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("other_size", [(240, 320), (200, 260)])
def test_a_known_warp_is_found(other_size):
    rgb = scene(7)
    true = frame_matrix("scale", other_size, rgb.shape, "thermal") @ np.array(
        [[0.96, 0.02, 7.0], [-0.015, 0.97, 5.0], [0, 0, 1]]
    )
    thermal = 255 - (rgb.astype(float) ** 0.8).round()  # other shades, same edges
    other = warp(colors(thermal.clip(0, 255).astype(np.uint8)), np.linalg.inv(true), other_size[::-1], "thermal")
    found = register([(colors(rgb), other)])
    assert corner_error(found.matrix, true, *other_size) < 2
    assert found.after > found.before + 0.2


VTUAV = Path(__file__).parents[2] / "shared" / "data" / "rgbt" / "VTUAV" / "bus1_sample"


@pytest.mark.slow
@pytest.mark.skipif(not VTUAV.is_dir(), reason="the VTUAV sample is not beside the checkout")
def test_a_known_warp_of_a_real_pair_is_found():
    """Against what the published pair gives, which the estimate itself takes to be off by some pixels."""
    script = load("measure_alignment")
    source = open_source(VTUAV)
    pairs = [(frame["rgb"], frame["thermal"]) for _, frame in zip(range(60), source, strict=False)][10::20]
    pairs = [(rgb, colors(thermal) if thermal.ndim == 2 else thermal) for rgb, thermal in pairs]
    height, width = pairs[0][0].shape[:2]
    away = np.linalg.inv(script.OFF)
    moved = [(rgb, cv2.warpPerspective(thermal, away, (width, height))) for rgb, thermal in pairs]
    published, found = register(pairs).matrix, register(moved).matrix
    assert script.corner_distance(found, published @ script.OFF, height, width) < 2


def test_pictures_of_nothing_in_common():
    with pytest.raises(ValueError, match=r"no alignment was found.*points"):
        register([(np.zeros((90, 90, 3), np.uint8), colors(scene(1, (90, 90))))])
    with pytest.raises(ValueError, match="pairs of pictures"):
        register([])
    with pytest.raises(ValueError, match="affine or homography, not 'similarity'"):
        register([(colors(scene()), colors(scene()))], "similarity")


def test_matrices_from_points():
    rng = np.random.default_rng(0)
    for count, model in ((3, "affine"), (6, "affine"), (8, "homography"), (14, "homography")):
        true = MATRIX + (np.array([[0, 0, 0], [0, 0, 0], [1e-4, 0, 0]]) if model == "homography" else 0)
        moving = rng.uniform(0, 300, (count, 2))
        fixed = cv2.perspectiveTransform(moving[None], true)[0]
        matrix, residual = matrix_from_points(np.hstack((fixed, moving)))
        assert corner_error(matrix, true, 240, 320) < 1e-3 and residual < 1e-3
    assert np.array_equal(matrix_from_points(np.hstack((fixed, moving))[:7])[0][2], [0, 0, 1]), "affine below 8 points"


@pytest.mark.parametrize(
    ("points", "model", "message"),
    [
        (np.zeros((2, 4)), None, "2 points are too few: an affine alignment needs 3"),
        (np.random.default_rng(0).uniform(0, 99, (7, 4)), "homography", "7 points are too few"),
        (np.tile(np.arange(4.0)[:, None], (1, 4)), None, "one line"),
        (np.zeros((5, 3)), None, "rows of four"),
    ],
)
def test_points_that_cannot_be_used(points, model, message):
    with pytest.raises(ValueError, match=message):
        matrix_from_points(points, model)


def test_points_file_names_its_bad_line(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("# lamp\n1 2 3 4\n\n5 6 7\n")
    with pytest.raises(ValueError, match=r"p\.txt, line 4: expected x and y in the rgb picture.*'5 6 7'"):
        read_points(file)


def test_the_overlay_shows_before_and_after():
    rgb = colors(scene(7))
    picture = overlay(rgb, rgb, np.eye(3))
    assert picture.shape == (240, 640, 3)
    np.testing.assert_array_equal(picture[:, :320], picture[:, 320:])


# ---------------------------------------------------------------------------------------------------------- session


def two_stream_tracker(**kwargs) -> Tracker:
    return Tracker(RedPatchModel(streams=2, modality="thermal"), tracking_stub.processor(), **kwargs)


def test_a_session_applies_its_alignment_and_streams_may_differ_in_size():
    tracker = two_stream_tracker()
    matrix = np.array([[2.0, 0, 10.5], [0, 2, -4.5], [0, 0, 1]])
    thermal = scene(3, (80, 100))
    inside = warp(colors(thermal), matrix, (160, 120), "thermal")
    frames = [tracking_stub.frame((40, 50, 24, 20)) | {"thermal": thermal} for _ in range(2)]
    session = tracker.start(frames[0], [40, 50, 24, 20], alignment={"thermal": matrix.tolist()})
    template = tracker.model.template[0, 0, 1]
    assert session.update(frames[1]).box == pytest.approx([40, 50, 24, 20], abs=2)
    joined = tracker.image_processor.stack(frames[0] | {"thermal": inside}, "thermal", 2)
    expected = tracker.image_processor.template(joined, [40, 50, 24, 20])[0, 0, 1]
    assert float((template - expected).abs().mean()) < 0.1
    with pytest.raises(ValueError, match="differ in size"):
        tracker.start(frames[0], [40, 50, 24, 20])
    with pytest.raises(ValueError, match="given for depth, but this session reads rgb and thermal"):
        tracker.start(frames[0], [40, 50, 24, 20], alignment={"depth": matrix})
    with pytest.raises(ValueError, match="singular"):
        tracker.start(frames[0], [40, 50, 24, 20], alignment={"thermal": np.zeros((3, 3))})


def test_a_session_keeps_one_thermal_range():
    rng, tracker = np.random.default_rng(0), two_stream_tracker()
    frames = [tracking_stub.frame((40, 50, 24, 20)) for _ in range(2)]
    for frame in frames:
        frame["thermal"] = rng.integers(7000, 7101, (120, 160)).astype(np.uint16)
    frames[1]["thermal"][0, 0] = 60000
    levels = {}
    for given in (None, "frame", (7000, 7100)):
        session = tracker.start(frames[0], [40, 50, 24, 20], thermal_range=given)
        session.update(frames[1])
        levels[given] = float(tracker.model.search[:, 1].mean())
    assert levels[None] == pytest.approx(0.0, abs=0.4) and levels["frame"] < -1.5
    assert levels[7000, 7100] == pytest.approx(levels[None], abs=0.2)


def test_a_frame_that_is_refused_leaves_the_range_as_it_was():
    tracker = two_stream_tracker()
    frame = tracking_stub.frame((40, 50, 24, 20)) | {"thermal": np.full((120, 160), 7000, np.uint16)}
    frame["thermal"][:60] = 7100
    session = tracker.start(frame, [40, 50, 24, 20])
    before = session._thermal._limits
    wrong = {"rgb": frame["rgb"][:100], "thermal": frame["thermal"][:100] + 500}
    with pytest.raises(ValueError, match="160x100"):
        session.update(wrong)
    assert session._thermal._limits == before
