"""From drawn frames to a training sample: the crops and augmentations of the two families of recipes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch

from mmtrackers.processing.alignment import View, as_views
from mmtrackers.processing.crops import AlignedCrop, Crop, aligned_crop, aligned_scale

if TYPE_CHECKING:
    from mmtrackers.processing.image_processing import TrackerImageProcessor

Sample = dict[str, torch.Tensor]
Window = Crop | AlignedCrop
Frames = list[Sequence[View]]
Arrays = Sequence[np.ndarray]
Role = Literal["template", "search"]
Rng = np.random.Generator
SMALLEST_LABEL = 10.0
JITTER_DRAWS = 12
SOLARIZE_FROM = 128
LOST_SCALE = (1.5, 2.5)


def as_sample(processor: "TrackerImageProcessor", crops: Arrays, labels: Arrays, templates: int) -> Sample:
    """Crops uint8 `[s, s, 3 S]`, the `templates` first, and for each search crop its label `[4]` (x, y, w, h in
    fractions), as a training item: `template` uint8 `[T, S, 3, h, w]`, `search` uint8 `[S, 3, H, W]` and `labels`
    float32 `[4]`, both with an axis of frames before them where there is more than one search crop."""
    search = processor.to_tensor(crops[templates:])
    boxes = torch.as_tensor(np.asarray(labels, dtype=np.float32))
    if len(search) == 1:
        search, boxes = search[0], boxes[0]
    return {"template": processor.to_tensor(crops[:templates]), "search": search, "labels": boxes}


class TrainingAugmentation:
    """From frames to a training item: where the crops lie, and what is changed in them. Each family has its own."""

    def __call__(
        self, processor: "TrackerImageProcessor", images: Sequence[np.ndarray | Sequence[View]],
        boxes_xywh: list[np.ndarray], templates: int, rng: Rng,
    ) -> Sample | None:
        """Frames (as the processor's `stack` or `views` gives them) and their boxes `[4]` in pixels, templates first,
        to a training item; None if a crop would show nothing. `rng` is the only source of chance."""
        frames, boxes_xywh = self.joint([as_views(image) for image in images], boxes_xywh, rng)
        windows = self.crop_windows(processor, boxes_xywh, [views[0].size for views in frames], templates, rng)
        if windows is None:
            return None
        crops = [processor.cut(views, where) for views, where in zip(frames, windows, strict=True)]
        return self.apply(processor, crops, windows, boxes_xywh, templates, rng)

    def joint(self, frames: Frames, boxes_xywh: list[np.ndarray], rng: Rng) -> tuple[Frames, list[np.ndarray]]:
        """Changes of whole frames and their boxes, the same for all of them; none unless a family has some."""
        return frames, boxes_xywh

    def crop_windows(
        self, processor: "TrackerImageProcessor", boxes_xywh: Arrays, frames: Sequence[tuple[int, int]],
        templates: int, rng: Rng,
    ) -> list[Window] | None:
        """Where the crops round boxes are taken, in frames of (height, width); else as for a call."""
        windows = []
        for index, (box, frame) in enumerate(zip(boxes_xywh, frames, strict=True)):
            where = self.window(processor, box, frame, "template" if index < templates else "search", rng)
            if where is None:
                return None
            windows.append(where)
        return windows

    def window(
        self, processor: "TrackerImageProcessor", box_xywh: np.ndarray, frame: tuple[int, int], role: Role, rng: Rng
    ) -> Window | None:
        """Where one crop is taken."""
        raise NotImplementedError

    def apply(
        self, processor: "TrackerImageProcessor", crops: Arrays, windows: Sequence[Window], boxes_xywh: Arrays,
        templates: int, rng: Rng,
    ) -> Sample:
        """Crops `[s, s, 3 S]` of 0 to 255, where they were taken, and the boxes `[4]` (pixels) of their frames, to a
        training item."""
        raise NotImplementedError


@dataclass(frozen=True)
class Augmentation(TrainingAugmentation):
    """Jitter, gray, mirror and brightness for templates and search frames: the OSTrack family's.

    The defaults are those of botaoye/OSTrack (lib/train/base_functions.py, data/processing.py), which the ViPT family
    took over. Its step to gray fails on six channels and the sample is drawn anew, so that with two streams there
    never is a gray sample: here it acts on three channels only.

    Args:
        gray (`float`): probability that all frames lose their color (three channels only).
        flip (`float`): probability that all frames are mirrored before the crop.
        size_jitter (`float`): the search region's sides are multiplied by exp(size_jitter * n), n normal, each alone.
        center_jitter (`float`): its center moves by up to half of this times sqrt(w h) on each axis.
        lost_crops (`float`): share of search regions that are 1.5 to 2.5 times too large or too small besides, as a
            tracker takes them that is about to lose its target.
        brightness (`float`): each crop is multiplied by a factor from [1 - brightness, 1 + brightness].
        crop_flip (`float`): probability that a crop is mirrored, drawn for template and search apart.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> box = Augmentation().jitter(np.array([10.0, 10, 20, 20]), rng)
        >>> box.shape, bool((box[2:] > 0).all())
        ((4,), True)
    """

    gray: float = 0.05
    flip: float = 0.5
    size_jitter: float = 0.25
    center_jitter: float = 3.0
    lost_crops: float = 0.0
    brightness: float = 0.2
    crop_flip: float = 0.5

    def joint(self, frames: Frames, boxes_xywh: list[np.ndarray], rng: Rng) -> tuple[Frames, list[np.ndarray]]:
        """Gray and mirror; the mirror takes a corner x to (W - 1) - x as the official code does."""
        gray, flip = rng.random(2) < (self.gray, self.flip)
        if gray and all(sum(view.picture.shape[2] for view in views) == 3 for views in frames):
            frames = [[replace(view, picture=_gray(view.picture)) for view in views] for views in frames]
        if flip:
            boxes_xywh = [np.array([views[0].size[1] - 1 - x - w, y, w, h])
                          for views, (x, y, w, h) in zip(frames, boxes_xywh, strict=True)]  # fmt: skip
            # only what crops take of them is copied
            frames = [[replace(view, picture=view.picture[:, ::-1]) for view in views] for views in frames]
        return frames, boxes_xywh

    def window(
        self, processor: "TrackerImageProcessor", box_xywh: np.ndarray, frame: tuple[int, int], role: Role, rng: Rng
    ) -> Crop | None:
        """None where the crop is less than a pixel wide, or does not touch the frame."""
        x, y, w, h = region = box_xywh if role == "template" else self.jitter(box_xywh, rng)
        side = math.ceil(math.sqrt(w * h) * getattr(processor, f"{role}_factor"))
        left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
        height, width = frame
        if side < 1 or not (-side < left < width - 1 and -side < top < height - 1):
            return None
        return processor.locate(region, role)

    def jitter(self, box_xywh: np.ndarray, rng: Rng) -> np.ndarray:
        """Move and scale a box [4] (pixels): the place where the search crop is taken."""
        size = box_xywh[2:] * np.exp(self.size_jitter * rng.standard_normal(2))
        if self.lost_crops and rng.random() < self.lost_crops:
            size = size * rng.uniform(*LOST_SCALE) ** rng.choice((-1, 1))
        shift = np.sqrt(size.prod()) * self.center_jitter * (rng.random(2) - 0.5)
        return np.concatenate([box_xywh[:2] + box_xywh[2:] / 2 + shift - size / 2, size])

    def apply(
        self, processor: "TrackerImageProcessor", crops: Arrays, windows: Sequence[Window], boxes_xywh: Arrays,
        templates: int, rng: Rng,
    ) -> Sample:
        """Brightness and mirror."""
        crops = list(crops)
        labels = [processor.box_to_crop(box, where) for box, where in zip(boxes_xywh, windows, strict=True)]
        for index, crop in enumerate(crops):
            factor, flip = rng.uniform(1 - self.brightness, 1 + self.brightness), rng.random() < self.crop_flip
            if self.brightness:
                crop = cv2.convertScaleAbs(crop, alpha=factor)
            if flip:
                crop, labels[index] = cv2.flip(crop, 1), _mirrored(labels[index])
            crops[index] = crop
        return as_sample(processor, crops, labels[templates:], templates)


@dataclass(frozen=True)
class DeiTAugmentation(TrainingAugmentation):
    """Jittered crops, mirror, colors, and one of gray, solarize and blur: LoRAT's and SPMTrack's.

    After LitingLin/LoRAT (trackit/data/methods/siamese_tracker_train): mirror and colors are drawn for each crop,
    one of the three changes of DeiT III (arXiv 2204.07118) for all crops together. Needs a processor of the "lorat"
    crop style; its items have `template_mask` int64 `[T, g, g]` besides.

    Args:
        size_jitter (`float`): search crop: each axis is scaled by exp(-size_jitter * n), n normal.
        center_jitter (`float`): it moves by up to this times the box's mean side, on each axis.
        color (`float`): brightness, contrast and saturation change by factors from [1 - color, 1 + color].
        flip (`float`): probability that a crop is mirrored.
        blur (two `float`): smallest and largest standard deviation of the blur, in pixels.
        template_grid (`int`): cells along a template's side; of the template mask.
    """

    size_jitter: float = 0.25
    center_jitter: float = 3.0
    color: float = 0.4
    flip: float = 0.5
    blur: tuple[float, float] = (0.1, 2.0)
    template_grid: int = 8

    def window(
        self, processor: "TrackerImageProcessor", box_xywh: np.ndarray, frame: tuple[int, int], role: Role, rng: Rng
    ) -> AlignedCrop | None:
        """None where 12 draws leave less than 10 pixels of the target in a search crop."""
        if role == "template":
            return processor.locate(box_xywh, role, frame)
        size, factor = processor.search_size, processor.search_factor
        for _ in range(JITTER_DRAWS):
            scale = aligned_scale(box_xywh, factor, size) / np.exp(self.size_jitter * rng.standard_normal(2))
            reach = self.center_jitter * (box_xywh[2:] * scale).sum() / 2
            where = aligned_crop(box_xywh, factor, size, *frame, scale=scale, shift=rng.uniform(-1, 1, 2) * reach)
            if (inside(where.box_to_crop(box_xywh), where.size)[2:] >= SMALLEST_LABEL).all():
                return where
        return None

    def apply(
        self, processor: "TrackerImageProcessor", crops: Arrays, windows: Sequence[Window], boxes_xywh: Arrays,
        templates: int, rng: Rng,
    ) -> Sample:
        """Mirror, colors and the change that all crops share; labels are cut to the crop."""
        crops = list(crops)
        masks = processor.template_mask(windows[:templates], self.template_grid)
        labels = [inside(where.box_to_crop(box), where.size) / where.size
                  for where, box in zip(windows, boxes_xywh, strict=True)]  # fmt: skip
        for index in np.flatnonzero(rng.random(len(crops)) < self.flip):
            crops[index], labels[index] = crops[index][:, ::-1], _mirrored(labels[index])
            if index < templates:
                masks[index] = masks[index].flip(-1)
        change = self._common_change(rng)
        crops = [change(np.rint(self.colors(crop, rng)).astype(np.uint8)) for crop in crops]
        return as_sample(processor, crops, labels[templates:], templates) | {"template_mask": masks}

    def colors(self, crop: np.ndarray, rng: Rng) -> np.ndarray:
        """Brightness, contrast and saturation in random order; float32 `[s, s, 3 S]`, 0 to 255."""
        factors, order = rng.uniform(1 - self.color, 1 + self.color, 3), rng.permutation(3)

        def blend(picture: np.ndarray) -> np.ndarray:
            for step in order:
                picture = _blend(picture, int(step), float(factors[step]))
            return picture

        return _per_stream(crop.astype(np.float32), blend)

    def _common_change(self, rng: Rng) -> Callable[[np.ndarray], np.ndarray]:
        """Gray, solarize or blur, as a function of a uint8 crop."""
        which, deviation = rng.integers(3), rng.uniform(*self.blur)
        if which == 0:
            return lambda crop: _per_stream(crop, _gray)
        if which == 1:
            levels = np.arange(256, dtype=np.uint8)
            return lambda crop: cv2.LUT(crop, np.where(levels >= SOLARIZE_FROM, 255 - levels, levels))
        return lambda crop: cv2.GaussianBlur(crop, (0, 0), deviation)


def _mirrored(box_xywh: np.ndarray) -> np.ndarray:
    """A box in fractions of a crop that is mirrored: a corner x goes to 1 - x."""
    x, y, w, h = box_xywh
    return np.array([1 - x - w, y, w, h])


def inside(boxes_xywh: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The parts of boxes `[..., 4]` that lie inside a picture of (width, height), or a square."""
    first = boxes_xywh[..., :2].clip(0, size)
    return np.concatenate((first, (boxes_xywh[..., :2] + boxes_xywh[..., 2:]).clip(0, size) - first), axis=-1)


def _gray(picture: np.ndarray) -> np.ndarray:
    """A picture `[h, w, 3]` without its color."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _blend(picture: np.ndarray, step: int, factor: float) -> np.ndarray:
    """Brightness (0), contrast (1) or saturation (2) of a float32 picture times a factor, cut to 0..255."""
    if step == 2:
        mixed = cv2.addWeighted(picture, factor, _gray(picture), 1 - factor, 0.0)
    else:
        mixed = picture * np.float32(factor)
        if step == 1:
            mixed += np.float32((1 - factor) * cv2.mean(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[0])
    return np.clip(mixed, 0, 255, out=mixed)


def _per_stream(crop: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    streams = np.split(crop, crop.shape[2] // 3, axis=2)
    return np.concatenate([change(np.ascontiguousarray(stream)) for stream in streams], axis=2)


def fitting(augment: TrainingAugmentation | None, processor: "TrackerImageProcessor") -> TrainingAugmentation:
    """The augmentation, by default the OSTrack family's; ValueError where it is for crops of another style."""
    augment = Augmentation() if augment is None else augment
    kind, option = (DeiTAugmentation, "deit") if processor.crop_style == "lorat" else (Augmentation, "ostrack")
    if not isinstance(augment, kind):
        raise ValueError(f"the processor's crop style is {processor.crop_style!r}, whose crops are changed by a "
                         f"{kind.__name__} (examples/finetune.py: --augmentation {option}); got a "
                         f"{type(augment).__name__}")  # fmt: skip
    return augment
