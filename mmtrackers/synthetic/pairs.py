"""Training pairs and whole sequences of composed scenes."""

import copy
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmtrackers.processing.boxes import xyxy_to_xywh
from mmtrackers.processing.crops import AlignedCrop, Crop, mean_color
from mmtrackers.processing.frames import ANY, MODALITIES
from mmtrackers.training.augment import Sample, TrainingAugmentation, fitting
from mmtrackers.training.sampling import EpochDataset

from .cameras import black_outside, depth_picture, depth_range
from .layers import View
from .pictures import Draw, PictureLibrary
from .scenes import BLINDNESSES, SyntheticScene

if TYPE_CHECKING:
    from mmtrackers.processing.image_processing import TrackerImageProcessor

__all__ = ["PictureLibrary", "SyntheticPairs", "SyntheticScene", "SyntheticSequence", "synthetic_sequence"]

OTHER_CAMERA = 0.2
SMALLEST_SIDE = 4.0
COARSE = (32, 24)  # size of the picture that a frame's mean color is taken from


class SyntheticPairs(EpochDataset):
    """Template and search crops of random scenes, with the jitter of the processor's family of recipes.

    Items are as those of [`PairDataset`]. Whole frames are not augmented: scenes are of any color and orientation.

    Args:
        library ([`PictureLibrary`]), processor ([`TrackerImageProcessor`]): the pictures; makes the crops.
        modality (`str`): the second stream ("thermal", "depth", "event"), or "rgb"; "any" draws one for each scene.
        streams (`int`): 1 for RGB alone, 2 for RGB and `modality`. With RGB alone a fifth of the scenes are seen by
            one of the other cameras instead: a base's weights read the second stream too.
        samples_per_epoch, seed (`int`), augment ([`TrainingAugmentation`], *optional*): as for [`PairDataset`].
        templates, searches (`int`): frames of each role. The first template and the last search frame are the ends of
            the scene's span, the others lie in its first and last third.
        blindness (`str`, *optional*): "night", "camouflage" or "glare": what keeps RGB from seeing, in every scene; by
            default as [`SyntheticScene`] draws it. With RGB alone no other camera is taken then.
        longest_gap (`float`): of the span, in frames; its logarithm is drawn uniformly.
        absent (`float`): share of samples whose search crops do not show the target, but another place of the scene or
            another scene; their labels are 0. Crops of the "ostrack" style only.

    Raises:
        ValueError: two streams without a second modality, or an unknown one; an unknown blindness; an augmentation of
            the other style.
    """

    def __init__(
        self, library: PictureLibrary, processor: "TrackerImageProcessor", modality: str = "rgb", streams: int = 1,
        samples_per_epoch: int = 10000, seed: int = 0, templates: int = 1, searches: int = 1,
        augment: TrainingAugmentation | None = None, blindness: str | None = None, longest_gap: float = 200.0,
        absent: float = 0.0,
    ) -> None:
        super().__init__(samples_per_epoch, seed)
        self.augment = fitting(augment, processor)
        if not 0 <= absent < 1 or (absent and processor.crop_style != "ostrack"):
            raise ValueError(f"absent is {absent!r} with crops of the {processor.crop_style!r} style; expected 0, or "
                             "less than 1 with 'ostrack'")  # fmt: skip
        if blindness not in (None, *BLINDNESSES):
            raise ValueError(f"blindness is {blindness!r}; expected None or one of {', '.join(BLINDNESSES)}")
        if modality not in (*MODALITIES, ANY) or streams not in (1, 2) or (streams == 2 and modality == "rgb"):
            raise ValueError(f"streams={streams}, modality={modality!r}: expected streams=1, or streams=2 with a "
                             f"modality out of {', '.join((*MODALITIES[1:], ANY))}")  # fmt: skip
        self.library, self.processor, self.streams = library, processor, streams
        self.modality = modality if streams == 2 else "rgb"
        self.templates, self.searches = templates, searches
        self.blindness, self.longest_gap, self.absent = blindness, longest_gap, absent

    def __getitem__(self, index: int) -> Sample:
        rng = self.rng(index)
        # OpenCV's threads would fight with the data workers for the cores
        if cv2.getNumThreads() > 1:
            cv2.setNumThreads(0)
        while (item := self._try(rng)) is None:
            pass
        return item

    def describe(self, index: int) -> str:
        """Where an item of this epoch comes from, for messages."""
        return f"composed scene of seed {self.seed}, epoch {int(self._epoch)}, index {index}"

    def _try(self, rng: np.random.Generator) -> Sample | None:
        draw = Draw(rng)
        start, gap = draw.uniform(0, 1000), draw.log_uniform(1, self.longest_gap)
        # half of the blind scenes show the target at first
        blind_from = start + 0.5 if draw.chance(0.5) else start - 1
        alone = self.streams == 1 and self.blindness is None and draw.chance(OTHER_CAMERA)
        modality = draw.pick(MODALITIES[1:]) if alone or self.modality == ANY else self.modality
        # where RGB is blind, the other camera is sure to see the target
        blind = "night" if alone else self.blindness
        scene = SyntheticScene(self.library, rng, modality, blind, span=(start, start + gap), blind_from=blind_from)
        times = self._times(scene.span, draw)
        boxes = [scene.visible_box_xyxy(time) for time in times]
        if any(min(x2 - x1, y2 - y1) < SMALLEST_SIDE for x1, y1, x2, y2 in boxes):
            return None
        least = [0.6] * self.templates + [0.25] * self.searches
        if any(scene.visible_share(time) < share for time, share in zip(times, least, strict=True)):
            return None
        boxes_xywh = list(xyxy_to_xywh(np.array(boxes)))
        scenes, places = [scene] * len(times), boxes_xywh
        absent = self.absent > 0 and draw.chance(self.absent)
        if absent:
            searches = slice(self.templates, None)
            other, elsewhere = self._elsewhere(scene, times[searches], boxes_xywh[searches], blind, draw)
            scenes[searches], places = [other] * self.searches, [*boxes_xywh[: self.templates], *elsewhere]
        frames = [(one.height, one.width) for one in scenes]
        windows = self.augment.crop_windows(self.processor, places, frames, self.templates, rng)
        if windows is None:
            return None
        if absent and scenes[-1] is scene and any(map(_shows, windows[self.templates :], boxes[self.templates :])):
            return None
        crops = [self._crop(*seen) for seen in zip(scenes, times, windows, strict=True)]
        sample = self.augment.apply(self.processor, crops, windows, places, self.templates, rng)
        if absent:
            sample["labels"].fill_(0)
        return sample

    def _elsewhere(
        self, scene: SyntheticScene, times: list[float], boxes_xywh: list[np.ndarray], blind: str | None, draw: Draw
    ) -> tuple[SyntheticScene, list[np.ndarray]]:
        """Scene and places of search crops that are not to show the target."""
        if draw.chance(0.5):
            other = SyntheticScene(self.library, draw.rng, scene.modality, blind, span=scene.span)
            places = xyxy_to_xywh(np.array([other.visible_box_xyxy(time) for time in times]))
            # a target that is outside its frame still has a place there
            places[:, 2:] = np.maximum(places[:, 2:], SMALLEST_SIDE)
            return other, list(places)
        corner = np.array((draw.uniform(0, scene.width), draw.uniform(0, scene.height)))
        return scene, [np.concatenate((corner - box[2:] / 2, box[2:])) for box in boxes_xywh]

    def _times(self, span: tuple[float, float], draw: Draw) -> list[float]:
        """When templates and search frames are taken, in order."""
        start, end = span
        third = (end - start) / 3
        first = sorted(draw.uniform(start, start + third) for _ in range(self.templates - 1))
        last = sorted(draw.uniform(end - third, end) for _ in range(self.searches - 1))
        return [start, *first, *last, end]

    def _crop(self, scene: SyntheticScene, time: float, where: Crop | AlignedCrop) -> np.ndarray:
        """A crop as the image processor cuts it, rendered at its own size; uint8 [size, size, 3 S]."""
        if isinstance(where, Crop):
            return self._seen(scene, time, View(where.x1, where.y1, where.side, where.side, where.size, where.size))
        (x1, y1, x2, y2), (left, top, right, bottom) = where.source, where.target
        part = self._seen(scene, time, View(x1, y1, x2 - x1, y2 - y1, right - left, bottom - top))
        if part.shape[:2] == (where.size, where.size):
            return part
        crop = np.empty((where.size, where.size, part.shape[2]), np.uint8)
        crop[:] = np.rint(mean_color(self._seen(scene, time, View(0, 0, scene.width, scene.height, *COARSE))))
        crop[top:bottom, left:right] = part
        return crop

    def _seen(self, scene: SyntheticScene, time: float, view: View) -> np.ndarray:
        """All streams of a window, uint8 [rows, columns, 3 S]."""
        rgb, other = scene.render(time, view)
        if other is None:
            return rgb
        other = as_picture(scene, time, view, other)
        return other if self.streams == 1 else cv2.merge((rgb, other))


def _shows(where: Crop, box_xyxy: tuple[float, float, float, float]) -> bool:
    """Whether a square crop holds a part of a box."""
    x1, y1, x2, y2 = box_xyxy
    return x1 < where.x1 + where.side and x2 > where.x1 and y1 < where.y1 + where.side and y2 > where.y1


def as_picture(scene: SyntheticScene, time: float, view: View, other: np.ndarray) -> np.ndarray:
    """The second camera's output as the image processor feeds it, uint8 [rows, columns, 3]."""
    if scene.modality != "depth":
        return other if other.ndim == 3 else cv2.cvtColor(other, cv2.COLOR_GRAY2RGB)
    picture = depth_picture(other, *depth_range(scene, time))
    # a crop is padded with black after the colors are made
    black_outside(scene, picture, view)
    return picture


class SyntheticSequence:
    """A composed video with exact boxes, read like a sequence on disk; frames are rendered when they are read.

    Args:
        scene ([`SyntheticScene`]): what is shown; its span begins at 0.
        length (`int`), name (`str`): number of frames; for reports.

    `boxes_xywh` float64 `[length, 4]` is the part of the target's box inside the frame, in pixels; `present` bool
    `[length]` says whether a tenth of the target or more can be seen.
    """

    def __init__(self, scene: SyntheticScene, length: int, name: str) -> None:
        self.scene, self.length, self.name, self.modality = scene, length, name, scene.modality
        self.boxes_xywh = xyxy_to_xywh(np.array([scene.visible_box_xyxy(float(time)) for time in range(length)]))
        shares = np.array([scene.visible_share(float(time)) for time in range(length)])
        self.present = (shares >= 0.1) & (self.boxes_xywh[:, 2:].min(axis=1) >= 1)
        self.annotated = np.ones(length, dtype=bool)

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> dict[str, np.ndarray]:
        """A frame: "rgb" uint8 [H, W, 3], and the second stream (thermal [H, W], depth uint16 mm, event)."""
        if not 0 <= index < self.length:
            raise IndexError(f"frame {index} of {self.name}, which has {self.length}")
        rgb, other = self.scene.render(float(index), self.scene.whole_frame())
        return {"rgb": rgb} if other is None or self.modality == "rgb" else {"rgb": rgb, self.modality: other}

    def rgb_only(self) -> "SyntheticSequence":
        """The same video without its second stream."""
        other = copy.copy(self)
        other.modality = "rgb"
        return other


def synthetic_sequence(
    library: PictureLibrary, seed: int, modality: str = "rgb", length: int = 60, size: tuple[int, int] = (240, 320),
    blind: str | None = None,
) -> SyntheticSequence:
    """A composed video, the same for the same arguments; its target is seen well in the first frame and present in
    four fifths of the others.

    Args:
        library ([`PictureLibrary`]): the pictures; of `split="heldout"` to measure.
        seed (`int`): chooses the video.
        modality (`str`), length (`int`): the second stream, or "rgb" for none; number of frames.
        size (two `int`): height and width of a frame in pixels.
        blind (`str`, *optional*): "none", "night", "camouflage" or "glare"; drawn by default. Night and glare set in
            at the first frame or within the first quarter.

    Example:
        >>> video = synthetic_sequence(library, seed=3, modality="thermal", blind="night")  # doctest: +SKIP
        >>> video.read(0)["thermal"].shape, video.boxes_xywh.shape  # doctest: +SKIP
        ((240, 320), (60, 4))
    """
    if length < 1:
        raise ValueError(f"length is {length}; a sequence has at least one frame")
    for attempt in range(1000):
        rng = np.random.default_rng((seed, attempt, 7))
        blind_from = float(rng.integers(1, max(2, length // 4))) if rng.random() < 0.5 else 0.0
        scene = SyntheticScene(library, rng, modality, blind, size, (0.0, float(length)), blind_from)
        x1, y1, x2, y2 = scene.visible_box_xyxy(0.0)
        if min(x2 - x1, y2 - y1) < 8 or scene.visible_share(0.0) < 0.75:
            continue
        sequence = SyntheticSequence(scene, length, f"{modality}-{scene.blindness}-{seed}")
        if sequence.present.mean() >= 0.8:
            return sequence
    raise RuntimeError(f"no scene with a visible target in 1000 tries for seed {seed}, size {size}; use larger frames")
