"""Composed scenes: boxes are exact, draws repeat, and the second camera sees what RGB does not."""

import copy
import io
import json

import cv2
import numpy as np
import pytest
import torch
from example_scripts import load
from PIL import Image
from torch.utils.data import DataLoader

from mmtrackers import finetune
from mmtrackers.processing.image_processing import TrackerImageProcessor
from mmtrackers.synthetic import cameras
from mmtrackers.synthetic.bending import Bending
from mmtrackers.synthetic.cameras import depth_picture, depth_range
from mmtrackers.synthetic.layers import View
from mmtrackers.synthetic.pairs import SyntheticPairs, SyntheticScene, as_picture, synthetic_sequence
from mmtrackers.synthetic.pictures import Draw, Picture, PictureLibrary, Sprite, is_held_out
from mmtrackers.training import DeiTAugmentation

PROCESSOR = TrackerImageProcessor(template_size=64, search_size=128)
ALIGNED = TrackerImageProcessor(crop_style="lorat", template_size=56, search_size=112)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made-up pictures: the project brings none of its own."""
    out = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    (out / "cutouts").mkdir()
    (out / "backgrounds").mkdir()
    for index in range(24):
        rgba = cv2.resize(rng.integers(0, 256, (6, 6, 4), dtype=np.uint8), (60, 80), interpolation=cv2.INTER_CUBIC)
        rgba[..., 3] = 0
        cv2.ellipse(rgba, (30, 40), (25, 35), 0, 0, 360, [*rgba[40, 30].tolist()[:3], 255], 3)
        rgba[10:70, 10:50, 3] = 255
        Image.fromarray(rgba).save(out / "cutouts" / f"{index}.png")
        photo = cv2.resize(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), (400, 300))
        Image.fromarray(photo).save(out / "backgrounds" / f"{index}.jpg")
    return out


@pytest.fixture(scope="module")
def library(folder):
    return PictureLibrary(folder, split="all", clutter=4)


def scenes(library, count, **kwargs):
    return [SyntheticScene(library, np.random.default_rng(seed), size=(240, 320), **kwargs) for seed in range(count)]


def test_the_splits_share_no_picture(folder):
    libraries = {split: PictureLibrary(folder, split=split, clutter=0) for split in ("train", "heldout", "all")}
    sizes = {split: len(library.cutouts) for split, library in libraries.items()}
    held_out = sum(is_held_out(f"{index}.png") for index in range(24))
    assert sizes == {"train": 24 - held_out, "heldout": held_out, "all": 24}
    versions = ("flow.jpg", "flow_dark.jpg", "flow_contents_images_5120x2880.jpg", "flow_contents_images_dark_8x6.jpg")
    assert len({is_held_out(name) for name in versions}) == 1
    assert 700 < sum(is_held_out(f"picture{index}.png") for index in range(10000)) < 1300


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": "test"}, ValueError, "expected 'train', 'heldout' or 'all'"),
        ({"folder": "nowhere"}, FileNotFoundError, "collect_pictures.py nowhere"),
    ],
)
def test_library_errors_say_the_way_out(folder, change, error, message):
    with pytest.raises(error, match=message):
        PictureLibrary(**{"folder": folder, **change})


def test_a_truncated_picture_is_named(folder, tmp_path):
    for kind, name in (("cutouts", "0.png"), ("backgrounds", "0.jpg")):
        (tmp_path / kind).mkdir()
        data = (folder / kind / name).read_bytes()
        (tmp_path / kind / name).write_bytes(data[: len(data) // 2] if kind == "cutouts" else data)
    with pytest.raises(ValueError, match=r"cannot read the picture .*0\.png"):
        PictureLibrary(tmp_path, split="all")


def test_a_sprite_without_an_outline_is_refused():
    with pytest.raises(ValueError, match="no pixel with alpha"):
        Sprite(np.zeros((20, 20, 4), np.uint8))


@pytest.mark.parametrize("time", [0.0, 37.5, 90.0])
def test_the_box_is_where_the_target_is_rendered(library, time):
    """The bounds of a target drawn in a color of its own, on black, agree with the box within a pixel."""
    checked = 0
    for scene in scenes(library, 12):
        alpha = scene.target.sprite.picture.levels[0][..., 3]
        white = np.full((*alpha.shape, 4), 255, np.uint8)
        white[..., 3] = alpha
        scene.target.sprite.picture = Picture(np.dstack((cv2.merge((alpha, alpha, alpha)), alpha)))
        scene.target.color = np.eye(4, dtype=np.float32)
        if scene.target.bending is not None:
            scene.target.bending.sprite = scene.target.sprite
        scene.target.kept.clear()
        scene.background = Picture(np.zeros((300, 400, 3), np.uint8))
        scene.background_color = np.eye(4, dtype=np.float32)
        scene.behind, scene.front, scene.noise, scene.jpeg, scene.lowres, scene.blur = [], [], 0.0, 0, 1.0, [0, 0]
        scene.gain = scene.gamma = scene.target_gain = lambda _: 0.0
        scene.cast = [lambda _: 0.0] * 3
        scene.gray, scene.contrast, scene.interlaced = False, 1.0, 0
        rgb, _ = scene.render(time, scene.whole_frame())
        rows, columns = np.nonzero(rgb[..., 0] >= 128)
        x1, y1, x2, y2 = scene.visible_box_xyxy(time)
        if min(x2 - x1, y2 - y1) < 6:
            continue
        drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        # thin outlines fade below half their brightness when they shrink
        assert np.abs(np.array(drawn) - (x1, y1, x2, y2)).max() < 2.0
        checked += 1
    assert checked >= 8


def test_a_window_shows_what_the_frame_shows(library):
    """Rendering a window directly equals cropping the frame, up to the noise and its position."""
    for scene in scenes(library, 6):
        scene.noise, scene.jpeg, scene.lowres, scene.blur, scene.blindness = 0.0, 0, 1.0, [0, 0], "none"
        scene.interlaced = 0
        frame, _ = scene.render(5.0, scene.whole_frame())
        window, _ = scene.render(5.0, View(40, 60, 100, 80, 100, 80))
        difference = np.abs(frame[60:140, 40:140].astype(int) - window)
        assert np.quantile(difference, 0.99) <= 2
        outside, _ = scene.render(5.0, View(-50, -50, 100, 100, 100, 100))
        assert outside[:50].max() == 0 and outside[:, :50].max() == 0


@pytest.mark.parametrize(("modality", "streams"), [("rgb", 1), ("thermal", 2), ("depth", 2), ("event", 2)])
def test_pairs_depend_on_seed_epoch_and_index_only(library, modality, streams):
    pairs = SyntheticPairs(library, PROCESSOR, modality, streams, samples_per_epoch=20, seed=4)
    item = pairs[7]
    assert {key: (tuple(value.shape), value.dtype) for key, value in item.items()} == {
        "template": ((1, streams, 3, 64, 64), torch.uint8),
        "search": ((streams, 3, 128, 128), torch.uint8),
        "labels": ((4,), torch.float32),
    }
    other = SyntheticPairs(library, PROCESSOR, modality, streams, samples_per_epoch=20, seed=4)
    other[3], other[11]
    assert all(torch.equal(item[key], other[7][key]) for key in item)
    other.set_epoch(5)
    assert not torch.equal(item["search"], other[7]["search"])
    other.set_epoch(0)
    other.seed = 5
    assert not torch.equal(item["search"], other[7]["search"])
    with pytest.raises(IndexError, match="sample 20 of 20"):
        pairs[20]


def test_pairs_at_night(library):
    """RGB alone, dark in every search crop; in half of the pairs the template was taken by day."""
    pairs = SyntheticPairs(library, PROCESSOR, samples_per_epoch=30, blindness="night")
    items = [pairs[index] for index in range(30)]
    assert max(float(item["search"].float().mean()) for item in items) < 40
    assert 8 <= sum(float(item["template"].float().mean()) > 45 for item in items) <= 22


def test_absent_samples_show_another_place_and_have_no_box(library):
    pairs = SyntheticPairs(library, PROCESSOR, samples_per_epoch=60, seed=2, absent=0.4)
    plain = SyntheticPairs(library, PROCESSOR, samples_per_epoch=60, seed=2)
    labels = np.array([pairs[index]["labels"].numpy() for index in range(60)])
    gone = (labels == 0).all(1)
    assert 0.25 < gone.mean() < 0.55
    assert (labels[~gone, 2:] > 0).all()
    assert all((plain[index]["labels"][2:] > 0).all() for index in range(20))
    with pytest.raises(ValueError, match="less than 1 "):
        SyntheticPairs(library, PROCESSOR, absent=1.0)


def test_labels_follow_the_recipe(library):
    """Sizes, jitter and mapping: a quarter of the crop's side on average, the center off by up to 3/2 of it."""
    pairs = SyntheticPairs(library, PROCESSOR, samples_per_epoch=200, seed=1)
    labels = torch.stack([pairs[index]["labels"] for index in range(200)])
    size = labels[:, 2:].prod(dim=1).sqrt()
    assert 0.23 < size.median() < 0.27
    offset = (labels[:, :2] + labels[:, 2:] / 2 - (128 - 1) / 256).abs()
    assert offset.max() < 0.4 and 0.14 < offset.mean() < 0.24


def test_workers_that_live_on_see_the_new_epoch(library):
    pairs = SyntheticPairs(library, PROCESSOR, samples_per_epoch=3, seed=4)
    loader = DataLoader(pairs, batch_size=None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1):
        pairs.set_epoch(epoch)
        epochs.append(list(loader))
        assert all(torch.equal(one["search"], pairs[k]["search"]) for k, one in enumerate(epochs[-1]))
    assert not torch.equal(epochs[0][0]["search"], epochs[1][0]["search"])


def test_a_worker_gives_the_same_pairs(library):
    pairs = SyntheticPairs(library, PROCESSOR, samples_per_epoch=6)
    loader = torch.utils.data.DataLoader(pairs, batch_size=3, num_workers=1)
    searches = torch.cat([batch["search"] for batch in loader])
    assert torch.equal(searches, torch.stack([pairs[index]["search"] for index in range(6)]))


def separation(picture, view, scene, time):
    """How far the target's area stands out from its surroundings, in deviations of the surroundings."""
    x1, y1, x2, y2 = scene.target.bounds(time)
    mask = np.zeros(picture.shape[:2], bool)
    x1, x2 = ((x - view.x1) * view.columns / view.width for x in (x1, x2))
    y1, y2 = ((y - view.y1) * view.rows / view.height for y in (y1, y2))
    w, h = (x2 - x1) / 4, (y2 - y1) / 4
    mask[int(y1 + h) : int(y2 - h) + 1, int(x1 + w) : int(x2 - w) + 1] = True
    gray = picture.astype(np.float64).reshape(*picture.shape[:2], -1).mean(axis=2)
    return abs(gray[mask].mean() - gray[~mask].mean())


@pytest.mark.parametrize("blindness", ["night", "camouflage", "glare"])
@pytest.mark.parametrize("modality", ["thermal", "depth"])
def test_the_second_camera_sees_where_rgb_is_blind(library, modality, blindness):
    rgb_contrast, other_contrast = [], []
    for scene in scenes(library, 60, modality=modality, blindness=blindness):
        scene.behind, scene.front = [], []
        if scene.visible_share(0.0) < 0.9:
            continue
        x1, y1, x2, y2 = scene.target.bounds(0.0)
        view = View(x1 - 5, y1 - 5, x2 - x1 + 10, y2 - y1 + 10, 64, 64)
        rgb, other = scene.render(0.0, view)
        other = depth_picture(other, *depth_range(scene, 0.0)) if modality == "depth" else other
        rgb_contrast.append(separation(rgb, view, scene, 0.0))
        other_contrast.append(separation(other, view, scene, 0.0))
    assert np.median(rgb_contrast) < 8 < 15 < np.median(other_contrast)


@pytest.mark.parametrize("blindness", ["night", "camouflage", "glare"])
def test_events_gather_on_the_moving_target(library, blindness):
    shares = []
    for scene in scenes(library, 40, modality="event", blindness=blindness):
        scene.behind, scene.front, scene.shift = [], [], (0.0, 0.0)
        _, events = scene.render(20.0, scene.whole_frame())
        x1, y1, x2, y2 = (round(value) for value in scene.visible_box_xyxy(20.0))
        fired = events.min(axis=2) < 200
        if (x2 - x1) * (y2 - y1) < 100:
            continue
        shares.append(fired[y1:y2, x1:x2].mean() / max(fired.mean(), 1e-6))
    assert np.median(shares) > 3


def test_half_of_the_scenes_with_two_cameras_are_blind(library):
    kinds = [scene.blindness for scene in scenes(library, 200, modality="thermal")]
    assert 75 <= kinds.count("none") <= 125 and set(kinds) == {"none", "night", "camouflage", "glare"}
    assert {scene.blindness for scene in scenes(library, 20)} == {"none"}


@pytest.mark.parametrize(
    ("modality", "shape", "dtype"),
    [("thermal", (120, 160), np.uint8), ("depth", (120, 160), np.uint16), ("event", (120, 160, 3), np.uint8)],
)
def test_sequences_read_lazily_and_repeat(library, modality, shape, dtype):
    video = synthetic_sequence(library, 3, modality, length=12, size=(120, 160))
    again = synthetic_sequence(library, 3, modality, length=12, size=(120, 160))
    assert len(video) == 12 and video.modality == modality
    assert video.boxes_xywh.shape == (12, 4) and video.boxes_xywh.dtype == np.float64
    assert video.present.dtype == bool and video.present[0]
    late = again.read(9)
    frames = [video.read(index) for index in range(12)]
    assert frames[9]["rgb"].shape == (120, 160, 3) and frames[9]["rgb"].dtype == np.uint8
    assert frames[9][modality].shape == shape and frames[9][modality].dtype == dtype
    assert all(np.array_equal(frames[9][key], late[key]) for key in ("rgb", modality))
    assert np.array_equal(video.boxes_xywh, again.boxes_xywh)
    corners = video.boxes_xywh[:, :2] + video.boxes_xywh[:, 2:]
    assert video.boxes_xywh.min() >= 0 and (corners <= (160, 120)).all()
    only = video.rgb_only()
    assert only.modality == "rgb" and np.array_equal(only.read(9)["rgb"], late["rgb"]) and len(only.read(9)) == 1
    with pytest.raises(IndexError, match="frame 12"):
        video.read(12)


def test_boxes_move_smoothly(library):
    for seed in range(8):
        boxes = synthetic_sequence(library, seed, length=30, size=(120, 160)).boxes_xywh
        centers = boxes[:, :2] + boxes[:, 2:] / 2
        step = np.linalg.norm(np.diff(centers, axis=0), axis=1)
        assert (step <= 1.0 * np.sqrt(boxes[:-1, 2:].prod(axis=1)) + 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lib: SyntheticPairs(lib, PROCESSOR, "rgb", 2), "streams=2 with a modality"),
        (lambda lib: SyntheticPairs(lib, PROCESSOR, "sonar", 2), "thermal, depth, event"),
        (lambda lib: SyntheticPairs(lib, PROCESSOR, samples_per_epoch=0), "samples_per_epoch=0 must be positive"),
        (lambda lib: SyntheticPairs(lib, PROCESSOR, blindness="none"), "expected None or one of night"),
        (lambda lib: SyntheticScene(lib, np.random.default_rng(0), "sonar"), "modality 'sonar'"),
        (lambda lib: SyntheticScene(lib, np.random.default_rng(0), blindness="fog"), "blindness is 'fog'"),
        (lambda lib: synthetic_sequence(lib, 0, length=0), "at least one frame"),
    ],
)
def test_wrong_requests_are_named(library, make, message):
    with pytest.raises(ValueError, match=message):
        make(library)


def test_the_collector_crops_to_the_outline_and_names_licences(tmp_path):
    collector = load("collect_pictures")
    rgba = np.zeros((400, 500, 4), np.uint8)
    rgba[100:300, 50:450] = (200, 30, 40, 255)
    Image.fromarray(rgba).save(tmp_path / "in.png")
    assert collector.save_from(tmp_path / "in.png", collector.save_cutout, tmp_path / "out.png", 160)
    (tmp_path / "not.png").write_bytes(b"no picture")
    assert not collector.save_from(tmp_path / "not.png", collector.save_cutout, tmp_path / "no.png", 160)
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (160, 80) and picture.mode == "RGBA"
    flat = Image.fromarray(np.full((300, 400, 3), 90, np.uint8))
    assert not collector.save_background(flat, tmp_path / "flat.jpg", 640)
    paths = [tmp_path / f"Lake/contents/images/{name}.jpg" for name in ("100x80", "300x200")]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        path.write_bytes(b"x" * len(path.parts) * int(path.name[0]))
    assert collector.largest_of_each(paths) == [paths[1]]


def test_the_collector_finds_pictures_in_resource_files(tmp_path):
    collector = load("collect_pictures")
    code = io.BytesIO()
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(code, "webp")
    path = tmp_path / "activity.rcc"
    path.write_bytes(b"qres" + bytes(20) + code.getvalue() + b"qml" + code.getvalue())
    assert [picture.size for picture in collector.resource_pictures(path)] == [(40, 30), (40, 30)]


def test_crops_agree_with_the_image_processor(library):
    """The window rendered directly is the processor's crop of the frame: same place, same colors of depth."""
    processor = TrackerImageProcessor(search_size=128, search_factor=4.0)
    close = 0
    for scene in scenes(library, 10, modality="depth", blindness="none"):
        scene.noise, scene.jpeg, scene.lowres, scene.blur = 0.0, 0, 1.0, [0, 0]
        x1, y1, x2, y2 = scene.visible_box_xyxy(3.0)
        if min(x2 - x1, y2 - y1) < 8:
            continue
        box = np.array((x1, y1, x2 - x1, y2 - y1))
        rgb, depth = scene.render(3.0, scene.whole_frame())
        expected, crop = processor.crop(processor.stack({"rgb": rgb, "depth": depth}, "depth", 2), box, "search")
        view = View(crop.x1, crop.y1, crop.side, crop.side, 128, 128)
        rgb, depth = scene.render(3.0, view)
        ours = np.dstack((rgb, as_picture(scene, 3.0, view, depth)))
        assert np.abs(ours[..., :3].astype(int) - expected[..., :3]).mean() < 6
        low, high = depth_range(scene, 3.0)
        assert low == 0 and 0 < high <= 10000
        close += np.median(np.abs(ours[..., 3:].astype(int) - expected[..., 3:])) <= 16
    assert close >= 6


def test_clips_of_several_templates_and_search_frames(library):
    pairs = SyntheticPairs(library, PROCESSOR, "event", 2, 8, seed=1, templates=3, searches=2)
    item = pairs[2]
    shapes = {name: tuple(tensor.shape) for name, tensor in item.items()}
    assert shapes == {"template": (3, 2, 3, 64, 64), "search": (2, 2, 3, 128, 128), "labels": (2, 4)}
    times = pairs._times((10.0, 40.0), Draw(np.random.default_rng(0)))
    assert times == sorted(times) and times[0] == 10 and times[-1] == 40 and times[2] <= 20 and times[3] >= 30


class Recorded(SyntheticPairs):
    """Keeps what the last item's crops show."""

    def __getitem__(self, index):
        self.shown = []
        return super().__getitem__(index)

    def _crop(self, scene, time, where):
        self.shown.append((scene, time, where))
        return super()._crop(scene, time, where)


class Asked(DeiTAugmentation):
    """Keeps the last boxes, and the generator as it was."""

    def crop_windows(self, processor, boxes_xywh, frames, templates, rng):
        asked.update(boxes=boxes_xywh, rng=copy.deepcopy(rng))
        return super().crop_windows(processor, boxes_xywh, frames, templates, rng)


asked = {}


def frame_of(scene, time, streams):
    rgb, other = scene.render(time, scene.whole_frame())
    return ALIGNED.stack({"rgb": rgb, scene.modality: rgb if other is None else other}, scene.modality, streams)


@pytest.mark.parametrize(("modality", "streams"), [("rgb", 1), ("thermal", 2)])
def test_aligned_pairs_are_those_of_whole_frames(library, modality, streams):
    """Labels and masks are what LoRAT's augmentation makes of the rendered frames, with the same numbers drawn."""
    augment = Asked(template_grid=4)
    pairs = Recorded(library, ALIGNED, modality, streams, samples_per_epoch=20, seed=2, augment=augment)
    mirrored = 0
    for index in range(20):
        item, boxes, rng = pairs[index], asked["boxes"], asked["rng"]
        images = [frame_of(scene, time, streams) for scene, time, _ in pairs.shown]
        expected = augment(ALIGNED, images, boxes, 1, rng)
        assert {key: (value.shape, value.dtype) for key, value in item.items()} == {
            key: (value.shape, value.dtype) for key, value in expected.items()
        }
        assert torch.equal(item["template_mask"], expected["template_mask"])
        assert torch.equal(item["labels"], expected["labels"])
        where = pairs.shown[1][2]
        x, y, w, h = where.box_to_crop(boxes[1])
        inside = np.clip([x, y, x + w, y + h], 0, 112) / 112
        mirrored += not np.allclose(item["labels"][0], inside[0], atol=1e-6)
        assert item["labels"][2:].numpy() == pytest.approx(inside[2:] - inside[:2], abs=1e-6)
    assert 4 <= mirrored <= 16


@pytest.mark.parametrize(("modality", "streams"), [("rgb", 1), ("thermal", 2), ("depth", 2)])
def test_aligned_crops_agree_with_the_image_processor(library, modality, streams):
    """The part inside the frame, and the mean color round it."""
    pairs = SyntheticPairs(library, ALIGNED, modality, streams, augment=DeiTAugmentation(template_grid=4))
    padded = 0
    for scene in scenes(library, 10, modality=modality, blindness="none"):
        scene.noise, scene.jpeg, scene.lowres, scene.blur = 0.0, 0, 1.0, [0, 0]
        x1, y1, x2, y2 = scene.visible_box_xyxy(3.0)
        if min(x2 - x1, y2 - y1) < 12:
            continue
        expected, where = ALIGNED.crop(frame_of(scene, 3.0, streams), (x1, y1, x2 - x1, y2 - y1), "search")
        difference = np.abs(pairs._crop(scene, 3.0, where) - expected)
        left, top, right, bottom = where.target
        inside = difference[top:bottom, left:right]
        assert inside[..., :3].mean() < 6 and np.median(inside) <= 16
        outside = np.ones((112, 112), bool)
        outside[top:bottom, left:right] = False
        if outside.any():
            padded += 1
            assert np.ptp(difference[outside], axis=0).max() < 1e-3, "one color"
            # a mean over few points; and the range of depth that colors span is a coarse picture's too
            assert difference[outside][:, :3].max() < 6 and difference[outside].max() < 24
    assert padded >= 3


def test_an_augmentation_of_the_other_style_is_refused(library):
    with pytest.raises(ValueError, match=r"'lorat', .* a DeiTAugmentation \(.*--augmentation deit\)"):
        SyntheticPairs(library, ALIGNED)
    with pytest.raises(ValueError, match=r"'ostrack', .* Augmentation .* got a DeiTAugmentation"):
        SyntheticPairs(library, PROCESSOR, augment=DeiTAugmentation())


def test_a_tiny_lorat_trains_on_composed_pairs(folder, tmp_path):
    """Start weights, a step on the whole base, and a step on an adapter of it."""
    load("new_tiny").main(tmp_path / "start", lorat=True)
    common = ["--augmentation", "deit", "--synthetic", folder, "--workers", 0, "--batch-size", 4, "--max-steps", 1,
              "--samples-per-epoch", 4]  # fmt: skip
    steps = [
        ("base", ["--model", tmp_path / "start", "--train-base"]),
        ("adapter", ["--model", tmp_path / "base", "--system", "lorat"]),
    ]
    for name, options in steps:
        options += ["--max-gap", 30, "--output", tmp_path / name]
        trainer = finetune.main([str(part) for part in [*options, *common]])
        assert trainer.progress.step == 1 and trainer.dataset.longest_gap == 30
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    facts = json.loads((tmp_path / "adapter" / "training_facts.json").read_text())
    assert facts["recipe"]["max_gap"] == 30 and not {"sets", "frame_sampler"} & set(facts["recipe"])
    processor = TrackerImageProcessor.from_pretrained(tmp_path / "base")
    assert processor.to_dict() == ALIGNED.to_dict()


def drawn(draw):
    rgba = np.zeros((60, 40, 4), np.uint8)
    rgba[5:55, 8:32] = (200, 90, 40, 255)
    return Bending(draw, Sprite(rgba), 1.0)


def test_a_bent_target_changes_its_outline_smoothly_and_stays_in_its_room():
    widths = []
    for seed in range(8):
        bending = drawn(Draw(np.random.default_rng(seed)))
        outlines = [bending(time).hull for time in (0.0, 0.0, 1.0, 40.0)]
        assert np.array_equal(outlines[0], outlines[1])
        sizes = np.array([hull.max(axis=0) - hull.min(axis=0) for hull in outlines])
        assert np.abs(sizes[2] - sizes[0]).max() <= 4 and sizes.min() > 12
        height, width = bending.sprite.picture.height, bending.sprite.picture.width
        assert all(hull.min() > 0 and (hull.max(axis=0) < (width, height)).all() for hull in outlines)
        widths.append(np.abs(sizes[3] / sizes[0] - 1).max())
    assert np.median(widths) > 0.05


def test_a_gray_camera_has_no_color_and_a_hazy_one_less_contrast(library):
    scene = next(scene for scene in scenes(library, 40) if scene.gray)
    rgb, _ = scene.render(3.0, scene.whole_frame())
    assert np.ptp(rgb, axis=2).max() == 0
    scene.gray, scene.contrast, scene.noise, scene.haze = False, 1.0, 0.0, 100.0
    clear = scene.render(3.0, scene.whole_frame())[0].std()
    scene.contrast = 0.3
    assert scene.render(3.0, scene.whole_frame())[0].std() < 0.5 * clear
    assert 0.15 < np.mean([scene.gray for scene in scenes(library, 60)]) < 0.45


def test_a_poor_second_camera_shows_little_and_only_where_rgb_sees(library):
    assert all(scene.poor == 0 for scene in scenes(library, 12, modality="thermal", blindness="night"))
    seeing = scenes(library, 40, modality="thermal", blindness="none")
    assert 0.15 < np.mean([scene.poor > 0 for scene in seeing]) < 0.6
    shown = {}
    for poor in (0.0, 1.0):
        heat = depth = events = 0.0
        for seed in range(6):
            made = {
                name: SyntheticScene(library, np.random.default_rng(seed), name, "none", (240, 320))
                for name in ("thermal", "depth", "event")
            }
            pictures = {}
            for name, scene in made.items():
                scene.poor = poor
                pictures[name] = scene.render(5.0, scene.whole_frame())[1]
            heat += cv2.GaussianBlur(pictures["thermal"], (0, 0), 6).std() / 6
            depth += (pictures["depth"] > 0).mean() / 6
            events += (pictures["event"].min(axis=2) < 200).mean() / 6
        shown[poor] = np.array((heat, depth, events))
    assert shown[1.0][0] < 0.5 * shown[0.0][0]
    assert shown[0.0][1] > 0.98 > 0.75 > shown[1.0][1]
    assert shown[0.0][2] < 0.15 < 0.3 < shown[1.0][2]


@pytest.mark.parametrize("side", [1, 2, 4, 5])
def test_patches_of_few_pixels_have_a_depth(library, side):
    for scene in scenes(library, 12, modality="depth"):
        x1, y1, x2, y2 = scene.visible_box_xyxy(0.0)
        for shift in (0.0, 0.8):
            view = View(x1 + shift * (x2 - x1), y1, x2 - x1, y2 - y1, side, side)
            assert cameras.render_depth(scene, 0.0, view).shape == (side, side)
