"""The app: choose a video, draw boxes, watch, correct, download. Needs gradio (`pip install 'mmtrackers[app]'`)."""

import atexit
import itertools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# before gradio is imported: nothing is reported to anybody, and files lie where we remove them
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import numpy as np
import pandas as pd

from mmtrackers.pretrained import SAMPLE_CLIP, default_checkpoint, located
from mmtrackers.processing.boxes import check_box_xywh
from mmtrackers.tracking.drawing import COLORS, data_url, visible
from mmtrackers.tracking.sources import FrameSource, open_source
from mmtrackers.tracking.tracker import Tracker

from .live import LiveRun
from .pictures import unpack_pictures

HERE = Path(__file__).parent
EMBEDDED = "embedded"
NOTHING = {"image": "", "second": "", "width": 0, "height": 0, "boxes": [], "chosen": None, "locked": True}
WELCOME = "Choose a video, or take the sample."
STAGE = (
    '<div class="pictures"><div class="stage"><img src="${value.image}" alt="frame" draggable="false">'
    '<div class="boxes"></div></div><img class="second" src="${value.second}" alt="second camera"></div>'
)
LINK = """
const show = stage(element, () => props.value,
                   change => { props.value = {...props.value, ...change}; trigger('input'); show(); });
watch('value', () => { show(); requestAnimationFrame(() => show()); });
"""


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for: megabytes of one upload, seconds of video that are tracked (the rest is left out),
    the longer side of a frame in pixels, and folders and Hub ids of trackers besides the embedded ones."""

    megabytes: int = 200
    seconds: int = 120
    side: int = 3840
    any_tracker: bool = True


class App:
    """The page and what it calls, within limits."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.folder = Path(tempfile.mkdtemp(prefix="mmtrackers-app-"))
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder / "gradio")
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)

    def show(self, video: str | None, other: str | None, kind: str, frame: float) -> tuple[Any, ...]:
        """A frame to draw on, what to say about the video, and the slider over its frames."""
        if not video:
            return NOTHING, WELCOME, gr.Slider(visible=False)
        with _told():
            source = self._source(video, other, kind)
            frames = iter(source)
            picture = next(itertools.islice(frames, int(frame or 0), None), None)
            getattr(frames, "close", lambda: None)()
            if picture is None:
                raise ValueError(f"{source.name} has no frame {int(frame)}")
            height, width = self._checked(picture["rgb"])
        said = f"{width} x {height} pixels, {source.length or '?'} frames. **Draw a box** round the target with mouse "
        said += "or finger; a box elsewhere is a further target, a box over another corrects it."
        slider = gr.Slider(0, max((source.length or 1) - 1, 1), visible=(source.length or 1) > 1)
        return self._stage(picture, {}, locked=False), said, slider

    def follow(
        self, run: LiveRun | None, stage: Any, video: str | None, other: str | None, kind: str, repo: str, frame: float
    ) -> Iterator[tuple[Any, ...]]:
        """Begins, or goes on with a run that pauses; yields what the page shows."""
        with _told():
            if run is not None and run.paused:
                run.place(self._boxes(stage, run.frame["rgb"].shape))
            else:
                if run is not None:
                    run.close()
                if not video:
                    raise ValueError("choose a video first, or take the sample")
                run = self._begin(stage, video, other, kind, repo, int(frame or 0))
            yield from self._watched(run, repo)

    def _begin(self, stage: Any, video: str, other: str | None, kind: str, repo: str, frame: int) -> LiveRun:
        source = self._source(video, other, kind)
        if repo != EMBEDDED and not self.limits.any_tracker:
            raise ValueError("only the embedded trackers can be chosen here")
        tracker = _loaded(repo, source.modality)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.folder))
        run = LiveRun(tracker, source, folder, frame, int(self.limits.seconds * source.fps))
        boxes = self._boxes(stage, self._checked(run.frame["rgb"]))
        if not boxes:
            raise ValueError("draw a box on the picture first")
        run.place(boxes)
        return run

    def _watched(self, run: LiveRun, repo: str) -> Iterator[tuple[Any, ...]]:
        shown, run.paused = time.perf_counter(), False
        try:
            yield self._page(run, "loading")
            for _ in run:
                if time.perf_counter() - shown > 0.4:
                    shown = time.perf_counter()
                    yield self._page(run, "running")
            if run.pausing and not run.ended:
                run.paused = True
                yield self._page(run, "pausing")
                return
            files = [str(path) for path in run.finish({"model": repo or EMBEDDED})]
            yield self._page(run, "done", files)
        except GeneratorExit:  # the visitor has left
            run.close()
            raise
        finally:
            # gradio has copied what it serves
            if not run.paused:
                shutil.rmtree(run.folder, ignore_errors=True)

    def _page(self, run: LiveRun, state: str, files: list[str] | None = None) -> tuple[Any, ...]:
        total = run.end if run.source.length is None else min(run.source.length, run.end or run.source.length)
        scores = ", ".join(f"{number}: {found.score:.2f}" for number, found in run.found.items())
        said = f"frame {run.index + 1} of {total}, score {scores or 'none'}, {run.frames_per_second:.0f} frames/s"
        if state == "pausing":
            said += ". **Paused**: put a target right by drawing it anew (click its number first to choose it), "
            said += "remove it, or add one; then go on."
        elif state == "done":
            reason = "" if run.ended == "the end" else f" ({_without_paths(run.ended)})"
            speed = f"{run.frames_per_second:.1f} per second in the tracker"
            said = f"**Done**{reason}: {len(run.predictions)} frames, {speed}"
        scored = [(run.first + k, found.score, str(number))
                  for k, frame in enumerate(run.predictions) for number, found in frame.items()]  # fmt: skip
        running, boxes = state in ("loading", "running"), {number: found.box for number, found in run.found.items()}
        go = gr.Button("Go on" if state == "pausing" else "Track", interactive=not running)
        pause, stop = gr.Button(interactive=running), gr.Button(interactive=running or state == "pausing")
        curve = pd.DataFrame(scored, columns=["frame", "score", "target"])
        done, rest = (files[0], files[1:]) if files else (None, None)
        return run, self._stage(run.frame, boxes, state != "pausing"), said, curve, done, rest, go, pause, stop

    @staticmethod
    def pause(run: LiveRun | None) -> None:
        """Leaves the loop after the frame that is being tracked."""
        if run is not None:
            run.pausing = True

    def stop(self, run: LiveRun | None) -> Iterator[Any]:
        """Ends a run; of one that pauses nobody else would write the results."""
        if run is None:
            return
        run.stopping = True
        if run.paused:
            yield from self._watched(run, EMBEDDED)

    def _source(self, video: str, other: str | None, kind: str) -> FrameSource:
        if kind == "none":
            return open_source(video)
        if not other:
            raise ValueError(f"choose the {kind} file too, or set the second camera to none")
        place = Path(other)
        if kind == "depth":
            place = place.with_suffix(".frames")
            if not place.is_dir():
                unpack_pictures(Path(other), place, int(self.limits.seconds * 60), self.limits.megabytes * 2**22)
        return open_source(video, {kind: place})

    def _checked(self, picture: np.ndarray) -> tuple[int, int]:
        height, width = picture.shape[:2]
        if max(height, width) > self.limits.side:
            raise ValueError(f"the video is {width} x {height}; at most {self.limits.side} pixels a side here")
        return height, width

    def _boxes(self, stage: Any, size: tuple[int, ...]) -> dict[int, list[float]]:
        """What a browser sent, as boxes; anybody can send anything."""
        try:
            given = [(int(box["id"]), box["xywh"]) for box in stage["boxes"]]
        except (TypeError, KeyError, ValueError):
            raise ValueError("the boxes cannot be read: load the page again") from None
        if len(given) > 8 or any(not 1 <= number <= 99 for number, _ in given):
            raise ValueError("at most 8 targets")
        return {number: check_box_xywh(box, *size[:2]).tolist() for number, box in given}

    @staticmethod
    def _stage(frame: dict[str, np.ndarray], boxes: dict[int, Any], locked: bool) -> dict[str, Any]:
        height, width = frame["rgb"].shape[:2]
        other = next((name for name in frame if name != "rgb"), None)
        known = [{"id": number, "xywh": [round(float(v), 1) for v in box]} for number, box in boxes.items()]
        return {
            "image": data_url(frame["rgb"]), "second": data_url(visible(frame[other], other)) if other else "",
            "width": width, "height": height, "boxes": known,
            "chosen": known[0]["id"] if len(known) == 1 and not locked else None, "locked": locked,
        }  # fmt: skip

    def build(self) -> gr.Blocks:
        """The page, not yet served."""
        script = (HERE / "stage.js").read_text(encoding="utf-8") + LINK
        style = (HERE / "stage.css").read_text(encoding="utf-8")
        colors = {str(k): "#{:02x}{:02x}{:02x}".format(*color) for k, color in enumerate(COLORS, 1)}
        with gr.Blocks(title="mmtrackers", analytics_enabled=False, delete_cache=(3600, 6 * 3600)) as page:
            gr.Markdown("## mmtrackers\nFollow things through a video, in RGB alone or with a second camera.")
            run = gr.State(None, time_to_live=1800, delete_callback=lambda run: run and run.close())
            with gr.Row():
                with gr.Column(scale=1, min_width=260):
                    video = gr.Video(label="video", sources=["upload"], include_audio=True, height=170,
                                     elem_id="video")  # fmt: skip
                    take = gr.Button("Use the sample clip", size="sm", elem_id="sample")
                    with gr.Accordion("Second camera", open=False, elem_id="pair"):
                        kind = gr.Radio(["none", "thermal", "event", "depth"], value="none", show_label=False)
                        other = gr.File(label="video; depth: a zip of 16-bit PNG in millimeters", height=110,
                                        file_types=[".mp4", ".mkv", ".avi", ".mov", ".webm", ".zip"], elem_id="other")
                    with gr.Accordion("Tracker", open=False):
                        repo = gr.Dropdown([EMBEDDED], value=EMBEDDED, allow_custom_value=self.limits.any_tracker,
                                           label="tracker or adapter", elem_id="repo",
                                           info="embedded" + ", a folder or a Hub id" * self.limits.any_tracker)
                    curve = gr.LinePlot(x="frame", y="score", color="target", color_map=colors, y_lim=[0, 1],
                                        height=190, elem_id="curve", buttons=[])
                with gr.Column(scale=3):
                    said = gr.Markdown(WELCOME, elem_id="said")
                    picture = gr.HTML(NOTHING, html_template=STAGE, css_template=style, js_on_load=script,
                                      elem_id="picture")
                    frame = gr.Slider(0, 1, value=0, step=1, visible=False, label="start at frame", elem_id="frame")
                    with gr.Row():
                        go = gr.Button("Track", variant="primary", elem_id="go")
                        pause = gr.Button("Pause and correct", interactive=False, elem_id="pause")
                        stop = gr.Button("Stop", interactive=False, elem_id="stop")
                    with gr.Row():
                        done = gr.Video(label="result", interactive=False, elem_id="done", buttons=["download"])
                        files = gr.File(label="boxes and scores", interactive=False, file_count="multiple",
                                        elem_id="files")  # fmt: skip
            quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
            seen = {"fn": self.show, "inputs": [video, other, kind, frame], "outputs": [picture, said, frame], **quiet}
            for change in (video.change, other.change, frame.release):
                change(**seen)
            take.click(lambda: str(SAMPLE_CLIP), None, video, **quiet)
            watched = [run, picture, said, curve, done, files, go, pause, stop]
            go.click(self.follow, [run, picture, video, other, kind, repo, frame], watched,
                     concurrency_id="track", concurrency_limit=1, **quiet)  # fmt: skip
            pause.click(self.pause, run, None, queue=False, **quiet)
            stop.click(self.stop, run, watched, **quiet)
        return page

    def launch(self, port: int | None = None, host: str | None = None, open_browser: bool = False) -> None:
        """Serves the page until Ctrl-C, by default on gradio's choice of a port from 7860, and on the host that
        `GRADIO_SERVER_NAME` says, else to this machine alone."""
        page = self.build().queue(max_size=16, default_concurrency_limit=4, api_open=False)
        theme = gr.themes.Default(primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["monospace"])
        page.launch(
            server_name=host, server_port=port, inbrowser=open_browser, share=False, theme=theme, footer_links=[],
            max_file_size=f"{self.limits.megabytes}mb", allowed_paths=[str(SAMPLE_CLIP)], ssr_mode=False,
            enable_monitoring=False, show_error=True, quiet=True, prevent_thread_lock=True,
        )  # fmt: skip
        print(f"the app runs at {page.local_url} (Ctrl-C ends it)", flush=True)
        page.block_thread()


@lru_cache(maxsize=4)
def _loaded(repo: str, modality: str) -> Tracker:
    return Tracker.from_pretrained(str(default_checkpoint(modality)) if repo == EMBEDDED else located(repo), pack=True)


@contextmanager
def _told() -> Iterator[None]:
    """Turns errors that a visitor can mend into a notice on the page, without the server's paths."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(_without_paths(str(error)), print_exception=False) from error


def _without_paths(text: str) -> str:
    """A message in which folders of this machine have gone and names of files are left."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:,;'\"()]+[\\/])+", "", text)
