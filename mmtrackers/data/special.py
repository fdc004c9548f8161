"""The sets whose sequences are not simply their folders: one small function each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .sequence import FrameFiles, Sequence

if TYPE_CHECKING:
    from .index import FileStamps
    from .layouts import Layout


@dataclass(frozen=True)
class Entry:
    """Where one sequence is to be read from: its name, its folder (which may hold others as well), how it lies there,
    and its annotation where the layout does not say it. Frames with numbers below `first` are not its own; `skip`
    frames and boxes are left out at the start."""

    name: str
    folder: Path
    layout: "Layout"
    boxes: Path | None = None
    first: int = 0
    skip: int = 0


def packaged_list(name: str) -> list[str]:
    """Lines of a list that comes with the package (its first line names the source)."""
    text = files("mmtrackers").joinpath("data", "lists", f"{name}.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


# Start numbers and the omission are those of the OTB toolkit (Wu et al., TPAMI 2015) as visionml/pytracking has them.
_OTB_FIRST = {"David": 300, "BlurCar1": 247, "BlurCar3": 3, "BlurCar4": 18}
_OTB_SKIP = {"Tiger1": 5}
_OTB_NOT_IN_THE_SET = {"Human4_1"}


def otb_targets(found: list[Entry], stamps: "FileStamps") -> Iterator[Entry]:
    """OTB: a folder with `groundtruth_rect.1.txt` and `.2.txt` is two sequences, and some start late."""
    for entry in found:
        stamps.add(entry.folder)
        for boxes in sorted(entry.folder.glob("groundtruth_rect*.txt")):
            number = boxes.name.removeprefix("groundtruth_rect").removesuffix(".txt").lstrip(".")
            name = f"{entry.name}_{number}" if number else entry.name
            if name not in _OTB_NOT_IN_THE_SET:
                first, skip = _OTB_FIRST.get(name, 0), _OTB_SKIP.get(name, 0)
                yield replace(entry, name=name, boxes=boxes, first=first, skip=skip)


def uav123_targets(found: list[Entry], stamps: "FileStamps") -> Iterator[Entry]:
    """UAV123: several sequences share one folder; a table says where each starts, its boxes how long it is."""
    by_folder = {entry.folder.name: entry for entry in found}
    for line in packaged_list("uav123"):
        name, folder, first = line.split()
        if folder not in by_folder:
            raise ValueError(f"UAV123: the folder {folder}/ of sequence {name!r} is missing")
        entry = by_folder[folder]
        boxes = entry.folder.parents[2] / "anno" / "UAV123" / f"{name}.txt"
        yield replace(entry, name=name, boxes=boxes, first=int(first))


def coco_stills(root: Path, split: str, stamps: "FileStamps") -> Iterator[Sequence]:
    """COCO 2017: every annotation that is no crowd and has an area is a sequence of one frame (as in pytracking)."""
    file = root / "annotations" / f"instances_{split}.json"
    candidates = (root / "images" / split, root / split)
    folder = next((path for path in candidates if path.is_dir()), None)
    if not file.is_file() or folder is None:
        raise ValueError(f"COCO: expected {file} and the pictures in {candidates[0]}")
    stamps.add(file)
    content = json.loads(file.read_bytes())
    pictures = {picture["id"]: picture["file_name"] for picture in content["images"]}
    for annotation in content["annotations"]:
        box = np.array([annotation["bbox"]], dtype=np.float64)
        if annotation.get("iscrowd") or not (box[:, 2:] > 0).all():
            continue
        picture = pictures[annotation["image_id"]]
        frames = {"rgb": FrameFiles.of(folder, [picture])}
        yield Sequence(f"{Path(picture).stem}_{annotation['id']}", frames, box, np.ones(1, bool), layout="COCO")
