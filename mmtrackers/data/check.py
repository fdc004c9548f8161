"""What a folder of sequences looks like to this package, and what is wrong with it, by file and line."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .datasets import EXPECTED, first_file, read_entry, walk
from .images import read_image
from .index import FileStamps
from .sequence import Sequence


@dataclass
class SetCheck:
    """What `check_folder` found: sequences by layout; frames, those with a line in the annotation, those with a box;
    file, line and what is wrong, in the order of the sequences."""

    layouts: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    boxes: int = 0
    shown: int = 0
    problems: list[str] = field(default_factory=list)

    def lines(self, most: int = 10) -> list[str]:
        """The finding in words, with the first problems."""
        text = [f"{count} sequences as of {layout}" for layout, count in self.layouts.most_common()]
        text += [f"{self.frames} frames, {self.boxes} annotated, {self.shown} with the target"]
        text += self.problems[:most] or ["no problem was found"]
        return text + ([f"... and {len(self.problems) - most} more problems"] if len(self.problems) > most else [])


def check_folder(root: str | Path) -> SetCheck:
    """Reads every annotation below a folder (one sequence, or sequences at most four levels down), and the first and
    last pictures of each; ValueError where there is no such folder."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; expected a dataset or a sequence")
    found, stamps, bare = SetCheck(), FileStamps(), []
    for entry in itertools.chain(walk(root.resolve(), stamps, bare), bare):
        found.layouts[entry.layout.name] += 1
        annotation = first_file(entry.folder, entry.layout.boxes)
        if annotation is None:
            found.problems.append(f"{entry.folder}: no annotation; expected {' or '.join(entry.layout.boxes)}")
            continue
        try:
            sequence = read_entry(entry, None, None, stamps)
        except (ValueError, OSError) as error:
            found.problems.append(str(error))
            continue
        found.frames += len(sequence)
        found.boxes += int(sequence.annotated.sum())
        found.shown += int(sequence.present.sum())
        found.problems += [f"{annotation}{place}: {what}" for place, what in _problems(sequence)]
    if not found.layouts:
        found.problems.append(f"{root}: no sequence. {EXPECTED}")
    return found


def _problems(sequence: Sequence) -> list[tuple[str, str]]:
    """Where in a sequence's annotation something is wrong, and what."""
    pictures = {}
    for index in {0, len(sequence) - 1}:
        for modality, files in sequence.frames.items():
            try:
                pictures.setdefault(modality, read_image(files[index], modality))
            except ValueError as error:
                return [("", str(error))]
    height, width = pictures["rgb"].shape[:2]
    boxes, shown = sequence.boxes_xywh, np.flatnonzero(sequence.present)
    if not len(shown):
        return [("", "no line has a box")]
    known, first = boxes[shown], int(shown[0]) + 1
    within_as_corners = (known[:, 2:] > known[:, :2]).all() and (known[:, 2:] <= (width, height)).all()
    if within_as_corners and (known[:, :2] + known[:, 2:] > (width, height)).any(1).mean() > 0.5:
        return [(f", line {first}", f"{known[0].tolist()} seems to be two corners: expected x,y,width,height")]
    if (known <= 1).all():
        return [(f", line {first}", f"{known[0].tolist()} seems to be in fractions of the picture: expected pixels")]
    outside = (known[:, :2] >= (width, height)).any(1) | (known[:, :2] + known[:, 2:] <= 0).any(1)
    lines = [(f", line {row + 1}", f"{boxes[row].tolist()} lies outside the picture of {width} x {height} pixels")
             for row in shown[outside].tolist()]  # fmt: skip
    if len(sequence) < 2:
        lines.append(("", "one frame alone: nothing to track"))
    return lines
