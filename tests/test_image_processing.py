"""The image processor: crops, pictures of each modality, boxes there and back, and what it says to bad frames."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_tools import cases, load_case, seeded_input
from PIL import Image

from mmtrackers.processing import frames, thermal
from mmtrackers.processing.boxes import clip_box_xywh
from mmtrackers.processing.frames import depth_to_colors
from mmtrackers.processing.image_processing import TrackerImageProcessor, hann_window


def _cases(pattern: str) -> list:
    skip = pytest.mark.skip(reason=f"no {pattern} fixtures in MMTRACKERS_FIXTURES")
    return cases(pattern + r".*") or [pytest.param("none", marks=skip)]


def _picture(name: str, shape: tuple[int, ...], seed: int, middle: int, spread: int) -> np.ndarray:
    return torch.round(middle + spread * seeded_input(name, shape, seed)).clamp(0, 255).to(torch.uint8).numpy()


def _levels_apart(a: np.ndarray, b: torch.Tensor) -> int:
    assert a.shape == tuple(b.shape) and a.dtype == np.uint8
    return int(np.abs(a.astype(int) - b.numpy().astype(int)).max())


def _numbers(text: str, pattern: str) -> list[float]:
    return [float(v) for v in re.search(pattern, text).group(1).split(",")]


# ------------------------------------------------------------------------------------------------- parity: OSTrack


@pytest.fixture(params=_cases("ostrack-pipeline"))
def pipeline(request):
    description, tensors = load_case(request.param)
    shape = tuple(int(v) for v in _numbers(description["frame"], r"shape \[([\d, ]+)\]"))
    frame = _picture("frame", shape, description["seed"], 120, 40)
    processor = TrackerImageProcessor(
        template_size=len(tensors["crop_template_0"]), search_size=len(tensors["crop_search_0"])
    )
    return description, tensors, frame, processor


def test_parity_ostrack_crops_and_labels(pipeline):
    description, tensors, frame, processor = pipeline
    compared = 0
    for i, box in enumerate(description["boxes_xywh"]):
        moved = np.add(box, (3, -2, 4, 1))
        for role in ("template", "search"):
            picture, crop = processor.crop(frame, box, role)
            assert crop.resize_factor == pytest.approx(float(tensors[f"resize_factor_{role}_{i}"]), abs=1e-12)
            label = tensors[f"box_in_crop_{role}_{i}"].numpy()
            np.testing.assert_allclose(processor.box_to_crop(moved, crop), label, rtol=0, atol=1e-6)
            if (expected := tensors.get(f"crop_{role}_{i}")) is not None:
                assert _levels_apart(picture, expected) <= 1
                compared += 1
    assert compared == sum(key.startswith("crop_") for key in tensors)


def test_parity_ostrack_normalisation(pipeline):
    _, tensors, _, processor = pipeline
    pixels = processor.to_tensor([tensors["crop_template_0"].numpy()])
    found = processor.normalize(pixels).flatten(1, 2)[:, :, ::8]
    torch.testing.assert_close(found, tensors["normalised_template_0"], rtol=0, atol=1e-5)


def test_parity_ostrack_window(pipeline):
    expected = pipeline[1]["hann16"].numpy().squeeze()
    np.testing.assert_allclose(hann_window(16), expected, rtol=0, atol=1e-6)


def test_parity_ostrack_decoding_and_boxes_in_the_frame(pipeline):
    from mmtrackers.modeling.center_head import CenterHead

    description, tensors, frame, processor = pipeline
    seed, batch = description["seed"], len(tensors["decoded_plain"])
    score = torch.sigmoid(seeded_input("score_logits", (batch, 1, 16, 16), seed))
    size = torch.sigmoid(seeded_input("size_logits", (batch, 2, 16, 16), seed) - 1.5)
    offset = 0.5 * seeded_input("offset", (batch, 2, 16, 16), seed)
    head, maps = CenterHead(8, 8), {"score_map": score, "size_map": size, "offset_map": offset}
    torch.testing.assert_close(head.decode(maps)[0], tensors["decoded_plain"].reshape(-1, 4), rtol=0, atol=1e-5)
    found, confidence = head.decode(maps, torch.from_numpy(hann_window(16)))
    torch.testing.assert_close(found, tensors["decoded_window"].reshape(-1, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(confidence, tensors["decoded_window_score"].reshape(-1), rtol=0, atol=1e-5)
    for i in range(batch):
        crop = processor.locate(description["boxes_xywh"][i], "search")
        box = clip_box_xywh(processor.box_from_crop(found[i], crop), *frame.shape[:2])
        np.testing.assert_allclose(box, tensors["mapped_and_clipped"][i].numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("key", "clip"), [("depth_colormap", True), ("depth_colormap_noclip", False)])
def test_parity_ostrack_depth(pipeline, key, clip):
    tensors = pipeline[1]
    assert _levels_apart(depth_to_colors(tensors["depth_in"].numpy().astype(np.uint16), clip), tensors[key]) == 0


# ------------------------------------------------------------------------------------------------ parity: SEATrack


@pytest.mark.parametrize("name", _cases("seatrack-modules"))
def test_parity_seatrack_depth_crop_and_window(name):
    description, tensors = load_case(name)
    seed, parts = description["seed"], description["parts"]
    height, width = tensors["depth.image6"].shape[:2]
    rgb = _picture("rgb", (height, width, 3), seed, 128, 48)
    depth = torch.round(3000 + 1500 * seeded_input("depth", (height, width), seed)).clamp(0, 65535)
    depth[3:6, 4:9], depth[10:12, :5] = 40000, 0
    size, factor = (
        float(re.search(rf"{word} (\d+)", parts["crop"]["what"]).group(1)) for word in ("output", "factor")
    )
    processor = TrackerImageProcessor(search_size=int(size), search_factor=factor)
    image = processor.stack({"rgb": rgb, "depth": depth.numpy().astype(np.uint16)}, "depth", streams=2)
    assert _levels_apart(image, tensors["depth.image6"]) == 0
    box = _numbers(parts["crop"]["what"], r"box \[([^\]]+)\]")
    picture, crop = processor.crop(tensors["depth.image6"].numpy(), box, "search")
    assert _levels_apart(picture, tensors["crop.image"]) <= 1
    assert crop.resize_factor == pytest.approx(parts["crop"]["resize_factor"], abs=1e-12)
    np.testing.assert_allclose(hann_window(16), tensors["window"].numpy().squeeze(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", _cases("seatrack-small"))
def test_parity_seatrack_first_crops_of_the_loop(name):
    description, tensors = load_case(name)
    configuration, track = description["configuration"], description["track"]
    processor = TrackerImageProcessor(
        template_size=configuration["template_size"], search_size=configuration["search_size"]
    )
    images = []
    for t in range(2):
        cells = seeded_input(f"frame{t}", (15, 20, 6), description["seed"])
        enlarged = cells.repeat_interleave(8, 0).repeat_interleave(8, 1)
        images.append(torch.round(128 + 48 * enlarged).clamp(0, 255).to(torch.uint8).numpy())
    template = processor.template([images[0]], [track["init_bbox_xywh"]])[:, 0].flatten(1, 2)
    search = processor.search([images[1]], [track["init_bbox_xywh"]])[0].flatten(1, 2)
    level = 1.01 / 255 / min(processor.image_std)
    expected = tensors["track.template_tensor"], tensors["track.search_tensor_frame1"]
    torch.testing.assert_close(template[:, :, ::4, ::4], expected[0], rtol=0, atol=level)
    torch.testing.assert_close(search[:, :, ::8, ::8], expected[1], rtol=0, atol=level)


# ----------------------------------------------------------------------------------------------------------- frames

RGB = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
GREY16 = np.array([[7000, 7050, 7100, 7100], [7000, 7025, 7075, 7100]], np.uint16)
DEPTH = np.array([[0, 500, 1000, 2000], [0, 900, 1500, 60000]], np.uint16)


@pytest.fixture
def processor():
    return TrackerImageProcessor()


def test_single_stream_takes_arrays_and_grey(processor):
    assert processor.stack(RGB).tolist() == RGB.tolist()
    for grey in (RGB[..., 0], RGB[..., :1]):
        assert processor.stack({"rgb": grey, "thermal": None}).tolist() == np.repeat(RGB[..., :1], 3, 2).tolist()


def test_thermal_of_16_bits_is_stretched_and_rounded(processor):
    image = processor.stack({"rgb": RGB, "thermal": GREY16}, "thermal", streams=2)
    assert image[..., :3].tolist() == RGB.tolist()
    expected = np.rint((GREY16 - 7000.0) * 255 / 100).astype(np.uint8)
    assert np.abs(image[..., 3:].astype(int) - expected[..., None]).max() <= 1  # at .5 either neighbour is right
    assert processor.stack({"thermal": np.full((2, 2), 9000, np.uint16)}, "thermal").max() == 0


@pytest.mark.parametrize("depth", [DEPTH, DEPTH[..., None], np.asfortranarray(DEPTH), np.zeros((3, 5), np.uint16)])
def test_depth_of_any_layout(processor, depth):
    picture = processor.stack({"depth": depth}, "depth")
    assert picture.shape == (*depth.shape[:2], 3)
    if depth.any():
        assert picture[0, 0].tolist() == [128, 0, 0] and picture[1, 3].tolist() == [0, 0, 128]


@pytest.mark.parametrize("count", [7, 8])
@pytest.mark.parametrize("seed", range(3))
def test_median_by_counting(count, seed):
    depth = np.random.default_rng(seed).integers(0, 65536, (1, count)).astype(np.uint16)
    assert frames._median(depth) == np.median(depth)


@pytest.mark.parametrize(
    ("frame", "modality", "streams", "message"),
    [
        ({"rgb": RGB}, "thermal", 2, r"no thermal stream \(it has rgb\).*'thermal': picture.*--allow-missing"),
        ({"rgb": RGB, "depth": DEPTH}, "thermal", 2, "no thermal stream.*load a tracker for depth"),
        ({"rgb": RGB, "event": None}, "event", 2, "no event stream"),
        ({"thermal": RGB}, "thermal", 2, r"no rgb stream \(it has thermal\).*'rgb': picture"),
        ({}, "rgb", 1, r"no rgb stream \(it has no picture at all\)"),
        ({"rgb": RGB, "infrared": RGB}, "thermal", 2, "unknown stream infrared; known: rgb, thermal, depth, event"),
        ({"rgb": RGB, "thermal": RGB[:1]}, "thermal", 2, "differ in size.*rgb 4 x 2, thermal 4 x 1.*--align.*scale"),
        ({"rgb": RGB / 255}, "rgb", 1, r"rgb picture has the type float64, expected uint8.*frame \* 255"),
        ({"rgb": RGB.astype(np.uint16)}, "rgb", 1, "type uint16, expected uint8: convert it"),
        ({"rgb": RGB, "thermal": RGB.astype(np.float32)}, "thermal", 2, "thermal .*, or float of one channel"),
        ({"rgb": RGB, "depth": RGB}, "depth", 2, r"depth .*\(2, 4, 3\).*not a colored picture"),
        ({"rgb": RGB, "depth": DEPTH / 1000}, "depth", 2, r"expected uint16 \(millimeters\).*frame \* 1000"),
        ({"rgb": RGB, "depth": RGB[..., 0]}, "depth", 2, "type uint8.*IMREAD_UNCHANGED"),
        ({"rgb": RGB[:0]}, "rgb", 1, r"rgb picture is empty \(shape \(0, 4, 3\)\)"),
        ({"rgb": RGB, "event": np.zeros(0, np.uint8)}, "event", 2, "event picture is empty"),
        (np.zeros((2, 4, 4), np.uint8), "rgb", 1, "drop the fourth"),
        ("a.png", "rgb", 1, "give the picture itself, or the folder"),
        (Path("a.png"), "rgb", 1, "give the picture itself, or the folder"),
        (Image.new("P", (4, 2)), "rgb", 1, r'PIL image of mode P: convert it, picture\.convert\("RGB"\)'),
        (np.zeros((3, 20, 40), np.uint8), "rgb", 1, "the channels come first"),
        (np.zeros((1, 2, 4, 3), np.uint8), "rgb", 1, "one frame at a time"),
        (np.zeros(5, np.uint8), "rgb", 1, r"shape \(5,\): give height x width x 3"),
        (None, "rgb", 1, "no rgb stream"),
        (RGB, "lidar", 1, "modality 'lidar': expected one of rgb"),
        (RGB, "thermal", 3, "1 or 2 streams, got 3"),
        (RGB, "rgb", 2, "needs a second modality"),
    ],
)
def test_bad_frames_are_named(processor, frame, modality, streams, message):
    with pytest.raises(ValueError, match=message):
        processor.stack(frame, modality, streams)


@pytest.mark.parametrize("made", [torch.from_numpy, Image.fromarray, np.asfortranarray])
def test_a_frame_may_be_whatever_numpy_reads(processor, made):
    assert processor.stack(made(RGB), "rgb", 1).tolist() == RGB.tolist()


def test_missing_stream_is_fed_with_rgb_and_said_once(processor):
    with pytest.warns(UserWarning, match="no thermal stream: the rgb picture is fed in its place") as caught:
        for _ in range(3):
            image = processor.stack({"rgb": RGB}, "thermal", streams=2, allow_missing=True)
    assert len(caught) == 1
    assert image.tolist() == np.concatenate([RGB, RGB], 2).tolist()
    with pytest.raises(ValueError, match="no rgb stream"):
        processor.stack({"thermal": RGB}, "thermal", streams=2, allow_missing=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.stack({"rgb": RGB, "event": RGB}, "event", streams=2, allow_missing=True)


# ------------------------------------------------------------------------------------------------------------ crops


@pytest.mark.parametrize("size", [96, 112, 224])
def test_any_size_and_several_boxes_in_one_picture(size):
    processor = TrackerImageProcessor(search_size=size, template_size=size // 2)
    image = np.full((60, 80, 6), 200, np.uint8)
    boxes = [[30, 20, 10, 10], [0, 0, 20, 5]]
    search, where = processor.search(image, boxes)
    assert search.shape == (2, 2, 3, size, size) and search.dtype == torch.float32
    assert processor.template([image, image], boxes).shape == (2, 1, 2, 3, size // 2, size // 2)
    again, _ = processor.search(image, boxes[1])
    assert torch.equal(again[0], search[1]) and [crop.size for crop in where] == [size, size]


@pytest.mark.parametrize("box", [[200, 20, 9, 9], [-90, -90, 9, 9], [30, 59, 1e-3, 1e-3]])
def test_a_square_outside_the_picture_is_black(processor, box):
    picture, _ = processor.crop(np.full((60, 80, 3), 200, np.uint8), box, "search")
    assert picture.shape == (256, 256, 3) and picture.max() == 0


def test_the_frame_is_never_padded_whole(processor):
    """The square that is cut counts, not the frame."""
    picture, crop = processor.crop(np.full((2000, 3000, 3), 9, np.uint8), [-4, -4, 8, 8], "search")
    assert (crop.x1, crop.y1, crop.side) == (-16, -16, 32)
    assert picture[:100].max() == 0 and picture[160:, 160:].min() == 9


@pytest.mark.parametrize(
    ("box", "role", "message"),
    [
        ([1, 2, 3], "search", r"4 numbers \(x, y, width, height\), got \[1.0, 2.0, 3.0\]"),
        ([1, 2, np.nan, 4], "search", "x=1, y=2, width=nan, height=4: the numbers must be finite"),
        ([1, 2, 0, 4], "template", "width=0, height=4: the numbers must be finite and the sides positive"),
        ([1, 2, 3, 4], "memory", "'template' or 'search', got 'memory'"),
    ],
)
def test_bad_boxes_for_a_crop(processor, box, role, message):
    with pytest.raises(ValueError, match=message):
        processor.crop(RGB, box, role)


@pytest.mark.parametrize("image", [RGB / 255, RGB[..., 0], "frame.jpg"])
def test_bad_pictures_for_a_crop(processor, image):
    with pytest.raises(ValueError, match=r"a crop needs a uint8 picture \[H, W, C\]"):
        processor.crop(image, [0, 0, 2, 2], "search")


def test_bad_batches(processor):
    with pytest.raises(ValueError, match="1 pictures and 2 boxes"):
        processor.search([RGB], [[0, 0, 2, 2], [0, 0, 1, 1]])
    with pytest.raises(ValueError, match="one shape, got no crops"):
        processor.to_tensor([])
    with pytest.raises(ValueError, match="3 or 6, got 4"):
        processor.to_tensor([np.zeros((8, 8, 4), np.uint8)])
    with pytest.raises(ValueError, match=r"\[..., 3, height, width\], got \(8, 8\)"):
        processor.normalize(torch.zeros(8, 8))


def test_streams_stay_apart_in_the_tensor(processor):
    crop = np.arange(2 * 2 * 6, dtype=np.uint8).reshape(2, 2, 6)
    tensor = processor.to_tensor([crop, crop + 1])
    assert tensor.dtype == torch.uint8 and tensor.is_contiguous()
    assert tensor[1, 1, 2].tolist() == (crop[..., 5] + 1).tolist()
    assert processor.normalize(tensor).shape == tensor.shape


def test_label_and_tracking_mapping_differ_by_half_a_pixel_of_the_crop(processor):
    crop = processor.locate([60, 40, 30, 24], "search")
    boxes = np.array([[60.0, 40, 30, 24], [10, -3, 5, 7]])
    label = processor.box_to_crop(boxes, crop)
    center = label[:, :2] + label[:, 2:] / 2 + 0.5 / crop.size
    back = processor.box_from_crop(torch.from_numpy(np.concatenate([center, label[:, 2:]], 1)), crop)
    np.testing.assert_allclose(back, boxes, rtol=0, atol=1e-9)


def test_window_is_the_callers_own():
    hann_window(8)[:] = 0
    assert hann_window(8).max() == pytest.approx(0.9407, abs=1e-4)
    with pytest.raises(ValueError, match="positive whole number of cells per side, got 0"):
        hann_window(0)


# --------------------------------------------------------------------------------------------------------- settings


def test_save_and_load(tmp_path):
    processor = TrackerImageProcessor(search_size=384, search_factor=5.0, image_std=[0.5, 0.5, 0.25], depth_clip=False)
    with pytest.warns(UserWarning):
        processor.stack({"rgb": RGB}, "event", streams=2, allow_missing=True)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {
        "crop_style": "ostrack",
        "depth_clip": False,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "TrackerImageProcessor",
        "image_std": [0.5, 0.5, 0.25],
        "search_factor": 5.0,
        "search_size": 384,
        "size_momentum": 0.0,
        "template_factor": 2.0,
        "template_size": 128,
    }
    assert TrackerImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    assert TrackerImageProcessor.from_pretrained(tmp_path, search_size=256).search_size == 256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template_sise": 64}, "unknown image processor setting: template_sise; known: crop_style, "),
        ({"crop_style": "other"}, "crop_style is 'other', known: 'ostrack'"),
        ({"search_size": 0}, "search_size is 0, expected a positive whole number"),
        ({"template_size": 12.5}, "template_size is 12.5"),
        ({"search_factor": -1}, "search_factor is -1, expected a positive number"),
        ({"crop_style": "lorat", "template_factor": 0.5}, "template_factor is 0.5, expected 1 or more"),
        ({"image_mean": [0.5]}, r"image_mean is \(0.5,\), expected 3 numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is .* expected positive numbers"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TrackerImageProcessor(**settings)


@pytest.mark.parametrize(("role", "shape"), [("template", (1, 1, 1, 3, 128, 128)), ("search", (1, 1, 3, 256, 256))])
def test_calling_gives_a_models_inputs(processor, role, shape):
    inputs = processor(np.zeros((40, 50, 3), np.uint8), [[10, 10, 8, 8]], role=role)
    assert {key: tuple(value.shape) for key, value in inputs.items()} == {role: shape}


# ------------------------------------------------------------------------------------------- thermal range, depth


def test_one_thermal_range_for_a_video():
    rng = np.random.default_rng(0)
    frames16 = rng.integers(7000, 7101, (3, 100, 120)).astype(np.uint16)
    hot = frames16[1].copy()
    hot[5, 5] = 65000
    kept = thermal.ThermalRange()
    medians = [int(np.median(frames.to_picture(picture, "thermal", thermal_range=kept)[..., 0]))
               for picture in (frames16[0], hot, frames16[2])]  # fmt: skip
    assert max(medians) - min(medians) <= 4 and 115 < medians[0] < 140
    assert np.median(frames.to_picture(hot, "thermal")[..., 0]) < 2, "the published reading, for parity"
    per_frame = thermal.ThermalRange("frame")
    np.testing.assert_array_equal(
        frames.to_picture(hot, "thermal", thermal_range=per_frame), frames.to_picture(hot, "thermal")
    )


def test_a_thermal_range_follows_slowly_and_a_given_one_stays():
    rng = np.random.default_rng(0)
    kept, given = thermal.ThermalRange(), thermal.ThermalRange((7000, 7200))
    start = kept(rng.integers(7000, 7101, (50, 60)).astype(np.uint16))
    warm = rng.integers(7500, 7601, (50, 60)).astype(np.uint16)
    after = kept(warm)
    assert 0 < after[0] - start[0] < 15
    for _ in range(300):
        after = kept(warm)
    assert after == pytest.approx((7490, 7610), abs=3)
    assert kept(np.full((50, 60), 100, np.uint16)) == after, "a closed shutter moves nothing"
    assert given(warm) == (7000, 7200)
    shown = frames.to_picture(np.array([[6000, 7000, 7050, 9000]], np.uint16), "thermal", thermal_range=given)
    assert shown[0, :, 0].tolist() == [0, 0, 64, 255]


def test_thermal_in_degrees_and_in_8_bits():
    degrees = np.array([[20.0, 25.0, 30.0, np.nan]])
    assert frames.to_picture(degrees, "thermal")[0, :, 0].tolist() == [0, 128, 255, 0]
    kept = thermal.ThermalRange((20, 40))
    assert frames.to_picture(degrees, "thermal", thermal_range=kept)[0, :, 0].tolist() == [0, 64, 128, 0]
    eight = np.array([[7, 8, 250]], np.uint8)
    assert frames.to_picture(eight, "thermal", thermal_range=kept)[0, :, 0].tolist() == [7, 8, 250]


@pytest.mark.parametrize("limits", [(30, 20), (20, 20), (1, 2, 3), ("a", "b"), (0, np.inf), 5, "auto"])
def test_thermal_ranges_that_cannot_be_used(limits):
    with pytest.raises(ValueError, match=r"the thermal range is .*lower one first"):
        thermal.ThermalRange(limits)


def test_depth_of_which_most_is_unknown_keeps_its_colors():
    depth = np.zeros((40, 40), np.uint16)
    depth[:10] = np.linspace(1000, 3000, 40)
    picture = depth_to_colors(depth)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    depth[:10, 0] = 60000
    clipped = np.minimum(depth, int(3 * np.median(depth[depth > 0])))
    np.testing.assert_array_equal(depth_to_colors(depth), depth_to_colors(clipped, clip=False))
