"""From drawn frames to a training sample: the crops and augmentations of the two families of recipes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from mmtrackers.processing.crops import (
    AlignedCrop,
    Crop,
    aligned_crop,
    aligned_scale,
    cut_aligned,
    cut_square,
    mean_color,
)

if TYPE_CHECKING:
    from mmtrackers.processing.image_processing import TrackerImageProcessor

Sample = dict[str, torch.Tensor]
SMALLEST_LABEL = 10.0
JITTER_DRAWS = 12
SOLARIZE_FROM = 128
LOST_SCALE = (1.5, 2.5)


def as_sample(
    processor: "TrackerImageProcessor", crops: Sequence[np.ndarray], labels: Sequence[np.ndarray], templates: int
) -> Sample:
    """Crops (templates first) and the labels of the others as the tensors of a training item.

    Args:
        crops (list of `np.ndarray` uint8 `[s, s, 3 S]`): `templates` of one size, then search crops of another.
        labels (list of `np.ndarray` `[4]`): x, y, w, h in fractions of each search crop.
        templates (`int`): how many there are.

    Returns:
        `dict`: `template` uint8 `[T, S, 3, h, w]`; `search` uint8 `[S, 3, H, W]` and `labels` float32 `[4]`, both with
        an axis of frames before them where there is more than one search crop.
    """
    search = processor.to_tensor(crops[templates:])
    boxes = torch.as_tensor(np.asarray(labels, dtype=np.float32))
    single = len(search) == 1
    return {
        "template": processor.to_tensor(crops[:templates]),
        "search": search[0] if single else search,
        "labels": boxes[0] if single else boxes,
    }


@dataclass(frozen=True)
class Augmentation:
    """Jitter, grey, mirror and brightness for templates and search frames: the OSTrack family's.

    The defaults are those of botaoye/OSTrack (lib/train/base_functions.py, data/processing.py), which the ViPT family
    took over. Its step to grey fails on six channels and the sample is drawn anew, so that with two streams there
    never is a grey sample: here it acts on three channels only.

    Args:
        grey (`float`): probability that both frames lose their color (three channels only).
        flip (`float`): probability that both frames are mirrored before the crop.
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

    grey: float = 0.05
    flip: float = 0.5
    size_jitter: float = 0.25
    center_jitter: float = 3.0
    lost_crops: float = 0.0
    brightness: float = 0.2
    crop_flip: float = 0.5

    def __call__(
        self,
        processor: "TrackerImageProcessor",
        images: list[np.ndarray],
        boxes_xywh: list[np.ndarray],
        templates: int,
        rng: np.random.Generator,
    ) -> Sample | None:
        """Frames and their boxes, templates first, to a training item; None if a crop would hold no pixel.

        Args:
            processor ([`TrackerImageProcessor`]): its sizes and factors are used.
            images (`list` of `np.ndarray`): `[H, W, 3 S]` uint8 each.
            boxes_xywh (`list` of `np.ndarray`): `[4]` pixels each.
            templates (`int`): how many of them are templates.
            rng (`np.random.Generator`): the only source of chance.
        """
        images, boxes = self.joint(images, boxes_xywh, rng)
        windows = self.crop_windows(processor, boxes, [image.shape[:2] for image in images], templates, rng)
        if windows is None:
            return None
        crops = [cut_square(image, where) for image, where in zip(images, windows, strict=True)]
        return self.apply(processor, crops, windows, boxes, templates, rng)

    def crop_windows(
        self,
        processor: "TrackerImageProcessor",
        boxes_xywh: Sequence[np.ndarray],
        frames: Sequence[tuple[int, int]],
        templates: int,
        rng: np.random.Generator,
    ) -> list[Crop] | None:
        """Where the crops round boxes `[4]` (pixels) are taken, templates first; None as for a call.

        Args:
            frames (2 `int` each): heights and widths.
        """
        windows = []
        for index, (box, frame) in enumerate(zip(boxes_xywh, frames, strict=True)):
            role = "template" if index < templates else "search"
            region = box if index < templates else self.jitter(box, rng)
            if not _has_pixels(frame, region, getattr(processor, f"{role}_factor")):
                return None
            windows.append(processor.locate(region, role))
        return windows

    def apply(
        self,
        processor: "TrackerImageProcessor",
        crops: Sequence[np.ndarray],
        windows: Sequence[Crop],
        boxes_xywh: Sequence[np.ndarray],
        templates: int,
        rng: np.random.Generator,
    ) -> Sample:
        """Crops `[s, s, 3 S]`, where they were taken and what boxes `[4]` (pixels) they hold, templates first, to a
        training item."""
        pictures, labels = [], []
        for crop, where, box in zip(crops, windows, boxes_xywh, strict=True):
            picture, label = self.crop(crop, processor.box_to_crop(box, where), rng)
            pictures.append(picture)
            labels.append(label)
        return as_sample(processor, pictures, labels[templates:], templates)

    def for_validation(self) -> "Augmentation":
        """What the official validation loop keeps: everything but the changes of single crops."""
        return replace(self, brightness=0.0, crop_flip=0.0)

    def joint(self, images: list[np.ndarray], boxes_xywh: list[np.ndarray], rng: np.random.Generator
              ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Grey and mirror whole frames, with one roll for all of them.

        Args:
            images (`list` of `np.ndarray`): [H, W, 3 S] uint8 each; sizes may differ.
            boxes_xywh (`list` of `np.ndarray`): [4] pixels each.
            rng (`np.random.Generator`): the only source of chance.

        Returns:
            `tuple`: new images and boxes; the mirror takes a corner x to (W - 1) - x as the official code does.
        """
        grey, flip = rng.random(2) < (self.grey, self.flip)
        if grey and all(image.shape[2] == 3 for image in images):
            images = [cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for image in images]
        if flip:
            boxes_xywh = [np.array([image.shape[1] - 1 - x - w, y, w, h])
                          for image, (x, y, w, h) in zip(images, boxes_xywh, strict=True)]
            images = [np.ascontiguousarray(image[:, ::-1]) for image in images]
        return images, boxes_xywh

    def jitter(self, box_xywh: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Move and scale a box [4] (pixels): the place where the search crop is taken."""
        size = box_xywh[2:] * np.exp(self.size_jitter * rng.standard_normal(2))
        if self.lost_crops and rng.random() < self.lost_crops:
            size = size * rng.uniform(*LOST_SCALE) ** rng.choice((-1, 1))
        shift = np.sqrt(size.prod()) * self.center_jitter * (rng.random(2) - 0.5)
        return np.concatenate([box_xywh[:2] + box_xywh[2:] / 2 + shift - size / 2, size])

    def crop(self, image: np.ndarray, box_xywh: np.ndarray, rng: np.random.Generator
             ) -> tuple[np.ndarray, np.ndarray]:
        """Change the brightness of a crop and mirror it.

        Args:
            image (`np.ndarray`): [s, s, 3 S] uint8; all channels get the same factor.
            box_xywh (`np.ndarray`): [4], fractions of the crop.
            rng (`np.random.Generator`): the only source of chance.

        Returns:
            `tuple`: crop and box; the mirror takes a corner x to 1 - x.
        """
        factor, flip = rng.uniform(1 - self.brightness, 1 + self.brightness), rng.random() < self.crop_flip
        if self.brightness:
            image = cv2.convertScaleAbs(image, alpha=factor)
        if flip:
            x, y, w, h = box_xywh
            image, box_xywh = cv2.flip(image, 1), np.array([1 - x - w, y, w, h])
        return image, box_xywh


def _has_pixels(frame: tuple[int, int], box_xywh: np.ndarray, factor: float) -> bool:
    """Whether the square crop around a box is at least one pixel wide and touches a frame of (height, width)."""
    x, y, w, h = box_xywh
    side = math.ceil(math.sqrt(w * h) * factor)
    left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
    height, width = frame
    return side >= 1 and left < width - 1 and top < height - 1 and left + side > 0 and top + side > 0


@dataclass(frozen=True)
class DeiTAugmentation:
    """Jittered crops, mirror, colors, and one of grey, solarize and blur: LoRAT's and SPMTrack's.

    After LitingLin/LoRAT (trackit/data/methods/siamese_tracker_train): mirror and colors are drawn for each crop,
    one of the three changes of DeiT III (arXiv 2204.07118) for all crops together. Needs a processor of the "lorat"
    crop style.

    Args:
        size_jitter (`float`): search crop: each axis is scaled by exp(-size_jitter * n), n normal.
        center_jitter (`float`): it moves by up to this times the box's mean side, on each axis.
        color (`float`): brightness, contrast and saturation change by factors from [1 - color, 1 + color].
        flip (`float`): probability that a crop is mirrored.
        blur (two `float`): smallest and largest standard deviation of the blur, in pixels.
        template_grid (`int`): cells along a template's side; of the template mask.

    Example:
        >>> DeiTAugmentation(template_grid=8).color
        0.4
    """

    size_jitter: float = 0.25
    center_jitter: float = 3.0
    color: float = 0.4
    flip: float = 0.5
    blur: tuple[float, float] = (0.1, 2.0)
    template_grid: int = 8

    def __call__(
        self,
        processor: "TrackerImageProcessor",
        images: list[np.ndarray],
        boxes_xywh: list[np.ndarray],
        templates: int,
        rng: np.random.Generator,
    ) -> Sample | None:
        """As `Augmentation`; the item has `template_mask` int64 `[T, g, g]` besides. None if no jitter leaves enough
        of the target in a search crop."""
        windows = self.crop_windows(processor, boxes_xywh, [image.shape[:2] for image in images], templates, rng)
        if windows is None:
            return None
        crops = [cut_aligned(image, where, mean_color(image)) for image, where in zip(images, windows, strict=True)]
        return self.apply(processor, crops, windows, boxes_xywh, templates, rng)

    def crop_windows(
        self,
        processor: "TrackerImageProcessor",
        boxes_xywh: Sequence[np.ndarray],
        frames: Sequence[tuple[int, int]],
        templates: int,
        rng: np.random.Generator,
    ) -> list[AlignedCrop] | None:
        """As `Augmentation.crop_windows`."""
        windows: list[AlignedCrop] = []
        for index, (box, frame) in enumerate(zip(boxes_xywh, frames, strict=True)):
            if index < templates:
                where = processor.locate(box, "template", frame)
            else:
                where = self.jitter(processor, box, frame, rng)
            if where is None:
                return None
            windows.append(where)
        return windows

    def apply(
        self,
        processor: "TrackerImageProcessor",
        crops: Sequence[np.ndarray],
        windows: Sequence[AlignedCrop],
        boxes_xywh: Sequence[np.ndarray],
        templates: int,
        rng: np.random.Generator,
    ) -> Sample:
        """As `Augmentation.apply`; the crops may be float32, 0 to 255."""
        crops = list(crops)
        masks = processor.template_mask(windows[:templates], self.template_grid)
        found = list(zip(windows, boxes_xywh, strict=True))[templates:]
        labels = [_inside(where.box_to_crop(box), where.size) / where.size for where, box in found]
        for index, mirrored in enumerate(rng.random(len(crops)) < self.flip):
            if mirrored:
                crops[index] = crops[index][:, ::-1]
                if index < templates:
                    masks[index] = masks[index].flip(-1)
                else:
                    x, y, w, h = labels[index - templates]
                    labels[index - templates] = np.array([1 - x - w, y, w, h])
        change = self._common_change(rng)
        crops = [change(_levels(self.colors(crop, rng))) for crop in crops]
        return as_sample(processor, crops, labels, templates) | {"template_mask": masks}

    def jitter(
        self,
        processor: "TrackerImageProcessor",
        box_xywh: np.ndarray,
        frame: tuple[int, int],
        rng: np.random.Generator,
    ) -> AlignedCrop | None:
        """Where a search crop is taken round a box; None if 12 draws leave less than 10 pixels of the target."""
        size, factor = processor.search_size, processor.search_factor
        for _ in range(JITTER_DRAWS):
            scale = aligned_scale(box_xywh, factor, size) / np.exp(self.size_jitter * rng.standard_normal(2))
            reach = self.center_jitter * (box_xywh[2:] * scale).sum() / 2
            where = aligned_crop(box_xywh, factor, size, *frame, scale=scale, shift=rng.uniform(-1, 1, 2) * reach)
            if (_inside(where.box_to_crop(box_xywh), size)[2:] >= SMALLEST_LABEL).all():
                return where
        return None

    def colors(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Brightness, contrast and saturation in random order; float32 `[s, s, 3 S]`, 0 to 255."""
        factors, streams = rng.uniform(1 - self.color, 1 + self.color, 3), np.split(crop, crop.shape[2] // 3, axis=2)
        order = rng.permutation(3)
        for index, stream in enumerate(streams):
            picture = stream.astype(np.float32, order="C")
            for step in order:
                picture = _blend(picture, int(step), float(factors[step]))
            streams[index] = picture
        return np.concatenate(streams, axis=2)

    def _common_change(self, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        """Grey, solarize or blur, as a function of a uint8 crop."""
        which, deviation = rng.integers(3), rng.uniform(*self.blur)
        if which == 0:
            return lambda crop: _per_stream(crop, lambda c: cv2.cvtColor(_grey(c), cv2.COLOR_GRAY2RGB))
        if which == 1:
            levels = np.arange(256)
            return lambda crop: cv2.LUT(crop, np.where(levels >= SOLARIZE_FROM, 255 - levels, levels).astype(np.uint8))
        return lambda crop: cv2.GaussianBlur(crop, (0, 0), deviation)


def _inside(box_xywh: np.ndarray, size: int) -> np.ndarray:
    """The part of a box in pixels of a crop that lies inside the crop."""
    first = box_xywh[:2].clip(0, size)
    return np.concatenate((first, (box_xywh[:2] + box_xywh[2:]).clip(0, size) - first))


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def _blend(picture: np.ndarray, step: int, factor: float) -> np.ndarray:
    """Brightness (0), contrast (1) or saturation (2) of a float32 picture times a factor, cut to 0..255."""
    if step == 2:
        grey = cv2.cvtColor(_grey(picture), cv2.COLOR_GRAY2RGB)
        mixed = cv2.addWeighted(picture, factor, grey, 1 - factor, 0.0)
    else:
        mixed = picture * np.float32(factor)
        if step == 1:
            mixed += np.float32((1 - factor) * cv2.mean(_grey(picture))[0])
    return np.clip(mixed, 0, 255, out=mixed)


def _levels(picture: np.ndarray) -> np.ndarray:
    return np.rint(picture).astype(np.uint8)


def _per_stream(crop: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    streams = np.split(crop, crop.shape[2] // 3, axis=2)
    return np.concatenate([change(np.ascontiguousarray(stream)) for stream in streams], axis=2)


TrainingAugmentation = Augmentation | DeiTAugmentation


def fitting(augment: TrainingAugmentation | None, processor: "TrackerImageProcessor") -> TrainingAugmentation:
    """The augmentation, by default the OSTrack family's, if it can make crops of the processor's style.

    Raises:
        ValueError: it belongs to the other style.
    """
    augment = Augmentation() if augment is None else augment
    kind, option = (DeiTAugmentation, "deit") if processor.crop_style == "lorat" else (Augmentation, "ostrack")
    if not isinstance(augment, kind):
        raise ValueError(
            f"the processor's crop style is {processor.crop_style!r}, whose crops are changed by a {kind.__name__} "
            f"(examples/finetune.py: --augmentation {option}); got a {type(augment).__name__}"
        )
    return augment
