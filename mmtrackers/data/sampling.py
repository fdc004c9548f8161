"""Training pairs from annotated sequences."""

import logging
import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from .augment import Augmentation
from .sequence import Sequence

if TYPE_CHECKING:
    from mmtrackers.image_processing import TrackerImageProcessor

logger = logging.getLogger(__name__)

MAX_GAP = 200
MIN_FRAMES = 20
MIN_VISIBLE = 5
MAX_DRAWS = 50


def draw_pair(visible: np.ndarray, length: int, rng: np.random.Generator, max_gap: int = MAX_GAP) -> tuple[int, int]:
    """Draw a template frame and a later search frame («causal» sampling of the OSTrack family).

    Template: uniform over the visible frames before the last one. Search: uniform over the visible frames in
    [template + 1, template + max_gap). Where there is none both are drawn anew with a gap that is larger by 5.

    Args:
        visible (`np.ndarray`): indices of visible frames, ascending, at least two of them.
        length (`int`): frames of the sequence.
        rng (`np.random.Generator`): the only source of chance.
        max_gap (`int`): frames.

    Returns:
        `tuple[int, int]`: template and search index, template < search.

    Example:
        >>> draw_pair(np.array([3, 900]), 1000, np.random.default_rng(0))
        (3, 900)
    """
    if len(visible) < 2:
        raise ValueError(f"a pair needs two visible frames, there are {len(visible)}")
    templates = visible[visible < length - 1]
    while True:
        template = rng.choice(templates)
        first, last = np.searchsorted(visible, (template + 1, template + max_gap))
        if first < last:
            return int(template), int(visible[rng.integers(first, last)])
        max_gap += 5


class PairDataset(Dataset):
    """Template and search crops of annotated sequences: what `forward` and the losses take, as uint8.

    An item is a function of (seed, epoch, index) alone, whatever the number of workers or processes. A frame that
    cannot be read is named in a warning, counted in `unreadable`, and the pair is drawn anew.
    Sampling and augmentation are those of botaoye/OSTrack (lib/train/data/{sampler,processing}.py).

    Args:
        sequences (iterable of [`Sequence`]): annotated ones; each is drawn with the same chance.
        processor ([`TrackerImageProcessor`]): makes the crops.
        modality (`str`): "rgb", or the second modality; all sequences must have it.
        streams (`int`): 1 (RGB alone; the second modality's files are not read) or 2.
        samples_per_epoch (`int`): `len()` of the dataset.
        seed (`int`): not negative.
        augment ([`Augmentation`], *optional*): the official one by default; `Augmentation().for_validation()` to
            validate.
        skip_short (`bool`): leave out sequences that are too short instead of raising.

    An item holds `template` uint8 [1, S, 3, h, w], `search` uint8 [S, 3, H, W] and `labels` float32 [4], x, y, w, h
    in fractions of the search crop (may leave [0, 1]).

    Raises:
        ValueError: wrong streams or modality, or a sequence with fewer than 20 frames or 5 visible ones; names it.

    Example:
        >>> import tempfile, cv2
        >>> from pathlib import Path
        >>> from mmtrackers.data import open_sequence
        >>> from mmtrackers.image_processing import TrackerImageProcessor
        >>> folder = Path(tempfile.mkdtemp())
        >>> for i in range(20):
        ...     _ = cv2.imwrite(str(folder / f"{i}.png"), np.zeros((60, 80, 3), np.uint8))
        >>> _ = (folder / "groundtruth.txt").write_text("30,20,16,12\\n" * 20)
        >>> pairs = PairDataset([open_sequence(folder)], TrackerImageProcessor(), samples_per_epoch=8)
        >>> pairs[0]["search"].shape, pairs[0]["template"].shape
        (torch.Size([1, 3, 256, 256]), torch.Size([1, 1, 3, 128, 128]))
    """

    def __init__(self, sequences: Iterable[Sequence], processor: "TrackerImageProcessor", modality: str = "rgb",
                 streams: int = 1, samples_per_epoch: int = 60_000, seed: int = 0,
                 augment: Augmentation | None = None, skip_short: bool = False):
        if streams not in (1, 2) or (streams == 2) != (modality != "rgb"):
            raise ValueError(f"streams={streams} with modality={modality!r}: expected 1 with 'rgb', or 2 with "
                             "'thermal', 'depth' or 'event'")
        if samples_per_epoch < 1 or seed < 0:
            raise ValueError(f"samples_per_epoch={samples_per_epoch} must be positive and seed={seed} not negative")
        self.processor, self.modality, self.streams = processor, modality, streams
        self.samples_per_epoch, self.seed = samples_per_epoch, seed
        self.augment = Augmentation() if augment is None else augment
        self.unreadable: Counter[str] = Counter()
        # In shared memory, so that workers that live on through the epochs see the new number too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._sequences, self._visible = self._usable(list(sequences), skip_short)

    def _usable(self, sequences: list[Sequence], skip_short: bool) -> tuple[list[Sequence], list[np.ndarray]]:
        usable, visible, short = [], [], []
        for sequence in sequences:
            if self.streams == 2 and sequence.modality != self.modality:
                raise ValueError(f"sequence {sequence.name!r} has {sequence.modality} as its second stream, the "
                                 f"tracker takes {self.modality}")
            frames = np.flatnonzero(getattr(sequence, "trainable", sequence.present))
            if len(sequence) < MIN_FRAMES or len(frames) < MIN_VISIBLE:
                short.append(f"{sequence.name!r} ({len(sequence)} frames, {len(frames)} with a usable box)")
                continue
            only_rgb = self.streams == 1 and isinstance(sequence, Sequence)
            usable.append(sequence.rgb_only() if only_rgb else sequence)
            visible.append(frames)
        message = (f"training takes sequences of at least {MIN_FRAMES} frames with at least {MIN_VISIBLE} usable "
                   f"boxes; too short: {', '.join(short[:5])}{' ...' if len(short) > 5 else ''}")
        if short and not (skip_short and usable):
            raise ValueError(message + ("" if skip_short else ". Remove them, or pass skip_short=True"))
        if short:
            logger.warning("%d of %d sequences are left out: %s", len(short), len(sequences), message)
        if not usable:
            raise ValueError("there are no sequences to train on")
        return usable, visible

    def __len__(self) -> int:
        return self.samples_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose pairs are drawn; call it before the epoch's iterator is made."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        reason = ""
        for _ in range(MAX_DRAWS):
            which = int(rng.integers(len(self._sequences)))
            pair = draw_pair(self._visible[which], len(self._sequences[which]), rng)
            try:
                images = [self._load(self._sequences[which], frame) for frame in pair]
            except (ValueError, OSError) as error:
                reason = str(error)
                if reason not in self.unreadable:
                    logger.warning("left out of training: %s", reason)
                self.unreadable[reason] += 1
                continue
            boxes = [self._sequences[which].boxes_xywh[frame] for frame in pair]
            sample = self._sample(images, boxes, rng)
            if sample is not None:
                return sample
            reason = f"sequence {self._sequences[which].name!r}, frames {pair}: a crop is empty"
        raise RuntimeError(f"sample {index}: {MAX_DRAWS} pairs in a row cannot be used "
                           f"({self.unreadable.total()} unreadable frames met so far); the last: {reason}")

    def _load(self, sequence: Sequence, frame: int) -> np.ndarray:
        try:
            return self.processor.stack(sequence.read(frame), modality=self.modality, streams=self.streams)
        except ValueError as error:
            raise ValueError(f"sequence {sequence.name!r}, frame {frame}: {error}") from error

    def _sample(self, images: list[np.ndarray], boxes: list[np.ndarray], rng: np.random.Generator
                ) -> dict[str, torch.Tensor] | None:
        """Augment and crop one pair of frames; None if a crop would hold no pixel of its frame."""
        (template, search), (template_box, search_box) = self.augment.joint(images, boxes, rng)
        region = self.augment.jitter(search_box, rng)
        regions = ((template, template_box, self.processor.template_factor),
                   (search, region, self.processor.search_factor))
        if not all(_has_pixels(*region) for region in regions):
            return None
        template, _ = self.processor.crop(template, template_box, "template")
        search, crop = self.processor.crop(search, region, "search")
        template, _ = self.augment.crop(template, np.zeros(4), rng)
        search, labels = self.augment.crop(search, np.asarray(self.processor.box_to_crop(search_box, crop)), rng)
        return {
            "template": self.processor.to_tensor([template]),
            "search": self.processor.to_tensor([search])[0],
            "labels": torch.as_tensor(np.asarray(labels, dtype=np.float32)),
        }


def _has_pixels(image: np.ndarray, box_xywh: np.ndarray, factor: float) -> bool:
    """Whether the square crop around a box is at least one pixel wide and touches the image."""
    x, y, w, h = box_xywh
    side = math.ceil(math.sqrt(w * h) * factor)
    left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
    height, width = image.shape[:2]
    return side >= 1 and left < width - 1 and top < height - 1 and left + side > 0 and top + side > 0
