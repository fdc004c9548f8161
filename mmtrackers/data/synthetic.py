"""Training pairs and whole sequences of composed scenes; see ``scenes`` for what a scene is."""

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from .cameras import black_outside, depth_picture, depth_range
from .layers import View
from .pictures import Draw, PictureLibrary
from .scenes import BLINDNESSES, MODALITIES, SyntheticScene

if TYPE_CHECKING:
    from mmtrackers.image_processing import TrackerImageProcessor

__all__ = [
    "BLINDNESSES", "MODALITIES", "PictureLibrary", "SyntheticPairs", "SyntheticScene",

]  # fmt: skip

CENTRE_JITTER = 3.0
SCALE_JITTER = 0.25
BRIGHTNESS = (0.8, 1.2)
LONGEST_GAP = 200.0
SMALLEST_SIDE = 4.0


def crop_window(x: float, y: float, w: float, h: float, factor: float) -> tuple[int, int, int]:
    """Left, top and side of the square crop round a box, rounded as in the official OSTrack code; pixels."""
    side = max(1, math.ceil(math.sqrt(w * h) * factor))
    return round(x + w / 2 - side / 2), round(y + h / 2 - side / 2), side


class SyntheticPairs(Dataset):
    """Template and search crops of random scenes, with the jitter of the OSTrack recipe.

    Item ``index`` is a dict: ``template`` uint8 [1, S, 3, h, w], ``search`` uint8 [S, 3, H, W], ``labels`` float32 [4]
    (x, y, w, h as fractions of the search crop, may leave [0, 1]). It depends on (seed, epoch, index) only, so any
    number of workers and any order give the same data.

    Args:
        library: the pictures.
        processor: gives template_size, template_factor, search_size and search_factor.
        modality: the second stream ("thermal", "depth", "event"), or "rgb".
        streams: 1 for RGB alone, 2 for RGB and ``modality``.
        samples_per_epoch: length of the data set.
        seed: of all scenes.

    Raises:
        ValueError: two streams without a second modality, or an unknown one.

    Example:
        >>> pairs = SyntheticPairs(library, processor, samples_per_epoch=10000)  # doctest: +SKIP
        >>> pairs[0]["search"].shape  # doctest: +SKIP
        torch.Size([1, 3, 256, 256])
    """

    def __init__(
        self,
        library: PictureLibrary,
        processor: "TrackerImageProcessor",
        modality: str = "rgb",
        streams: int = 1,
        samples_per_epoch: int = 10000,
        seed: int = 0,
    ) -> None:
        if modality not in MODALITIES or streams not in (1, 2) or (streams == 2 and modality == "rgb"):
            raise ValueError(
                f"streams={streams}, modality={modality!r}: expected streams=1, or streams=2 with a modality out of "
                f"{', '.join(MODALITIES[1:])}"
            )
        self.library, self.processor, self.streams = library, processor, streams
        self.modality = modality if streams == 2 else "rgb"
        self.samples_per_epoch, self.seed, self.epoch = samples_per_epoch, seed, 0

    def __len__(self) -> int:
        return self.samples_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose pairs are made from now on."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.samples_per_epoch:
            raise IndexError(f"pair {index} of {self.samples_per_epoch}")
        rng = np.random.default_rng((self.seed, self.epoch, index))
        # OpenCV's threads would fight with the data workers for the cores
        if cv2.getNumThreads() > 1:
            cv2.setNumThreads(0)
        while True:
            item = self._try(rng)
            if item is not None:
                return item

    def _try(self, rng: np.random.Generator) -> dict[str, torch.Tensor] | None:
        draw = Draw(rng)
        start, gap = draw.uniform(0, 1000), draw.log_uniform(1, LONGEST_GAP)
        # half of the blind scenes show the target at first
        blind_from = start + 0.5 if draw.chance(0.5) else start - 1
        scene = SyntheticScene(
            self.library, rng, self.modality, span=(start, start + gap), blind_from=blind_from
        )
        boxes = [scene.visible_box_xyxy(time) for time in scene.span]
        if any(min(x2 - x1, y2 - y1) < SMALLEST_SIDE for x1, y1, x2, y2 in boxes):
            return None
        if any(scene.visible_share(time) < least for time, least in zip(scene.span, (0.6, 0.25), strict=True)):
            return None
        (template_box, search_box) = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]
        processor = self.processor
        window = crop_window(*template_box, processor.template_factor)
        template, _ = self._crop(scene, scene.span[0], window, processor.template_size, template_box, draw)
        window = crop_window(*self._jitter(search_box, draw), processor.search_factor)
        search, labels = self._crop(scene, scene.span[1], window, processor.search_size, search_box, draw)
        return {
            "template": torch.from_numpy(template)[None],
            "search": torch.from_numpy(search),
            "labels": torch.tensor(labels, dtype=torch.float32),
        }

    @staticmethod
    def _jitter(box_xywh: tuple[float, ...], draw: Draw) -> tuple[float, float, float, float]:
        x, y, w, h = box_xywh
        wide, high = w * math.exp(draw.normal(SCALE_JITTER)), h * math.exp(draw.normal(SCALE_JITTER))
        reach = math.sqrt(wide * high) * CENTRE_JITTER
        middle_x, middle_y = x + w / 2 + reach * (draw.unit() - 0.5), y + h / 2 + reach * (draw.unit() - 0.5)
        return middle_x - wide / 2, middle_y - high / 2, wide, high

    def _crop(
        self,
        scene: SyntheticScene,
        time: float,
        window: tuple[int, int, int],
        size: int,
        box_xywh: tuple[float, ...],
        draw: Draw,
    ) -> tuple[np.ndarray, list[float]]:
        """uint8 [S, 3, size, size] and the box in fractions of the crop."""
        left, top, side = window
        view = View(left, top, side, side, size, size)
        rgb, other = scene.render(time, view)
        streams = [rgb] if other is None else [rgb, as_picture(scene, time, view, other)]
        brightness, flip = draw.uniform(*BRIGHTNESS), draw.chance(0.5)
        table = np.clip(np.arange(256) * brightness + 0.5, 0, 255).astype(np.uint8)
        streams = [cv2.LUT(cv2.flip(stream, 1) if flip else stream, table).transpose(2, 0, 1) for stream in streams]
        x, y, w, h = box_xywh
        scale = size / side
        # the official training mapping takes (size - 1) / 2 as the crop's middle
        wide, high = w * scale / size, h * scale / size
        middle_x = ((size - 1) / 2 + (x + w / 2 - (left + side / 2)) * scale) / size
        middle_y = ((size - 1) / 2 + (y + h / 2 - (top + side / 2)) * scale) / size
        return np.stack(streams), [(1 - middle_x if flip else middle_x) - wide / 2, middle_y - high / 2, wide, high]


def as_picture(scene: SyntheticScene, time: float, view: View, other: np.ndarray) -> np.ndarray:
    """The second camera's output as the image processor feeds it, uint8 [rows, columns, 3]."""
    if scene.modality != "depth":
        return other if other.ndim == 3 else cv2.cvtColor(other, cv2.COLOR_GRAY2RGB)
    picture = depth_picture(other, *depth_range(scene, time))
    # a crop is padded with black after the colours are made
    black_outside(scene, picture, view)
    return picture
