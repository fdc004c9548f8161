"""Training pairs drawn from annotated sequences, and their augmentation."""

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch

from mmtrackers.data import Sequence, open_sequence
from mmtrackers.processing.alignment import as_views
from mmtrackers.processing.crops import Crop
from mmtrackers.processing.image_processing import TrackerImageProcessor
from mmtrackers.training import Augmentation, PairDataset
from mmtrackers.training.augment import DeiTAugmentation
from mmtrackers.training.frame_samplers import CausalSampler, IntervalSampler, OrderedSampler
from mmtrackers.training.sampling import balanced_plan, mixture


@pytest.fixture(scope="module")
def processor() -> TrackerImageProcessor:
    return TrackerImageProcessor(template_size=32, search_size=64)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """30 RGB-T frames: a bright square that moves to the right, on gray."""
    root = tmp_path_factory.mktemp("scene")
    (root / "rgb").mkdir()
    (root / "thermal").mkdir()
    rows = []
    for i in range(30):
        image = np.full((96, 128, 3), 90, np.uint8)
        image[40:60, 20 + 2 * i : 40 + 2 * i] = (200, 180, 160)
        assert cv2.imwrite(str(root / "rgb" / f"{i}.png"), image)
        assert cv2.imwrite(str(root / "thermal" / f"{i}.png"), image[..., 0])
        rows.append(f"{20 + 2 * i},40,20,20\n")
    (root / "groundtruth.txt").write_text("".join(rows))
    return root


def test_draw_pair_follows_the_causal_rule():
    rng = np.random.default_rng(0)
    visible = np.array([0, 1, 2, 150, 400, 700])
    pairs = {(z, x) for _ in range(400) for (z,), (x,) in [CausalSampler()(visible, 701, rng)]}
    # The first frames never see 400 or 700: they are too far; from 150 the gap must grow, as it must from 400.
    assert {(0, 1), (0, 2), (0, 150), (1, 2), (1, 150), (2, 150)} == {p for p in pairs if p[1] <= 150}
    assert all(template in (150, 400) for template, search in pairs if search > 150)
    assert all(template < search for template, search in pairs)


@pytest.mark.parametrize(("modality", "streams"), [("rgb", 1), ("thermal", 2)])
def test_pairs(scene, processor, modality, streams):
    pairs = PairDataset([open_sequence(scene)], processor, modality, streams, samples_per_epoch=40, seed=3)
    for index in range(40):
        item = pairs[index]
        assert item["template"].shape == (1, streams, 3, 32, 32) and item["template"].dtype == torch.uint8
        assert item["search"].shape == (streams, 3, 64, 64) and item["search"].dtype == torch.uint8
        assert item["labels"].shape == (4,) and item["labels"].dtype == torch.float32
        # The label lies on the bright square, whatever mirrored or moved it (gray: 90 * 1.2 = 108 < 160 * 0.8 = 128).
        x, y, w, h = (item["labels"] * 64).tolist()
        bright = (item["search"][0, 2] > 118).nonzero().float()
        if 2 < x < 60 - w and 2 < y < 60 - h:
            top, left = bright.min(0).values.tolist()
            bottom, right = bright.max(0).values.tolist()
            np.testing.assert_allclose([left, top, right + 1, bottom + 1], [x, y, x + w, y + h], atol=2.5)


def test_pairs_depend_on_seed_epoch_and_index_only(scene, processor):
    def item(seed: int = 1, epoch: int = 0, index: int = 5) -> torch.Tensor:
        pairs = PairDataset([open_sequence(scene)], processor, "thermal", 2, 10, seed)
        pairs.set_epoch(epoch)
        return pairs[index]["labels"]

    assert torch.equal(item(), item())
    others = [item(seed=2), item(epoch=1), item(index=6)]
    assert all(not torch.equal(item(), other) for other in others)


def test_living_workers_see_the_new_epoch(scene, processor):
    pairs = PairDataset([open_sequence(scene)], processor, "rgb", 1, 4, seed=0)
    loader = torch.utils.data.DataLoader(pairs, batch_size=4, num_workers=1, persistent_workers=True)
    seen = []
    for epoch in range(2):
        pairs.set_epoch(epoch)
        seen.append(next(iter(loader))["labels"])
        assert torch.equal(seen[-1], torch.stack([pairs[index]["labels"] for index in range(4)]))
    assert not torch.equal(*seen)


def test_unreadable_frames_are_named_counted_and_redrawn(scene, processor, tmp_path, caplog):
    for stream in ("rgb", "thermal"):
        for file in (scene / stream).iterdir():
            (tmp_path / stream).mkdir(exist_ok=True)
            (tmp_path / stream / file.name).write_bytes(file.read_bytes())
    (tmp_path / "groundtruth.txt").write_text((scene / "groundtruth.txt").read_text())
    (tmp_path / "thermal" / "7.png").write_bytes(b"")
    pairs = PairDataset([open_sequence(tmp_path)], processor, "thermal", 2, 60, seed=0)
    assert len([pairs[index] for index in range(60)]) == 60
    assert len(pairs.unreadable) == 1 and pairs.unreadable.total() > 1
    assert "frame 7: the image" in caplog.text and "7.png is empty" in caplog.text and len(caplog.records) == 1
    pairs = PairDataset([open_sequence(tmp_path)], processor, "rgb", 1, 60, seed=0)
    assert [pairs[index] for index in range(60)] and not pairs.unreadable

    for file in (tmp_path / "rgb").iterdir():
        file.write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"50 samples in a row cannot be used \(50 unreadable.*is empty"):
        pairs[0]


def test_crops_outside_the_image_are_redrawn(scene, processor):
    sequence = open_sequence(scene).rgb_only()
    sequence.boxes_xywh[:] = (5000, 5000, 10, 10)
    with pytest.raises(RuntimeError, match=r"50 samples in a row.*a crop is empty"):
        PairDataset([sequence], processor, "rgb", 1, 10, seed=0)[0]


def test_pairs_refuse_what_they_cannot_train_on(scene, processor, caplog):
    good = open_sequence(scene)
    short = Sequence("tiny", {"rgb": [Path("1.jpg")] * 19}, np.ones((19, 4)), np.ones(19, bool))
    hidden = Sequence("hidden", {"rgb": [Path("1.jpg")] * 30}, np.ones((30, 4)), np.arange(30) < 4)
    for sequences in ([good, short], [good, hidden]):
        name = sequences[1].name
        message = rf"too short: '{name}' \(\d+ frames, \d+ with a usable box\).*skip_short"
        with pytest.raises(ValueError, match=message):
            PairDataset(sequences, processor, "rgb", 1)
        assert len(PairDataset(sequences, processor, "rgb", 1, 7, skip_short=True)) == 7
        assert f"'{name}'" in caplog.text
    for sequences, modality, streams, message in (
        ([good], "depth", 2, "has thermal as its second stream, the tracker takes depth"),
        ([good], "thermal", 1, "expected 1 with 'rgb'"),
        ([], "rgb", 1, "no sequences to train on"),
    ):
        with pytest.raises(ValueError, match=message):
            PairDataset(sequences, processor, modality, streams)


@pytest.mark.parametrize(
    ("draw", "leading"), [(CausalSampler(3, 2), (3, 2)), (OrderedSampler(2, 3), (2, 3)), (CausalSampler(2, 1), (2,))]
)
def test_clips(scene, processor, draw, leading):
    pairs = PairDataset([open_sequence(scene)], processor, "thermal", 2, 10, seed=3, frame_sampler=draw)
    item = pairs[4]
    frames = leading[1:]
    assert item["template"].shape == (leading[0], 2, 3, 32, 32)
    assert item["search"].shape == (*frames, 2, 3, 64, 64) and item["labels"].shape == (*frames, 4)
    assert torch.equal(item["search"], pairs[4]["search"])


def test_samples_in_lorats_style(scene):
    """Its crops, masks and labels; the bright square stays under its label whatever was done to the colors."""
    processor = TrackerImageProcessor(crop_style="lorat", template_size=32, search_size=64, search_factor=2.0)
    augment = DeiTAugmentation(template_grid=8)
    pairs = PairDataset(
        [open_sequence(scene)], processor, "rgb", 1, 60, augment=augment, frame_sampler=IntervalSampler(10), seed=5
    )
    for index in range(60):
        item = pairs[index]
        assert item["template_mask"].shape == (1, 8, 8) and item["template_mask"].float().mean() > 0.1
        x, y, w, h = (item["labels"] * 64).tolist()
        assert x >= 0 and y >= 0 and x + w <= 64.001 and y + h <= 64.001 and min(w, h) >= 10
        gray = item["search"][0].float().mean(0)
        inside = gray[int(y) + 3 : int(y + h) - 3, int(x) + 3 : int(x + w) - 3]
        assert inside.std() < 3  # one color under the label
        outside = gray.clone()
        outside[max(0, int(y) - 3) : int(y + h) + 4, max(0, int(x) - 3) : int(x + w) + 4] = torch.nan
        assert abs(outside.nanmedian() - inside.median()) > 3


class Seen(DeiTAugmentation):
    """Notes the boxes that crops are made of."""

    boxes: ClassVar[list[np.ndarray]] = []

    def __call__(self, processor, images, boxes_xywh, templates, rng):
        self.boxes.extend(boxes_xywh)
        return super().__call__(processor, images, boxes_xywh, templates, rng)


def test_data_of_lorats_style_are_cleaned(scene):
    """Boxes are cut to the picture, and those outside it are never drawn; other styles keep them all."""
    sequence = open_sequence(scene)
    sequence.boxes_xywh[:10] = [-60, 40, 20, 20]
    sequence.boxes_xywh[10:14] = [-10, 40, 20, 20]
    sequence.boxes_xywh[14] = [20, 96, 20, 20]
    Seen.boxes.clear()
    lorat = TrackerImageProcessor(crop_style="lorat", template_size=32, search_size=64, search_factor=2.0)
    pairs = PairDataset([sequence], lorat, "rgb", 1, 60, augment=Seen(), frame_sampler=IntervalSampler(30))
    assert all(pairs[index]["template_mask"].any() for index in range(60))
    seen = {tuple(box.tolist()) for box in Seen.boxes}
    assert (0.0, 40.0, 10.0, 20.0) in seen and len(seen) == 16 and min(box[2] * box[3] for box in seen) == 200
    assert pairs.unreadable.total() == 0
    ostrack = TrackerImageProcessor(template_size=32, search_size=64)
    drawn = PairDataset([sequence], ostrack, "rgb", 1, 60, frame_sampler=IntervalSampler(30))
    assert any("templates [3]" in drawn.describe(index) for index in range(60))
    sequence.boxes_xywh[:, 0] = 500
    with pytest.raises(RuntimeError, match="the box lies in the picture in 0 frames, at least 1 are needed"):
        pairs[0]


@pytest.mark.parametrize(("w", "h"), [(110, 2), (2, 90), (128, 1)])
def test_extreme_aspect_ratios(scene, processor, w, h):
    sequence = open_sequence(scene)
    sequence.boxes_xywh[:] = [4, 3, w, h]
    pairs = PairDataset([sequence], processor, "thermal", 2, 20)
    for index in range(20):
        item = pairs[index]
        assert item["labels"].isfinite().all() and (item["labels"][2:] > 0).all()
        assert item["search"].float().std() > 0
    # with crops of one size LoRAT's recipe leaves out what is thinner than 10 pixels of the crop, and says so
    lorat = TrackerImageProcessor(crop_style="lorat", template_size=32, search_size=64, search_factor=2.0)
    pairs = PairDataset([sequence], lorat, "rgb", 1, 20, augment=DeiTAugmentation())
    with pytest.raises(RuntimeError, match=r"samples in a row cannot be used .*a crop is empty"):
        pairs[0]


def test_blank_frames_of_the_second_stream(scene, processor, tmp_path):
    for i in range(30):
        (tmp_path / "rgb").mkdir(exist_ok=True)
        (tmp_path / "rgb" / f"{i}.png").write_bytes((scene / "rgb" / f"{i}.png").read_bytes())
        (tmp_path / "event").mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "event" / f"{i}.png"), np.zeros((96, 128, 3), np.uint8))
    (tmp_path / "groundtruth.txt").write_text((scene / "groundtruth.txt").read_text())
    item = PairDataset([open_sequence(tmp_path)], processor, "event", 2, 4)[0]
    assert item["search"][0].any() and not item["search"][1].any()


def test_a_balanced_plan_gives_every_set_and_sequence_its_share():
    # sets of 3, 40 and 1,000 sequences, the second with twice the weight, and one that is never drawn
    sizes, weights = [3, 40, 1000, 5], np.array([1, 2, 1, 0]) / 4
    chances, of_set = np.repeat(weights / sizes, sizes), np.repeat(range(4), sizes)
    plans = [balanced_plan(chances, 400, np.random.default_rng((7, epoch))) for epoch in range(3)]
    for plan in plans:
        counts = np.bincount(plan, minlength=len(chances))
        assert np.bincount(of_set, counts).tolist() == [100, 200, 100, 0]
        assert (np.abs(counts - 400 * chances) < 1).all()
        assert len(set(of_set[plan[:20]])) > 1  # sets are shuffled together
    assert not np.array_equal(np.sort(plans[0]), np.sort(plans[1]))  # others of the large set
    assert np.array_equal(plans[2], balanced_plan(chances, 400, np.random.default_rng((7, 2))))


def test_balanced_pairs(scene, processor):
    sequences = [open_sequence(scene) for _ in range(7)]
    for number, sequence in enumerate(sequences):
        sequence.name = str(number)

    def names(epoch: int, seed: int = 0) -> list[str]:
        pairs = PairDataset(sequences, processor, "thermal", 2, 24, seed, balanced=True)
        pairs.set_epoch(epoch)
        return [pairs.describe(index).partition(":")[0] for index in range(24)]

    first = names(0)
    assert sorted(first.count(name) for name in set(first)) == [3, 3, 3, 3, 4, 4, 4]
    assert first == names(0) and first != names(1) and first != names(0, seed=1)
    pairs = PairDataset(sequences, processor, "thermal", 2, 24, balanced=True)
    pairs[0]
    pairs.set_epoch(1)  # a plan that has been made is made anew
    assert [pairs.describe(index).partition(":")[0] for index in range(24)] == names(1)


def test_mixture_gives_each_set_its_weight(scene, processor):
    sequence = open_sequence(scene)
    sequences, chances = mixture([[sequence] * 3, [sequence]], [1, 3])
    assert len(sequences) == 4 and chances == pytest.approx([1 / 3, 1 / 3, 1 / 3, 3])
    pairs = PairDataset([sequence] * 4, processor, "thermal", 2, 10, seed=0, chances=chances)
    drawn = np.searchsorted(pairs._ladder, np.random.default_rng(0).random(4000), side="right")
    assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx([1 / 12, 1 / 12, 1 / 12, 3 / 4], abs=0.02)
    for sets, weights in (([[sequence], []], [1, 1]), ([[sequence]], [1, 1]), ([[sequence]], [0])):
        with pytest.raises(ValueError, match="a mixture needs a positive weight for every set"):
            mixture(sets, weights)
    with pytest.raises(ValueError, match="2 chances for 1 sequences"):
        PairDataset([sequence], processor, "thermal", 2, 10, chances=[1, 2])


def test_each_sequence_may_bring_its_own_second_stream(scene, processor):
    """One tracker for all modalities: nothing is refused."""
    thermal, event = open_sequence(scene), open_sequence(scene)
    event.frames = {"rgb": event.frames["rgb"], "event": event.frames["rgb"]}
    pairs = PairDataset([thermal, event], processor, "any", 2, 20, seed=0)
    same = [torch.equal(item["template"][0, 0], item["template"][0, 1]) for item in map(pairs.__getitem__, range(20))]
    assert 3 < sum(same) < 17


# Augmentation


@pytest.mark.parametrize("style,augment", [("ostrack", Augmentation(flip=0.5)), ("lorat", DeiTAugmentation())])
def test_samples_of_streams_are_those_of_joined_frames(style, augment):
    rng = np.random.default_rng(0)
    frames = [{name: rng.integers(0, 255, (90, 121, 3), np.uint8) for name in ("rgb", "event")} for _ in range(2)]
    boxes = [np.array([40.0, 30, 33, 27]), np.array([90.0, 60, 30, 30])]  # the second leaves the frame
    processor = TrackerImageProcessor(crop_style=style, template_size=32, search_size=64)
    for seed in range(6):
        joined, apart = (
            augment(processor, [make(frame, "event", 2) for frame in frames], boxes, 1, np.random.default_rng(seed))
            for make in (processor.stack, processor.views)
        )
        assert all(torch.equal(joined[name], apart[name]) for name in joined)


def test_joint_step_mirrors_both_frames_with_one_roll():
    rng = np.random.default_rng(0)
    images = [np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6), np.zeros((3, 9, 6), np.uint8)]
    views = [as_views(image) for image in images]
    out, boxes = Augmentation(flip=1.0).joint(views, [np.array([1.0, 0, 2, 1]), np.array([0.0, 1, 3, 1])], rng)
    np.testing.assert_array_equal(out[0][0].picture, images[0][:, ::-1])
    assert boxes[0].tolist() == [5 - 1 - 3, 0, 2, 1] and boxes[1].tolist() == [9 - 1 - 3, 1, 3, 1]
    rolls = [Augmentation().joint(views[:1], [np.zeros(4)], rng)[0][0] is views[0] for _ in range(400)]
    assert 150 < sum(rolls) < 250


def test_lost_crops_are_far_too_large_or_too_small():
    box, rng = np.array([10.0, 10, 40, 40]), np.random.default_rng(0)
    augment = Augmentation(size_jitter=0.0, lost_crops=0.5)
    scales = np.array([augment.jitter(box, rng)[2] / 40 for _ in range(400)])
    wrong = np.abs(np.log(scales[scales != 1]))
    assert 0.4 < len(wrong) / 400 < 0.6 and np.log(1.5) <= wrong.min() and wrong.max() <= np.log(2.5)
    assert 0.4 < (scales[scales != 1] > 1).mean() < 0.6


def test_gray_acts_on_three_channels_only():
    color = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    rng, always = np.random.default_rng(0), Augmentation(gray=1.0, flip=0.0)
    one, two = as_views(color), [*as_views(color), *as_views(color)]
    out, _ = always.joint([one, one], [np.zeros(4)] * 2, rng)
    assert [views[0].picture[0, 0].tolist() for views in out] == [[76, 76, 76]] * 2
    assert always.joint([two], [np.zeros(4)], rng)[0][0] is two
    gray = sum(Augmentation(flip=0.0).joint([one], [np.zeros(4)], rng)[0][0] is not one for _ in range(2000))
    assert 60 < gray < 140


def test_jitter_has_the_published_spread():
    rng, box = np.random.default_rng(0), np.array([100.0, 50, 40, 10])
    jittered = np.stack([Augmentation().jitter(box, rng) for _ in range(4000)])
    assert np.std(np.log(jittered[:, 2] / 40)) == pytest.approx(0.25, rel=0.05)
    assert np.corrcoef(np.log(jittered[:, 2]), np.log(jittered[:, 3]))[0, 1] == pytest.approx(0, abs=0.05)
    shift = (jittered[:, :2] + jittered[:, 2:] / 2 - [120, 55]) / np.sqrt(jittered[:, 2:].prod(1))[:, None]
    assert abs(shift).max() <= 1.5 and np.std(shift) == pytest.approx(3 / np.sqrt(12), rel=0.05)


def test_crop_step():
    image, rng = np.full((4, 4, 6), 100, np.uint8), np.random.default_rng(0)
    image[:, 0] = 250

    def changed(augment):
        where = Crop(0, 0, 4, 4, box_xywh=np.array([0.4, 0.8, 1.2, 1.6]))
        item = augment.apply(TrackerImageProcessor(), [image] * 2, [where] * 2, [where.box_xywh] * 2, 1, rng)
        return item["search"].numpy(), item["labels"].numpy()

    values = set()
    for _ in range(300):
        search, box = changed(Augmentation())
        mirrored = search[0, 0, 0, 3] > search[0, 0, 0, 0]
        assert box.tolist() == pytest.approx([0.475 if mirrored else 0.225, 0.175, 0.3, 0.4])
        assert len(set(search[..., 1:3].ravel())) == 1
        values.add(int(search[0, 0, 0, 1]))
    assert min(values) in (80, 81, 82) and max(values) in (118, 119, 120)
    still, _ = changed(Augmentation(brightness=0.0, crop_flip=0.0))
    assert np.array_equal(still, TrackerImageProcessor().to_tensor([image])[0].numpy())
