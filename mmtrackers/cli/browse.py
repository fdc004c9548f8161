"""`mmtrackers app`: track in a browser; and boxes that a person draws there, where the command line was given none."""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

if TYPE_CHECKING:
    from mmtrackers.tracking.sources import FrameSource


def app(
    port: Annotated[int | None, Option(help="Port; the first free one from 7860 by default.")] = None,
    no_browser: Annotated[bool, Option("--no-browser", help="Print the address, open nothing.")] = False,
) -> None:
    """Track in a browser: choose a video, draw boxes, watch, correct, download. On this machine alone."""
    import importlib.util

    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the app needs gradio, which is not installed: pip install 'mmtrackers[app]'")
    from mmtrackers.browser.app import App

    App().launch(port, host="127.0.0.1", open_browser=not no_browser)


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
