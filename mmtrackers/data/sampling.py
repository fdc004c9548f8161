"""Training pairs and clips from annotated sequences."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from mmtrackers.frames import ANY

from .augment import Augmentation, Sample, TrainingAugmentation
from .draws import CausalDraw, FrameDraw
from .sequence import Sequence

if TYPE_CHECKING:
    from mmtrackers.image_processing import TrackerImageProcessor

logger = logging.getLogger(__name__)

MIN_FRAMES = 20
MAX_DRAWS = 50


class PairDataset(Dataset):
    """Template and search crops of annotated sequences: what `forward` and the losses take, as uint8.

    An item is a function of (seed, epoch, index) alone, whatever the number of workers or processes. A frame that
    cannot be read is named in a warning, counted in `unreadable`, and the sample is drawn anew.

    Args:
        sequences (iterable of [`Sequence`]): annotated ones.
        processor ([`TrackerImageProcessor`]): makes the crops.
        modality (`str`): "rgb", or the second modality, which all sequences must have; "any": each sequence's own, for
            trackers that take any.
        streams (`int`): 1 (RGB alone; the second modality's files are not read) or 2.
        samples_per_epoch (`int`): `len()` of the dataset.
        seed (`int`): not negative.
        augment ([`Augmentation`] or [`DeiTAugmentation`], *optional*): the OSTrack family's by default;
            `Augmentation().for_validation()` to validate.
        skip_short (`bool`): leave out sequences that are too short instead of raising.
        draw ([`CausalDraw`], [`IntervalDraw`] or [`OrderedDraw`]): chooses the frames; one pair by default.
        chances (iterable of `float`, *optional*): how often each sequence is drawn, relative to the others; see
            [`mixture`]. Equal by default.

    An item holds `template` uint8 [T, S, 3, h, w], `search` uint8 [S, 3, H, W] and `labels` float32 [4], x, y, w, h
    in fractions of the search crop (may leave [0, 1]); clips have an axis of frames before the last two.

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
                 augment: TrainingAugmentation | None = None, skip_short: bool = False,
                 draw: FrameDraw | None = None, chances: Iterable[float] | None = None):
        if streams not in (1, 2) or (streams == 2) != (modality != "rgb"):
            raise ValueError(f"streams={streams} with modality={modality!r}: expected 1 with 'rgb', or 2 with "
                             "'thermal', 'depth', 'event' or 'any'")
        if samples_per_epoch < 1 or seed < 0:
            raise ValueError(f"samples_per_epoch={samples_per_epoch} must be positive and seed={seed} not negative")
        self.processor, self.modality, self.streams = processor, modality, streams
        self.samples_per_epoch, self.seed = samples_per_epoch, seed
        self.augment = Augmentation() if augment is None else augment
        self.draw = CausalDraw() if draw is None else draw
        self.unreadable: Counter[str] = Counter()
        # In shared memory, so that workers that live on through the epochs see the new number too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        sequences = list(sequences)
        chances = [1.0] * len(sequences) if chances is None else list(chances)
        if len(chances) != len(sequences) or not all(chance >= 0 for chance in chances):
            raise ValueError(
                f"{len(chances)} chances for {len(sequences)} sequences: expected one each, none negative"
            )
        self._sequences, self._visible, chances = self._usable(sequences, chances, skip_short)
        # Where a uniform number falls in it says which sequence is drawn.
        self._ladder = np.cumsum(chances) / np.sum(chances)

    def _usable(
        self, sequences: list[Sequence], chances: list[float], skip_short: bool
    ) -> tuple[list[Sequence], list[np.ndarray], list[float]]:
        usable, visible, kept, short = [], [], [], []
        for sequence, chance in zip(sequences, chances, strict=True):
            if self.streams == 2 and self.modality not in (ANY, sequence.modality):
                raise ValueError(f"sequence {sequence.name!r} has {sequence.modality} as its second stream, the "
                                 f"tracker takes {self.modality}")
            frames = np.flatnonzero(getattr(sequence, "trainable", sequence.present))
            still = len(sequence) == len(frames) == 1
            if not still and (len(sequence) < MIN_FRAMES or len(frames) < self.draw.least_visible):
                short.append(f"{sequence.name!r} ({len(sequence)} frames, {len(frames)} with a usable box)")
                continue
            only_rgb = self.streams == 1 and isinstance(sequence, Sequence)
            usable.append(sequence.rgb_only() if only_rgb else sequence)
            visible.append(frames)
            kept.append(chance)
        least = self.draw.least_visible
        message = (f"training takes sequences of at least {MIN_FRAMES} frames with at least {least} usable "
                   f"boxes; too short: {', '.join(short[:5])}{' ...' if len(short) > 5 else ''}")
        if short and not (skip_short and usable):
            raise ValueError(message + ("" if skip_short else ". Remove them, or pass skip_short=True"))
        if short:
            logger.warning("%d of %d sequences are left out: %s", len(short), len(sequences), message)
        if not usable:
            raise ValueError("there are no sequences to train on")
        if not sum(kept):
            raise ValueError("all sequences that can be used have the chance 0")
        return usable, visible, kept

    def __len__(self) -> int:
        return self.samples_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose pairs are drawn; call it before the epoch's iterator is made."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        reason = ""
        for _ in range(MAX_DRAWS):
            sequence, frames, templates = self._draw(rng)
            try:
                images = {frame: self._load(sequence, frame) for frame in dict.fromkeys(frames)}
            except (ValueError, OSError) as error:
                reason = str(error)
                if reason not in self.unreadable:
                    logger.warning("left out of training: %s", reason)
                self.unreadable[reason] += 1
                continue
            boxes = [sequence.boxes_xywh[frame] for frame in frames]
            sample = self.augment(self.processor, [images[frame] for frame in frames], boxes, templates, rng)
            if sample is not None:
                return sample
            reason = f"sequence {sequence.name!r}, frames {frames}: a crop is empty"
        raise RuntimeError(f"sample {index}: {MAX_DRAWS} samples in a row cannot be used "
                           f"({self.unreadable.total()} unreadable frames met so far); the last: {reason}")

    def describe(self, index: int) -> str:
        """The sequence and frames that item `index` of this epoch is drawn from first, for messages."""
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        sequence, frames, templates = self._draw(rng)
        return f"{sequence.name}: templates {frames[:templates]}, search {frames[templates:]}"

    def _draw(self, rng: np.random.Generator) -> tuple[Sequence, list[int], int]:
        """A sequence, the frames of a sample, and how many of them are templates."""
        which = int(np.searchsorted(self._ladder, rng.random(), side="right"))
        sequence, visible = self._sequences[which], self._visible[which]
        templates, searches = _still(self.draw) if len(sequence) == 1 else self.draw(visible, len(sequence), rng)
        return sequence, [*templates, *searches], len(templates)

    def _load(self, sequence: Sequence, frame: int) -> np.ndarray:
        try:
            modality = sequence.modality if self.modality == ANY else self.modality
            return self.processor.stack(sequence.read(frame), modality=modality, streams=self.streams)
        except ValueError as error:
            raise ValueError(f"sequence {sequence.name!r}, frame {frame}: {error}") from error


def _still(draw: FrameDraw) -> tuple[list[int], list[int]]:
    """A still picture stands for every frame of a clip."""
    return [0] * draw.templates, [0] * draw.searches


def mixture(sets: Iterable[Iterable[Sequence]], weights: Iterable[float]) -> tuple[list[Sequence], list[float]]:
    """Several sets as one list of sequences, and the chance of each: a set's weight, shared by its sequences.

    Args:
        sets: sequences of each set.
        weights: how often a set is drawn, relative to the others.

    Raises:
        ValueError: other numbers of sets and weights, an empty set, or a weight that is not positive.

    Example:
        >>> mixture([["a", "b"], ["c"]], [1, 1])
        (['a', 'b', 'c'], [0.5, 0.5, 1.0])
    """
    sets, weights = [list(one) for one in sets], list(weights)
    if len(sets) != len(weights) or not all(sets) or not all(weight > 0 for weight in weights):
        raise ValueError(
            f"a mixture needs a positive weight for every set and sequences in each: got sets of "
            f"{[len(one) for one in sets]} sequences and weights {weights}"
        )
    pairs = [(sequence, weight / len(one)) for one, weight in zip(sets, weights, strict=True) for sequence in one]
    return [sequence for sequence, _ in pairs], [chance for _, chance in pairs]
