"""The training augmentation of the OSTrack family, as its official training loop in effect performs it."""

from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """Jitter, grey, mirror and brightness for a pair of template and search frame.

    The defaults are those of botaoye/OSTrack (lib/train/base_functions.py, data/processing.py), which the ViPT family
    took over. Its step to grey fails on six channels and the sample is drawn anew, so that with two streams there
    never is a grey sample: here it acts on three channels only.

    Args:
        grey (`float`): probability that both frames lose their colour (three channels only).
        flip (`float`): probability that both frames are mirrored before the crop.
        size_jitter (`float`): the search region's sides are multiplied by exp(size_jitter * n), n normal, each alone.
        centre_jitter (`float`): its centre moves by up to half of this times sqrt(w h) on each axis.
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
    centre_jitter: float = 3.0
    brightness: float = 0.2
    crop_flip: float = 0.5

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
        shift = np.sqrt(size.prod()) * self.centre_jitter * (rng.random(2) - 0.5)
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
            table = np.clip(np.rint(np.arange(256) * factor), 0, 255).astype(np.uint8)
            image = cv2.LUT(image, table)
        if flip:
            x, y, w, h = box_xywh
            image, box_xywh = np.ascontiguousarray(image[:, ::-1]), np.array([1 - x - w, y, w, h])
        return image, box_xywh
