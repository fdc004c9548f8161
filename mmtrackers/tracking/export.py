"""What a run found, for other tools: pandas, supervision, and files of COCO, MOTChallenge and CVAT."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from mmtrackers.processing.boxes import xywh_to_xyxy
from mmtrackers.processing.files import write_text

from .session import Prediction

if TYPE_CHECKING:
    from .runs import RunResult

Row = dict[str, int | float | bool]
_SIDES = ("x", "y", "width", "height")


def rows(result: "RunResult") -> Iterator[Row]:
    """One row per frame and target, frames from 0, targets from 1, boxes in pixels; frames where a target is not
    followed are left out."""
    for frame, found in enumerate(result.predictions, result.first):
        for target, prediction in enumerate(found, 1):
            if min(prediction.box[2:]) > 0:
                sides = dict(zip(_SIDES, prediction.box.tolist(), strict=True))
                told = {"score": prediction.score, "present": prediction.present}
                yield {"frame": frame, "target": target, **sides, **told}


def to_pandas(result: "RunResult") -> Any:
    """A `pandas.DataFrame` of a row per frame and target: frame, target, x, y, width, height, score, present."""
    import pandas

    return pandas.DataFrame(list(rows(result)), columns=["frame", "target", *_SIDES, "score", "present"])


def to_supervision(predictions: Prediction | Sequence[Prediction]) -> Any:
    """The predictions of one frame as `supervision.Detections`: those that are present, `tracker_id` from 1;
    ImportError where supervision is not installed."""
    import supervision

    found = [predictions] if isinstance(predictions, Prediction) else list(predictions)
    seen = [(number, p) for number, p in enumerate(found, 1) if p.present and min(p.box[2:]) > 0]
    if not seen:
        return supervision.Detections.empty()
    return supervision.Detections(
        xyxy=xywh_to_xyxy(np.array([p.box for _, p in seen], dtype=np.float32)),
        confidence=np.array([p.score for _, p in seen], dtype=np.float32),
        class_id=np.zeros(len(seen), dtype=int),
        tracker_id=np.array([number for number, _ in seen]),
    )


def export(result: "RunResult", output: str | Path, kinds: Iterable[str]) -> list[Path]:
    """Writes label files beside the other results, and returns their paths.

    Args:
        result (`RunResult`), output (`str` or `Path`): of `run`, and the folder.
        kinds (`str`s): "coco" (`<name>_coco.json`), "mot" (`_mot.txt`, MOTChallenge's format of results), "cvat"
            (`_cvat.xml`, CVAT for video 1.1); ValueError for others.
    """
    files = label_files(output, result.source.name, kinds)
    return [write_text(path, KINDS[kind][1](result)) for kind, path in files.items()]


def label_files(folder: str | Path, name: str, kinds: Iterable[str]) -> dict[str, Path]:
    """Where `export` writes; ValueError for a kind that it does not know."""
    kinds = list(kinds)
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"cannot export to {', '.join(unknown)}: known are coco, mot and cvat")
    return {kind: Path(folder) / f"{name}_{kind}.{KINDS[kind][0]}" for kind in kinds}


def _coco(result: "RunResult") -> str:
    """Pictures are named as `ffmpeg -i clip.mp4 -start_number 0 clip/%06d.jpg` would write them."""
    height, width = result.size
    last = result.first + len(result.predictions)
    images = [{"id": frame + 1, "file_name": f"{result.source.name}/{frame:06d}.jpg", "width": width, "height": height}
              for frame in range(result.first, last)]  # fmt: skip
    shown = (row for row in rows(result) if row["present"])
    annotations = [
        {"id": number, "image_id": row["frame"] + 1, "category_id": 1, "track_id": row["target"], "iscrowd": 0,
         "bbox": [round(row[side], 2) for side in _SIDES], "segmentation": [],
         "area": round(row["width"] * row["height"], 2), "score": round(row["score"], 4)}
        for number, row in enumerate(shown, 1)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "target", "supercategory": "target"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}) + "\n"


def _mot(result: "RunResult") -> str:
    """MOTChallenge counts frames, targets and pixels from 1."""
    line = "{},{},{:.2f},{:.2f},{:.2f},{:.2f},{:.4f},-1,-1,-1\n"
    shown = (row for row in rows(result) if row["present"])
    return "".join(line.format(r["frame"] + 1, r["target"], r["x"] + 1, r["y"] + 1, r["width"], r["height"],
                               r["score"]) for r in shown)  # fmt: skip


def _cvat(result: "RunResult") -> str:
    """Every frame is a keyframe; a target that is absent, or no longer followed, is "outside"."""
    height, width = result.size
    last = result.first + len(result.predictions)
    root = ElementTree.fromstring(
        f"<annotations><version>1.1</version><meta><task><name/><size>{last}</size><mode>interpolation</mode>"
        f"<start_frame>0</start_frame><stop_frame>{last - 1}</stop_frame><labels><label><name>target</name>"
        f"<attributes/></label></labels><original_size><width>{width}</width><height>{height}</height></original_size>"
        "</task></meta></annotations>"
    )
    root.find("meta/task/name").text = result.source.name
    tracks: dict[int, list[Row]] = {}
    for row in rows(result):
        tracks.setdefault(int(row["target"]), []).append(row)
    for target, found in tracks.items():
        track = ElementTree.SubElement(root, "track", id=str(target - 1), label="target", source="auto")
        for row in found:
            _cvat_box(track, row, row["frame"], outside=not row["present"])
        if found[-1]["frame"] + 1 < last:
            _cvat_box(track, found[-1], found[-1]["frame"] + 1, outside=True)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _cvat_box(track: ElementTree.Element, row: Row, frame: float, outside: bool) -> None:
    sides = {"xtl": row["x"], "ytl": row["y"], "xbr": row["x"] + row["width"], "ybr": row["y"] + row["height"]}
    marks = {"frame": frame, "keyframe": 1, "outside": int(outside), "occluded": 0, "z_order": 0}
    numbers = {name: f"{value:.2f}" for name, value in sides.items()}
    ElementTree.SubElement(track, "box", {name: str(value) for name, value in marks.items()} | numbers)


KINDS = {"coco": ("json", _coco), "mot": ("txt", _mot), "cvat": ("xml", _cvat)}
