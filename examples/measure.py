"""
Mean overlap of trackers on sequences, initialised once with each sequence's first box.

    # annotated folders; ":x" tracks the second modality alone as if it were RGB, ":rgb" the RGB stream alone
    python examples/measure.py --tracker mmtrackers/pretrained/ostrack-tiny VOT/bag VTUAV/bus1:x

    # composed sequences of held-out pictures in which RGB is blind; several trackers side by side
    python examples/measure.py --tracker mmtrackers/pretrained/ostrack-tiny \
        --tracker mmtrackers/pretrained/seatrack-tiny-thermal --synthetic pictures --modality thermal --count 40

    # beside OpenCV's trackers, one step from the true place, and the first two compared with an interval
    python examples/measure.py --tracker mmtrackers/pretrained/ostrack-tiny --rival csrt --rival nano:FOLDER \
        --oracle VOT/bag VTUAV/bus1:rgb

    # does a predicted size follow the target's, or is it pulled to a quarter of the crop? 1 follows, 0 does not
    python examples/measure.py --tracker mmtrackers/pretrained/ostrack-tiny --synthetic pictures --probe
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from tqdm import tqdm

from mmtrackers import Prediction, Tracker
from mmtrackers.cli.ending import run_script
from mmtrackers.data import open_sequence
from mmtrackers.processing.boxes import iou_xywh
from mmtrackers.synthetic.pairs import PictureLibrary, SyntheticSequence, synthetic_sequence

BLIND = ("night", "camouflage", "glare")
FACTORS = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)  # sides of the probe's search crops, in sides of the target


def mean_overlap(tracker: Any, sequence, until_absent: bool = False, oracle: bool = False) -> float:
    """Mean overlap over the annotated frames in which the target is present, after the first of them, which begins.

    Args:
        tracker (`Tracker` or `Rival`): what to measure.
        sequence: anything with `read(i)`, `boxes_xywh`, `present` and a length.
        until_absent (`bool`): stop at the first frame without the target.
        oracle (`bool`): look round the true box of the frame before each time, instead of the tracker's own.
    """
    first = int(np.argmax(sequence.present))
    session = tracker.start(sequence.read(first), sequence.boxes_xywh[first])
    annotated = getattr(sequence, "annotated", np.ones(len(sequence), dtype=bool))
    overlaps = []
    for index in range(first + 1, len(sequence)):
        if until_absent and annotated[index] and not sequence.present[index]:
            break
        if oracle and annotated[index - 1] and sequence.present[index - 1]:
            session.boxes_xywh = sequence.boxes_xywh[index - 1]
        prediction = session.update(sequence.read(index))
        if annotated[index] and sequence.present[index]:
            overlaps.append(float(iou_xywh(np.asarray(prediction.box), sequence.boxes_xywh[index])))
    return float(np.mean(overlaps))


class Rival:
    """One of OpenCV's trackers, used as a `Tracker` is.

    Args:
        name (`str`): "csrt" or "kcf", which opencv-contrib-python has; or "nano:FOLDER", with NanoTrack's
            `nanotrack_backbone_sim.onnx` and `nanotrack_head_sim.onnx` in that folder.

    Raises:
        typer.BadParameter: another name, or this OpenCV or the folder lacks what is needed.
    """

    modality = "rgb"

    def __init__(self, name: str) -> None:
        kind, _, folder = name.partition(":")
        makers = {"csrt": "TrackerCSRT", "kcf": "TrackerKCF", "nano": "TrackerNano"}
        if kind not in makers:
            raise typer.BadParameter(f"--rival {name}: known are csrt, kcf and nano:FOLDER.")
        self._maker = getattr(cv2, makers[kind], None)
        if self._maker is None:
            raise typer.BadParameter(f"--rival {name}: this OpenCV has no {makers[kind]}; opencv-contrib-python has.")
        self._arguments = []
        if kind == "nano":
            self._arguments = [cv2.TrackerNano_Params()]
            parts = {"backbone": "nanotrack_backbone_sim.onnx", "neckhead": "nanotrack_head_sim.onnx"}
            for part, file in parts.items():
                if not (Path(folder) / file).is_file():
                    raise typer.BadParameter(f"--rival {name}: there is no {Path(folder) / file}.")
                setattr(self._arguments[0], part, str(Path(folder) / file))

    def start(self, frame: dict[str, np.ndarray], box_xywh: np.ndarray) -> "Rival":
        self._tracker = self._maker.create(*self._arguments)
        self._tracker.init(_bgr(frame), tuple(round(float(v)) for v in box_xywh))
        self._box = np.asarray(box_xywh, float)
        return self

    def update(self, frame: dict[str, np.ndarray]) -> Prediction:
        there, box = self._tracker.update(_bgr(frame))
        self._box = np.array(box, float) if there else self._box
        return Prediction(self._box, float(there))


def _bgr(frame: dict[str, np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(frame["rgb"][..., ::-1])


def paired_difference(first: list[float], second: list[float], draws: int = 10_000) -> tuple[float, float, float]:
    """Mean of `first - second` over sequences, and its 95 % interval by the bootstrap.

    Example:
        >>> paired_difference([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
        (0.1, 0.1, 0.1)
    """
    difference = np.array(first) - np.array(second)
    drawn = np.random.default_rng(0).choice(difference, (draws, len(difference))).mean(1)
    return tuple(round(float(v), 4) for v in (difference.mean(), *np.quantile(drawn, (0.025, 0.975))))


@dataclass
class SizeProbe:
    """How predicted sizes follow true ones.

    Attributes:
        gain: slope of the logarithm of the predicted size against that of the true one, both relative to the crop.
        errors: mean logarithm of predicted over true size (square roots of areas), for each crop factor.
        hits: share of crops in which the predicted center lies in the target's box; only these count for the others.
    """

    gain: float
    errors: list[float]
    hits: float


@torch.inference_mode()
def probe_sizes(tracker: Tracker, clips, factors: tuple[float, ...] = FACTORS) -> SizeProbe:
    """Searches the target's true place in crops of several sizes: a third, two thirds and at the end of each clip.

    Args:
        tracker (`Tracker`): what to measure; the template is the first frame's.
        clips: of `read(i)`, `boxes_xywh`, `present` and a length each.
        factors (`tuple[float, ...]`): sides of the crops, in sides of the target.

    Raises:
        ValueError: there is a factor at which the target was never hit.
    """
    model, processor = tracker.model_for(), copy.copy(tracker.image_processor)
    read = {"modality": tracker.modality, "streams": tracker.streams, "allow_missing": tracker.allow_missing}
    true, found, hit = [], [], []
    for clip in clips:
        template, _ = processor.crop(processor.stack(clip.read(0), **read), clip.boxes_xywh[0], "template")
        for index in sorted({len(clip) // 3, 2 * len(clip) // 3, len(clip) - 1} - {0}):
            if not clip.present[index]:
                continue
            image, box, crops, boxes = processor.stack(clip.read(index), **read), clip.boxes_xywh[index], [], []
            for processor.search_factor in factors:
                crop, where = processor.crop(image, box, "search")
                crops.append(crop)
                boxes.append(processor.box_to_crop(box, where))
            search, first = (processor.normalize(processor.to_tensor(part)) for part in (crops, [template]))
            first = first.expand(len(crops), 1, *first.shape[1:])
            answers = model(search=search.to(tracker.dtype), template=first.to(tracker.dtype)).boxes.float().numpy()
            x, y, w, h = np.array(boxes).T
            true.append(np.log(np.sqrt(w * h)))
            found.append(np.log(np.sqrt(answers[:, 2] * answers[:, 3])))
            hit.append((abs(answers[:, 0] - x - w / 2) < w / 2) & (abs(answers[:, 1] - y - h / 2) < h / 2))
    true, found, hit = np.array(true), np.array(found), np.array(hit)
    if not hit.any(axis=0).all():
        raise ValueError("no search crop of some size was answered inside the target: there is no size to compare")
    errors = [float((found - true)[hit[:, column], column].mean()) for column in range(len(factors))]
    return SizeProbe(float(np.polyfit(true[hit], found[hit], 1)[0]), errors, float(hit.mean()))


def in_grey(sequence) -> "Clip":
    """A sequence as a camera without colours sees it."""
    clip = held(sequence)
    grey = [cv2.cvtColor(cv2.cvtColor(frame["rgb"], cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for frame in clip.frames]
    return replace(clip, frames=[frame | {"rgb": rgb} for frame, rgb in zip(clip.frames, grey, strict=True)])


def open_part(name: str):
    """A sequence folder, with `:rgb` or `:x` for one of its streams alone."""
    folder, _, part = name.partition(":")
    if part not in ("", "rgb", "x"):
        raise typer.BadParameter(f"{name}: after the colon comes rgb or x, not {part!r}.")
    sequence = open_sequence(folder)
    if part:
        sequence = sequence.rgb_only() if part == "rgb" else sequence.second_as_rgb()
    return sequence


@dataclass
class Clip:
    """A sequence whose frames are held in memory, for many trackers one after the other."""

    frames: list[dict[str, np.ndarray]]
    boxes_xywh: np.ndarray
    present: np.ndarray
    annotated: np.ndarray
    name: str = ""

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> dict[str, np.ndarray]:
        return self.frames[index]

    def rgb_only(self) -> "Clip":
        return replace(self, frames=[{"rgb": frame["rgb"]} for frame in self.frames])


def held(sequence) -> Clip:
    """A sequence with all its frames read."""
    frames = [sequence.read(index) for index in range(len(sequence))]
    annotated = getattr(sequence, "annotated", np.ones(len(sequence), dtype=bool))
    return Clip(frames, sequence.boxes_xywh, sequence.present, annotated, sequence.name)


def composed(
    pictures: Path, modality: str, count: int, length: int = 40, blindnesses: tuple[str, ...] = ()
) -> list[SyntheticSequence]:
    """Sequences of held-out pictures; with a second modality RGB is blind in all of them.

    Args:
        pictures (`Path`): the folder of pictures.
        modality (`str`): "thermal", "depth", "event" or "rgb".
        count, length (`int`): number of sequences, and of frames of each.
        blindnesses (`tuple[str, ...]`): in turn; by default "none" for RGB, all for others.
    """
    library = PictureLibrary(pictures, split="heldout")
    blindnesses = blindnesses or (("none",) if modality == "rgb" else BLIND)
    return [
        synthetic_sequence(library, 10_000 + seed, modality, length, blind=blindnesses[seed % len(blindnesses)])
        for seed in range(count)
    ]


def print_probe(trackers: list[str], sequences: list) -> None:
    """A row per tracker: its gain, its hits and its mean logarithmic error for each crop factor."""
    print("  ".join([f"{'crop factor':60}", "gain ", "hits ", *[f"{factor:6.1f}" for factor in FACTORS]]))
    for repo in trackers:
        loaded = Tracker.from_pretrained(repo)
        parts = [sequence.rgb_only() if loaded.modality == "rgb" else sequence for sequence in sequences]
        found = probe_sizes(loaded, parts)
        errors = [f"{error:+6.3f}" for error in found.errors]
        print("  ".join([f"{repo:60.60}", f"{found.gain:.3f}", f"{found.hits:.3f}", *errors]))


def main(
    sequences: Annotated[list[str] | None, typer.Argument(help="Folders of sequences, each FOLDER[:rgb|:x].")] = None,
    tracker: Annotated[list[str], typer.Option(help="Repository or folder; may be given several times.")] = ...,
    synthetic: Annotated[Path | None, typer.Option(help="Pictures to compose held-out sequences from.")] = None,
    modality: Annotated[str, typer.Option(help="Second modality of composed sequences, or rgb.")] = "rgb",
    rgb_sees: Annotated[bool, typer.Option(help="Composed sequences in which RGB is never blind.")] = False,
    count: Annotated[int, typer.Option(help="Number of composed sequences.")] = 30,
    length: Annotated[int, typer.Option(help="Frames of a composed sequence.")] = 40,
    until_absent: Annotated[bool, typer.Option(help="Stop at the first frame without the target.")] = False,
    grey: Annotated[bool, typer.Option(help="Take the colours from the RGB stream.")] = False,
    rival: Annotated[list[str] | None, typer.Option(help="OpenCV's csrt, kcf or nano:FOLDER beside them.")] = None,
    oracle: Annotated[bool, typer.Option(help="Each frame from the true box of the last one.")] = False,
    probe: Annotated[bool, typer.Option(help="How predicted sizes follow true ones, by crop factor.")] = False,
) -> None:
    """Prints a table: a row per sequence, a column per tracker, and their means; or with --probe a row per tracker."""
    cv2.setNumThreads(1)
    named = [(name, open_part(name)) for name in sequences or []]
    if synthetic is not None:
        named += [(video.name, video) for video in composed(synthetic, modality, count, length, ("none",) * rgb_sees)]
    if not named:
        raise typer.BadParameter("nothing to measure: give sequence folders or --synthetic.")
    if grey:
        named = [(name, in_grey(sequence)) for name, sequence in named]
    if probe:
        print_probe(tracker, [sequence for _, sequence in named])
        return
    columns = []
    makers = [(repo, Tracker.from_pretrained) for repo in tracker] + [(name, Rival) for name in rival or []]
    for repo, make in makers:
        loaded, values = make(repo), []
        for _, sequence in tqdm(named, desc=repo, leave=False):
            part = sequence.rgb_only() if loaded.modality == "rgb" else sequence
            values.append(mean_overlap(loaded, part, until_absent, oracle and isinstance(loaded, Tracker)))
        columns.append(values)
    for (name, _), *row in zip(named, *columns, strict=True):
        print("  ".join([f"{name:60.60}", *[f"{value:.3f}" for value in row]]))
    if len(columns) > 1 and len(named) > 1:
        mean, low, high = paired_difference(*columns[:2])
        print(f"first - second: {mean:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}")
    print("  ".join([f"{'mean over ' + str(len(named)) + ' sequences':60}", *[f"{np.mean(v):.3f}" for v in columns]]))


if __name__ == "__main__":
    run_script(lambda: typer.run(main))
