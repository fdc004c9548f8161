"""Training pairs and clips from annotated sequences."""

import logging
import os
import tempfile
import weakref
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from mmtrackers.data.sequence import Sequence
from mmtrackers.data.sets import JoinedSet, SequenceSet
from mmtrackers.processing.alignment import View
from mmtrackers.processing.frames import ANY

from .augment import Sample, TrainingAugmentation, fitting, inside
from .frame_samplers import CausalSampler, FrameSampler

if TYPE_CHECKING:
    from mmtrackers.data.hf import SequenceStream
    from mmtrackers.processing.image_processing import TrackerImageProcessor

logger = logging.getLogger(__name__)

MIN_FRAMES = 20
MAX_DRAWS = 50


class Epochs:
    """Samples that differ from epoch to epoch: so many per epoch, or per sequence."""

    _make: "SampleMaker | None" = None

    def __init__(self, samples: int, seed: int, per: str = "epoch") -> None:
        if samples < 1 or seed < 0:
            raise ValueError(f"samples_per_{per}={samples} must be positive and seed={seed} not negative")
        self.samples, self.seed = samples, seed
        # in shared memory, so that workers that live on through the epochs see a new one too
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose samples are drawn; call it before the epoch's iterator is made."""
        self._epoch.fill_(epoch)

    @property
    def unreadable(self) -> Counter[str]:
        """What could not be read so far, by this process and its workers -> how often it was met."""
        return Counter() if self._make is None else self._make.failures.counts()


class EpochDataset(Epochs, Dataset):
    """A data set whose item is a function of (seed, epoch, index) alone, whatever the workers and processes."""

    def __len__(self) -> int:
        return self.samples

    def rng(self, index: int) -> np.random.Generator:
        """An item's source of chance in this epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return np.random.default_rng((self.seed, int(self._epoch), index))


class PairDataset(EpochDataset):
    """Template and search crops of annotated sequences: what `forward` and the losses take, as uint8.

    A frame that cannot be read is named in a warning, counted in `unreadable`, and the sample is drawn anew. Large
    sets stay in their index: a sequence is made when it is drawn. For crops of the "lorat" style boxes are cut to the
    picture, and those outside it are not trained on, as in LitingLin/LoRAT (config/_dataset/train.yaml).

    Args:
        sequences ([`SequenceSet`] or iterable of [`Sequence`]): annotated ones.
        processor ([`TrackerImageProcessor`]): makes the crops.
        modality (`str`): "rgb", or the second modality, which all sequences must have; "any": each sequence's own, for
            trackers that take any.
        streams (`int`): 1 (RGB alone; the second modality's files are not read) or 2.
        samples_per_epoch, seed (`int`): as for [`EpochDataset`].
        augment ([`Augmentation`] or [`DeiTAugmentation`], *optional*): the OSTrack family's by default. Crops of the
            "lorat" style need the other.
        skip_short (`bool`): leave out sequences that are too short instead of raising.
        frame_sampler ([`CausalSampler`], [`IntervalSampler`] or [`OrderedSampler`]): chooses the frames; one pair by
            default.
        chances (iterable of `float`, *optional*): how often each sequence is drawn, relative to the others; see
            [`mixture`]. Equal by default.
        balanced (`bool`): every sequence has its share of an epoch, up to one sample, in place of being drawn at
            random each time; see [`balanced_plan`].

    An item holds `template` uint8 [T, S, 3, h, w], `search` uint8 [S, 3, H, W] and `labels` float32 [4], x, y, w, h
    in fractions of the search crop (may leave [0, 1]); clips have an axis of frames before the last two.

    Raises:
        ValueError: wrong streams or modality, or a sequence with fewer than 20 frames or 5 visible ones; names it.

    Example:
        >>> import tempfile, cv2
        >>> from pathlib import Path
        >>> from mmtrackers.data import open_sequence
        >>> from mmtrackers.processing.image_processing import TrackerImageProcessor
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
                 frame_sampler: FrameSampler | None = None, chances: Iterable[float] | None = None,
                 balanced: bool = False):
        super().__init__(samples_per_epoch, seed)
        self._make = SampleMaker(processor, modality, streams, augment, frame_sampler)
        self._sequences = sequences if isinstance(sequences, SequenceSet) else SequenceSet(sequences)
        count = len(self._sequences)
        chances = np.ones(count) if chances is None else np.array(list(chances), dtype=np.float64)
        if len(chances) != count or not (chances >= 0).all():
            raise ValueError(f"{len(chances)} chances for {count} sequences: expected one each, none negative")
        if streams == 2 and modality != ANY and self._sequences.modalities - {modality}:
            other = next(sequence for sequence in self._sequences if sequence.modality != modality)
            raise ValueError(f"sequence {other.name!r} has {other.modality} as its second stream, the tracker takes "
                             f"{modality}")
        self._kept = self._usable(skip_short)
        if not chances[self._kept].any():
            raise ValueError("all sequences that can be used have the chance 0")
        self._chances = chances[self._kept] / chances[self._kept].sum()
        # Where a uniform number falls in it says which of the kept sequences is drawn.
        self._ladder = np.cumsum(self._chances)
        self._balanced, self._plan = balanced, (-1, np.empty(0, dtype=np.int64))

    def _usable(self, skip_short: bool) -> np.ndarray:
        """Indices of the sequences that samples can be drawn from."""
        lengths, usable = self._sequences.lengths, self._sequences.usable
        least = self._make.frame_sampler.least_visible
        fits = (lengths >= MIN_FRAMES) & (usable >= least) | (lengths == 1) & (usable == 1)
        short = np.flatnonzero(~fits)
        if not len(fits):
            raise ValueError("there are no sequences to train on")
        if not len(short):
            return np.flatnonzero(fits)
        names = [f"{self._sequences.names[i]!r} ({lengths[i]} frames, {usable[i]} with a usable box)"
                 for i in short[:5]]  # fmt: skip
        message = (f"training takes sequences of at least {MIN_FRAMES} frames with at least {least} usable "
                   f"boxes; too short: {', '.join(names)}{' ...' if len(short) > 5 else ''}")
        if not skip_short or not fits.any():
            raise ValueError(message + ("" if skip_short else ". Remove them, or pass skip_short=True"))
        logger.warning("%d of %d sequences are left out: %s", len(short), len(fits), message)
        return np.flatnonzero(fits)

    def __getitem__(self, index: int) -> Sample:
        rng = self.rng(index)
        sequence = self._first(index, rng)
        for _ in range(MAX_DRAWS):
            sample, reason = self._make(sequence, rng)
            if sample is not None:
                return sample
            sequence = self._drawn(rng)
        raise RuntimeError(f"sample {index}: {MAX_DRAWS} samples in a row cannot be used "
                           f"({self.unreadable.total()} unreadable frames met so far); the last: {reason}")

    def describe(self, index: int) -> str:
        """The sequence and frames that item `index` of this epoch is drawn from first, for messages."""
        rng = self.rng(index)
        sequence = self._first(index, rng)
        templates, searches = self._make.frames(sequence, rng)
        return f"{sequence.name}: templates {templates}, search {searches}"

    def _first(self, index: int, rng: np.random.Generator) -> Sequence:
        """The sequence that an item is made of, unless that fails."""
        if not self._balanced:
            return self._drawn(rng)
        epoch = int(self._epoch)
        if self._plan[0] != epoch:
            # no item has this number
            order = np.random.default_rng((self.seed, epoch, len(self)))
            self._plan = (epoch, balanced_plan(self._chances, len(self), order))
        return self._sequences[int(self._kept[self._plan[1][index]])]

    def _drawn(self, rng: np.random.Generator) -> Sequence:
        return self._sequences[int(self._kept[np.searchsorted(self._ladder, rng.random(), side="right")])]


class StreamSamples(Epochs, IterableDataset):
    """Samples of sequences that are streamed: some of each sequence while it is at hand.

    A sample is a function of (seed, epoch, sequence, its number) alone; their order follows the stream's. Sequences
    that are too short, and frames that cannot be read, are named in a warning and counted in `unreadable`.

    Args:
        stream ([`SequenceStream`]): as `from_hf_dataset` gives it for a streamed dataset.
        samples_per_sequence (`int`): how many samples are drawn of each.
        processor, modality, streams, seed, augment, frame_sampler: as for [`PairDataset`].
    """

    def __init__(self, stream: "SequenceStream", processor: "TrackerImageProcessor", modality: str = "rgb",
                 streams: int = 1, samples_per_sequence: int = 16, seed: int = 0,
                 augment: TrainingAugmentation | None = None, frame_sampler: FrameSampler | None = None):
        super().__init__(samples_per_sequence, seed, per="sequence")
        self.stream, self._make = stream, SampleMaker(processor, modality, streams, augment, frame_sampler)

    def __iter__(self) -> Iterator[Sample]:
        epoch = int(self._epoch)
        self.stream.set_epoch(epoch)
        for sequence in self.stream:
            usable, least = np.count_nonzero(sequence.trainable), self._make.frame_sampler.least_visible
            if len(sequence) > 1 and (len(sequence) < MIN_FRAMES or usable < least):
                self._make.failures.add(f"sequence {sequence.name!r} is too short: {len(sequence)} frames, {usable} "
                                        f"with a usable box; at least {MIN_FRAMES} and {least} are needed")
                continue
            name = zlib.crc32(sequence.name.encode())
            for number in range(self.samples):
                rng = np.random.default_rng((self.seed, epoch, name, number))
                made = (self._make(sequence, rng)[0] for _ in range(MAX_DRAWS))
                sample = next((sample for sample in made if sample is not None), None)
                if sample is None:
                    self._make.failures.add(f"sequence {sequence.name!r}: {MAX_DRAWS} samples in a row cannot be used")
                    break
                yield sample


class SampleMaker:
    """Draws frames of a sequence, reads them and makes a sample of them. Arguments as for [`PairDataset`]."""

    def __init__(self, processor: "TrackerImageProcessor", modality: str, streams: int,
                 augment: TrainingAugmentation | None, frame_sampler: FrameSampler | None) -> None:
        if streams not in (1, 2) or (streams == 2) != (modality != "rgb"):
            raise ValueError(f"streams={streams} with modality={modality!r}: expected 1 with 'rgb', or 2 with "
                             "'thermal', 'depth', 'event' or 'any'")
        self.processor, self.modality, self.streams = processor, modality, streams
        self.augment = fitting(augment, processor)
        self.frame_sampler = CausalSampler() if frame_sampler is None else frame_sampler
        # LoRAT's and SPMTrack's data are cleaned so: boxes are cut to the picture, those outside it do not count
        self.fits_boxes = processor.crop_style == "lorat"
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.failures = Failures()

    def __call__(self, sequence: Sequence, rng: np.random.Generator) -> tuple[Sample | None, str]:
        """A sample, or None and the reason why these frames give none."""
        try:
            templates, searches = self.frames(sequence, rng)
        except ValueError as error:
            return None, f"sequence {sequence.name!r}: {error}"
        frames = [*templates, *searches]
        try:
            seen = {frame: self._views(sequence, frame) for frame in dict.fromkeys(frames)}
        except (ValueError, OSError) as error:
            self.failures.add(str(error))
            return None, str(error)
        boxes = [self._fitted(sequence.boxes_xywh[frame], seen[frame][0].size) for frame in frames]
        if self.fits_boxes and not all((box[2:] > 0).all() for box in boxes):
            return None, f"sequence {sequence.name!r}, frames {frames}: a box lies outside its picture"
        sample = self.augment(self.processor, [seen[frame] for frame in frames], boxes, len(templates), rng)
        return sample, f"sequence {sequence.name!r}, frames {frames}: a crop is empty"

    def frames(self, sequence: Sequence, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Template and search frames, as the rule draws them."""
        if len(sequence) == 1:  # a still picture stands for every frame of a clip
            return [0] * self.frame_sampler.templates, [0] * self.frame_sampler.searches
        usable = np.flatnonzero(getattr(sequence, "trainable", sequence.present))
        if self.fits_boxes:
            inside = self._fitted(sequence.boxes_xywh[usable], self._shape(sequence))
            usable = usable[(inside[:, 2:] > 0).all(1)]
            if len(usable) < self.frame_sampler.least_visible:
                raise ValueError(f"the box lies in the picture in {len(usable)} frames, at least "
                                 f"{self.frame_sampler.least_visible} are needed")
        return self.frame_sampler(usable, len(sequence), rng)

    def _fitted(self, boxes_xywh: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Boxes `[..., 4]` cut to a picture of (height, width, ...), where the recipe does so."""
        return inside(boxes_xywh, (shape[1], shape[0])) if self.fits_boxes else boxes_xywh

    def _shape(self, sequence: Sequence) -> tuple[int, ...]:
        """Height and width of a sequence's frames; its first one is read once."""
        key = f"{sequence.name} {len(sequence)} {sequence.boxes_xywh[0]}"
        if key not in self._shapes:
            self._shapes[key] = sequence.rgb_only().read(0)["rgb"].shape[:2]
        return self._shapes[key]

    def _views(self, sequence: Sequence, frame: int) -> list[View]:
        try:
            modality = sequence.modality if self.modality == ANY else self.modality
            sequence = sequence.rgb_only() if self.streams == 1 else sequence
            return self.processor.views(sequence.read(frame), modality, self.streams)
        except ValueError as error:
            raise ValueError(f"sequence {sequence.name!r}, frame {frame}: {error}") from error


def balanced_plan(chances: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Which sequence each sample of an epoch is made of, int64 `[count]`: sequence `i` stands in it `count *
    chances[i]` times, rounded up or down; the chances `[N]` sum to 1.

    After LitingLin/LoRAT (trackit/data/sampling/per_sequence): of every set the same sequences as often as they fit
    in, the rest of its share drawn without repetition, and all sets shuffled together.
    """
    # Equal steps along the sequences laid out by their chances hit each one so often. Those of one set have the same
    # chance and lie side by side, so that a set has its share too.
    order = np.lexsort((rng.random(len(chances)), chances))
    ends = np.cumsum(chances[order]) * count
    steps = rng.random() + np.arange(count)
    return rng.permutation(order[np.searchsorted(ends[:-1], steps, side="right")])


def mixture(sets: Iterable[Iterable[Sequence]], weights: Iterable[float]) -> tuple[SequenceSet, np.ndarray]:
    """Several sets as one, and the chance `[N]` of each sequence: a set's weight (how often it is drawn) shared by its
    sequences. ValueError for no set, an empty one, or a weight that is not positive."""
    sets, weights = [one if isinstance(one, SequenceSet) else SequenceSet(one) for one in sets], list(weights)
    counts = [len(one) for one in sets]
    if not sets or len(sets) != len(weights) or not all(counts) or not all(weight > 0 for weight in weights):
        raise ValueError(f"a mixture needs a positive weight for every set and sequences in each: got sets of "
                         f"{counts} sequences and weights {weights}")
    return JoinedSet(sets), np.repeat(np.array(weights, dtype=np.float64) / counts, counts)


class Failures:
    """Reasons and how often each was met, in this process and in those that it hands this object to: lines of a
    temporary file, to which workers only ever append, each in one piece."""

    def __init__(self) -> None:
        file, self._path = tempfile.mkstemp(prefix="mmtrackers-failures-", suffix=".txt")
        os.close(file)
        self._said: set[str] = set()
        weakref.finalize(self, _remove, self._path, os.getpid())

    def add(self, reason: str) -> None:
        """Count a reason; the first time that this process meets it, warn."""
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("left out of training: %s", reason)
        with open(self._path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(" ".join(reason.split()) + "\n")

    def counts(self) -> Counter[str]:
        """Reason -> how often it was met so far."""
        text = Path(self._path).read_text(encoding="utf-8", errors="surrogateescape")
        return Counter(text.splitlines())


def _remove(path: str, owner: int) -> None:
    # A data worker has a copy of the object, and ends before the others.
    if os.getpid() == owner:
        Path(path).unlink(missing_ok=True)
