"""
What an alignment is worth: mean overlap of a two-stream tracker on a sequence whose streams lie on each other, with
the second stream moved away by a known matrix, and with that registered again from the pictures alone.

    python examples/measure_alignment.py VTUAV/bus1_sample

Rows: the RGB base alone; the pair as published; the second camera off; off, but registered (`mmtrackers align`, which
has seen five pairs of the moved stream). Crops are warped, never frames, as `mmtrackers track --align` does it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from mmtrackers import Tracker
from mmtrackers.cli.ending import run_script
from mmtrackers.pretrained import default_checkpoint
from mmtrackers.processing.boxes import iou_xywh
from mmtrackers.processing.frames import to_picture
from mmtrackers.processing.registration import register
from mmtrackers.tracking.sources import Frame, open_source

# moved pixels -> RGB pixels: two cameras beside each other with slightly different lenses
OFF = np.array([[0.93, 0.02, 28.0], [-0.015, 0.95, 14.0], [0, 0, 1]])


def corner_distance(a: np.ndarray, b: np.ndarray, height: int, width: int) -> float:
    """How far two matrices put the corners of a picture from each other, in pixels on average."""
    corners = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], float)
    apart = cv2.perspectiveTransform(corners, a) - cv2.perspectiveTransform(corners, b)
    return float(np.linalg.norm(apart[0], axis=1).mean())


def mean_overlap(tracker: Tracker, frames: Iterator[Frame], boxes: np.ndarray, matrix: np.ndarray | None) -> float:
    """Over the annotated frames after the first one."""
    alignment = None if matrix is None else {tracker.modality: matrix}
    session, overlaps = None, []
    for frame, box in zip(frames, boxes, strict=True):
        if session is None:
            session = tracker.start(frame, box, alignment=alignment)
            continue
        found = session.update(frame)
        if np.isfinite(box).all():
            overlaps.append(float(iou_xywh(found.box, box)))
    return float(np.mean(overlaps))


def main(
    sequence: Annotated[Path, typer.Argument(help="Annotated folder of two streams, such as VTUAV's bus1_sample.")],
    tracker: Annotated[str | None, typer.Option(help="Of two streams; the package's own for the modality.")] = None,
    base: Annotated[str | None, typer.Option(help="RGB tracker of the first row.")] = None,
) -> None:
    """Print the table."""
    source = open_source(sequence)
    kind = source.modality
    two = Tracker.from_pretrained(tracker or str(default_checkpoint(kind)), pack=True)
    one = Tracker.from_pretrained(base or str(default_checkpoint("rgb")), pack=True)
    height, width = next(iter(source))["rgb"].shape[:2]

    def moved() -> Iterator[Frame]:
        away = np.linalg.inv(OFF)
        for frame in source:
            shown = cv2.warpPerspective(frame[kind], away, (width, height), borderMode=cv2.BORDER_REPLICATE)
            yield frame | {kind: shown}

    def registered(frames: Iterator[Frame]) -> np.ndarray:
        chosen = (frame for k, frame in enumerate(frames) if k % 20 == 10)
        pairs = [(frame["rgb"], to_picture(frame[kind], kind)) for frame in chosen]
        return register(pairs[:5], modality=kind).matrix

    found, published = registered(moved()), registered(source.frames())
    rows = [
        ("RGB alone", one, source.frames(), None),
        (f"rgb + {kind} as published", two, source.frames(), None),
        (f"{kind} off by {corner_distance(OFF, np.eye(3), height, width):.0f} px at the corners", two, moved(), None),
        ("the same, registered from its pictures", two, moved(), found),
        ("the same, the true matrix", two, moved(), OFF),
    ]
    for name, chosen, frames, matrix in rows:
        typer.echo(f"{name:<45} {mean_overlap(chosen, frames, source.boxes_xywh, matrix):.3f}")
    typer.echo(
        f"the matrix lies {corner_distance(found, published @ OFF, height, width):.1f} px at the corners from what "
        f"the published pair gives, {corner_distance(found, OFF, height, width):.1f} px from the one that was applied"
    )


if __name__ == "__main__":
    run_script(lambda: typer.run(main))
