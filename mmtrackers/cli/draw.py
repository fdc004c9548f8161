"""Boxes that a person draws, where the command line was given none."""

import shlex
import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mmtrackers.tracking.sources import FrameSource


def drawn_boxes(source: "FrameSource") -> list[list[float]]:
    """Boxes drawn in a browser on the first frame; none where the annotation knows one, nobody is at a terminal, or
    the source is a camera, whose picture is another by the time that a box is drawn."""
    if source.boxes_xywh is not None or source.live or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return []
    from mmtrackers.browser.first_frame import ask_boxes
    from mmtrackers.tracking.drawing import visible

    frames = iter(source)
    frame = next(frames, None)
    getattr(frames, "close", lambda: None)()
    if frame is None:
        return []
    shown = next(iter(frame))
    boxes = ask_boxes(visible(frame[shown], shown), source.name, lambda line: typer.echo(line, err=True))
    given = [part for box in boxes for part in ("--box", ",".join(f"{value:g}" for value in box))]
    typer.echo(f"the same without a browser: {shlex.join(['mmtrackers', *sys.argv[1:], *given])}", err=True)
    return boxes
