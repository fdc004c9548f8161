"""
Mean overlap of trackers on sequences, initialised once with each sequence's first box.

    # annotated folders; ":x" tracks the second modality alone as if it were RGB, ":rgb" the RGB stream alone
    python examples/measure.py --tracker examples/checkpoints/ostrack-tiny VOT/bag VTUAV/bus1:x

    # composed sequences of held-out pictures in which RGB is blind; several trackers side by side
    python examples/measure.py --tracker examples/checkpoints/ostrack-tiny \
        --tracker examples/checkpoints/seatrack-tiny-thermal --synthetic pictures --modality thermal --count 40
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from tqdm import tqdm

from mmtrackers import Tracker
from mmtrackers.data import open_sequence
from mmtrackers.processing.boxes import iou_xywh
from mmtrackers.synthetic.pairs import PictureLibrary, SyntheticSequence, synthetic_sequence

BLIND = ("night", "camouflage", "glare")


def mean_overlap(tracker: Tracker, sequence, until_absent: bool = False) -> float:
    """Mean overlap over the annotated frames after the first in which the target is present.

    Args:
        tracker (`Tracker`): what to measure.
        sequence: anything with `read(i)`, `boxes_xywh`, `present` and a length.
        until_absent (`bool`): stop at the first frame without the target.
    """
    session = tracker.start(sequence.read(0), sequence.boxes_xywh[0])
    annotated = getattr(sequence, "annotated", np.ones(len(sequence), dtype=bool))
    overlaps = []
    for index in range(1, len(sequence)):
        if until_absent and annotated[index] and not sequence.present[index]:
            break
        prediction = session.update(sequence.read(index))
        if annotated[index] and sequence.present[index]:
            overlaps.append(float(iou_xywh(np.asarray(prediction.box), sequence.boxes_xywh[index])))
    return float(np.mean(overlaps))


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

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> dict[str, np.ndarray]:
        return self.frames[index]

    def rgb_only(self) -> "Clip":
        return replace(self, frames=[{"rgb": frame["rgb"]} for frame in self.frames])


def held(sequence: SyntheticSequence) -> Clip:
    """A sequence with all its frames read."""
    frames = [sequence.read(index) for index in range(len(sequence))]
    return Clip(frames, sequence.boxes_xywh, sequence.present)


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


def main(
    sequences: Annotated[list[str] | None, typer.Argument(help="Folders of sequences, each FOLDER[:rgb|:x].")] = None,
    tracker: Annotated[list[str], typer.Option(help="Repository or folder; may be given several times.")] = ...,
    synthetic: Annotated[Path | None, typer.Option(help="Pictures to compose held-out sequences from.")] = None,
    modality: Annotated[str, typer.Option(help="Second modality of composed sequences, or rgb.")] = "rgb",
    count: Annotated[int, typer.Option(help="Number of composed sequences.")] = 30,
    length: Annotated[int, typer.Option(help="Frames of a composed sequence.")] = 40,
    until_absent: Annotated[bool, typer.Option(help="Stop at the first frame without the target.")] = False,
) -> None:
    """Prints a table: a row per sequence, a column per tracker, and their means."""
    cv2.setNumThreads(1)
    named = [(name, open_part(name)) for name in sequences or []]
    if synthetic is not None:
        named += [(video.name, video) for video in composed(synthetic, modality, count, length)]
    if not named:
        raise typer.BadParameter("nothing to measure: give sequence folders or --synthetic.")
    columns = []
    for repo in tracker:
        loaded = Tracker.from_pretrained(repo)
        values = []
        for _, sequence in tqdm(named, desc=repo, leave=False):
            part = sequence.rgb_only() if loaded.modality == "rgb" else sequence
            values.append(mean_overlap(loaded, part, until_absent))
        columns.append(values)
    for (name, _), *row in zip(named, *columns, strict=True):
        print("  ".join([f"{name:60.60}", *[f"{value:.3f}" for value in row]]))
    print("  ".join([f"{'mean over ' + str(len(named)) + ' sequences':60}", *[f"{np.mean(v):.3f}" for v in columns]]))


if __name__ == "__main__":
    typer.run(main)
