"""`mmtrackers track`: follow targets through a video."""

import ctypes
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from .browse import drawn_boxes
from .ending import exit_code_of, fail, quiet_loading
from .options import AllowMissing, BaseModel, Device, Dtype

if TYPE_CHECKING:
    from mmtrackers.tracking.runs import RunResult
    from mmtrackers.tracking.session import Prediction
    from mmtrackers.tracking.sources import FrameSource
    from mmtrackers.tracking.tracker import Tracker


SOURCE = ("Video file, image folder, dataset sequence folder, camera index or /dev/video0, address of a stream "
          "(rtsp://..., http://...), or sample: the clip of the package.")  # fmt: skip
RANGE = "Counts or degrees that become black and white; default: found."
BOX = ("x,y,width,height in pixels of the first frame; repeat it for more targets. Without it, and without an "
       "annotation, a browser page asks for it.")  # fmt: skip


def track(
    source: Annotated[str, Argument(help=SOURCE)],
    model: Annotated[str | None, Option(help="Tracker or adapter: folder or Hub id; default: our own.")] = None,
    box: Annotated[list[str] | None, Option(help=BOX)] = None,
    thermal: Annotated[str | None, Option(help="Folder, TIFF file or video of the thermal frames.")] = None,
    depth: Annotated[str | None, Option(help="Folder or TIFF of the 16-bit depth frames (millimeters).")] = None,
    event: Annotated[str | None, Option(help="Folder or video of event frames, or a recording.")] = None,
    modality: Annotated[str | None, Option(help="What SOURCE itself shows: rgb, thermal, depth, event.")] = None,
    align: Annotated[str | None, Option(help="File of `mmtrackers align`, or scale: cameras of one view.")] = None,
    pair_by: Annotated[str | None, Option(help="Pair the streams by number (of files), time or rank.")] = None,
    fps: Annotated[float | None, Option(help="Frames per second of folders of images.")] = None,
    event_window: Annotated[str | None, Option(help="Events of each RGB frame: exposure or interval.")] = None,
    event_start: Annotated[int | None, Option(help="Microseconds of the events at the first RGB frame.")] = None,
    thermal_range: Annotated[tuple[float, float] | None, Option(metavar="LOW HIGH", help=RANGE)] = None,
    thermal_per_frame: Annotated[bool, Option("--thermal-per-frame", help="Stretch each frame alone.")] = False,
    output: Annotated[Path, Option(help="Folder of the results.")] = Path("tracked"),
    device: Device = "cpu",
    dtype: Dtype = "float32",
    pack: Annotated[bool | None, Option(help="Prepare for inference; default: for float32 on a CPU.")] = None,
    threads: Annotated[str, Option(help="A number, or auto: all cores or one, as is faster.")] = "auto",
    allow_missing: AllowMissing = False,
    absent_below: Annotated[float | None, Option(help="Absent at scores below this; default: as saved.")] = None,
    recover: Annotated[bool, Option("--recover", help="Look for an absent target all over the frame.")] = False,
    size_momentum: Annotated[float | None, Option(help="Share of the last size that a box keeps.")] = None,
    base_model: BaseModel = None,
    max_frames: Annotated[int | None, Option(min=1, help="Stop after so many frames.")] = None,
    export: Annotated[str, Option(help="Label files for other tools, with commas: coco, mot, cvat.")] = "",
    video: Annotated[bool, Option("--video/--no-video", help="Write a video with the boxes drawn in.")] = True,
    save: Annotated[bool, Option("--save", help="Write that video of a camera or a stream too.")] = False,
    stream: Annotated[bool, Option("--stream", help="Print a JSON line per frame, and nothing else.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier run's results in --output.")] = False,
    profile: Annotated[bool, Option("--profile", help="Print where the time goes, stage by stage.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress bar and no report, only errors.")] = False,
) -> None:
    """Follow targets through a video; leaves boxes, scores and an annotated video.

    Ctrl-C, SIGTERM and SIGHUP end the run and keep what is done.
    """
    boxes = [parse_box(text) for text in box or []]
    given = {"thermal": thermal, "depth": depth, "event": event}
    second = {modality: path for modality, path in given.items() if path is not None}
    if len(second) > 1:
        raise ValueError(f"--{' and --'.join(second)} were given: a tracker reads one stream beside RGB, choose one")

    from mmtrackers.pretrained import SAMPLE_CLIP, default_checkpoint, located
    from mmtrackers.tracking.export import label_files
    from mmtrackers.tracking.exported import is_exported
    from mmtrackers.tracking.runs import run
    from mmtrackers.tracking.sources import open_source, with_rig
    from mmtrackers.tracking.tracker import Tracker, as_dtype

    if thermal_range is not None and thermal_per_frame:
        raise ValueError("--thermal-range and --thermal-per-frame were given: choose one")
    kinds = [kind for kind in export.replace(" ", "").split(",") if kind]
    label_files(output, "", kinds)  # a kind that is not known is said before anything is loaded
    place = SAMPLE_CLIP if source == "sample" and not Path(source).exists() else source
    opened = open_source(place, second, modality, fps, pair_by, event_window, event_start)
    opened = with_rig(opened, align, "frame" if thermal_per_frame else thermal_range)
    for note in opened.notes:
        typer.echo(note, err=True)
    repo = located(model) if model else str(default_checkpoint("rgb" if opened.without_rgb else opened.modality))
    quiet_loading()
    exact = device == "cpu" and as_dtype(dtype) == as_dtype("float32") and not is_exported(repo)
    packed = exact if pack is None else pack
    loading = {"base_model": base_model, "device": device, "dtype": dtype, "pack": packed, "recover": recover,
               "allow_missing": allow_missing}  # fmt: skip
    tracker = Tracker.from_pretrained(repo, absent_below=absent_below, size_momentum=size_momentum, **loading)
    _check_streams(tracker, opened, repo)
    boxes = boxes or drawn_boxes(opened)
    _give_back_memory()
    if pack is None and exact and not quiet:
        typer.echo("the model is packed for inference, which changes no box (--no-pack leaves it as it is)", err=True)
    shown = opened.modality if opened.without_rgb else tracker.modality
    settings = {"model": repo, **loading, "modality": shown, "streams": tracker.streams, "align": align,
                "pair_by": pair_by, "thermal_range": opened.thermal_range, "absent_below": tracker.absent_below,
                "size_momentum": tracker.size_momentum}  # fmt: skip
    result = run(
        tracker, opened, boxes or None, output, max_frames, progress=not quiet, profile=profile,
        video=video and (save or not opened.live), overwrite=overwrite, threads=threads, labels=kinds,
        settings=settings, on_frame=_print_frame if stream else None,
    )  # fmt: skip
    _report(result, quiet, stream)


def _give_back_memory() -> None:
    """Frames of 4K go back to the system once they are freed: glibc would keep some for each thread, 100 MB in all."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 12 << 20)  # M_MMAP_THRESHOLD: larger blocks have pages of their own
        libc.mallopt(-1, 16 << 20)  # M_TRIM_THRESHOLD
        libc.malloc_trim(0)


def _print_frame(index: int, found: "list[Prediction]") -> None:
    line = {"frame": index, "time": round(time.time(), 3), "targets": [prediction.to_dict() for prediction in found]}
    print(json.dumps(line), flush=True)


def _check_streams(tracker: "Tracker", source: "FrameSource", repo: str) -> None:
    """Says before the first frame what does not fit between the model's streams and the source's."""
    wanted, there = tracker.modality, source.modality
    if source.without_rgb:
        if tracker.streams == 2:
            raise ValueError(f"{repo} reads rgb and {wanted}, and {source.name} has {there} pictures alone: give the "
                             f"RGB stream as SOURCE and this one as --{there}, or choose an RGB tracker, which reads "
                             "them in the place of RGB")  # fmt: skip
        typer.echo(f"{source.name} has {there} pictures alone: {repo} reads them in the place of RGB", err=True)
    elif tracker.streams == 1 and there != "rgb":
        typer.echo(f"{repo} reads RGB alone: the {there} frames are not used", err=True)
    elif tracker.streams == 2 and there != wanted and (wanted != "any" or there == "rgb"):
        kinds = ["thermal", "depth", "event"] if wanted == "any" else [wanted]
        if not tracker.allow_missing:
            has = "only rgb" if there == "rgb" else f"rgb and {there}"
            raise ValueError(f"{repo} reads rgb and {' or '.join(kinds)}, and {source.name} has {has}: give "
                             f"--{' or --'.join(kinds)} FOLDER, choose another --model, or --allow-missing to feed "
                             "the RGB stream alone")  # fmt: skip
        typer.echo(f"no {' or '.join(kinds)} stream: the RGB stream alone is fed (--allow-missing)", err=True)


def _report(result: "RunResult", quiet: bool = False, stream: bool = False) -> None:
    done = "1 frame" if result.count == 1 else f"{result.count} frames"
    if not quiet:
        typer.echo("\n".join(_lines(result, done)), err=stream)
    if result.interrupt is not None:
        typer.echo(f"interrupted after {done}; what was done is kept", err=True)
        raise typer.Exit(exit_code_of(result.interrupt))
    if result.stopped:
        fail(f"{result.stopped} (what was done until then, {done}, is kept)")


def _lines(result: "RunResult", done: str) -> Iterator[str]:
    rate = ""
    if result.frames_per_second:  # the given frame is not tracked: alone it has no speed
        rate = f", {result.whole_frames_per_second:.1f} per second ({result.frames_per_second:.1f} in the tracker)"
    yield f"{result.source.name}: {done}{rate}"
    if result.clock is not None:
        from mmtrackers.evaluation.results import speed_of

        speed = speed_of(result.clock.rows, result.clock.device)
        yield str(speed or "no frame was timed: there is only the given one")
        spent = {what: 1000 * seconds / len(result.predictions) for what, seconds in result.recording.items()}
        yield "beside it, in a thread of its own (ms/frame): " + ", ".join(f"{v:.2f} {k}" for k, v in spent.items())
        yield f"{result.threads} thread{'s' if result.threads > 1 else ''} at the end"
    absent = sum(not p.present for found in result.predictions for p in found)
    if absent:
        yield f"reported as absent: {absent} of {len(result.predictions) * len(result.predictions[0])} boxes"
    if result.mean_overlap is not None:
        which = "of the first target " if len(result.predictions[0]) > 1 else ""
        which += "over the frames where the target is present, without the given one"
        yield f"mean overlap {result.mean_overlap:.3f} {which}"
    yield "written: " + ", ".join(str(path) for path in result.files)


def parse_box(text: str) -> list[float]:
    """`"x,y,width,height"` (comma or space) as four numbers."""
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ValueError(f"--box {text!r}: expected four numbers x,y,width,height in pixels, as in 60,40,30,20")
    return numbers
