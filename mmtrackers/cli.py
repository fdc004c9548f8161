"""`mmtrackers track | evaluate | info | push | convert`: the command line.

What only some commands need (OpenCV, PyAV, plots) is imported inside them.
"""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .tracking.runs import RunResult
    from .tracking.tracker import Tracker
    from .tracking.video import FrameSource

app = typer.Typer(
    help="Track objects in RGB, thermal, depth and event video.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _user_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that a user can mend become one line and exit code 2 instead of a traceback."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError) as error:
            _fail(str(error) or type(error).__name__)
        except Exception as error:
            # A config whose fields do not fit each other: an error of its own kind, with the reason as its cause.
            from huggingface_hub.errors import StrictDataclassError

            if not isinstance(error, StrictDataclassError):
                raise
            _fail(str(error.__cause__ or error))

    return guarded


def _fail(message: str) -> None:
    typer.echo("error: " + " ".join(message.split()), err=True)
    raise typer.Exit(2)


@app.command()
@_user_errors
def track(
    source: Annotated[str, typer.Argument(help="Video file, image folder, dataset sequence folder or camera index.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a tracker or an adapter; default: the one in examples/.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(help="x,y,width,height in pixels of the first frame; repeat it for more targets."),
    ] = None,
    thermal: Annotated[Path | None, typer.Option(help="Folder or video of the thermal frames.")] = None,
    depth: Annotated[Path | None, typer.Option(help="Folder of the 16-bit depth frames (millimetres).")] = None,
    event: Annotated[Path | None, typer.Option(help="Folder or video of the event frames.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("tracked"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16 weights.")] = "float32",
    pack: Annotated[bool, typer.Option("--pack", help="Prepare the model for inference: faster.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Feed RGB in the place of a second stream that is not there.")
    ] = False,
    absent_below: Annotated[
        float | None, typer.Option(help="Report the target as absent at scores below this (0 to 1).")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the base, in place of the one an adapter names.")
    ] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print where the time goes: reading, crop, model, decoding.")
    ] = False,
) -> None:
    """Follow targets through a video; leaves boxes, scores and an annotated video.

    Ctrl-C ends the run and keeps what is done.
    """
    boxes = [parse_box(text) for text in box or []]
    given = {"thermal": thermal, "depth": depth, "event": event}
    second = {modality: path for modality, path in given.items() if path is not None}
    if len(second) > 1:
        raise ValueError(f"--{' and --'.join(second)} were given: a tracker reads one stream beside RGB, choose one")

    from .tracking.runs import run, write_results
    from .tracking.tracker import Tracker
    from .tracking.video import open_source

    opened = open_source(source, second)
    repo = model or default_model(opened.modality)
    tracker = Tracker.from_pretrained(
        repo,
        dtype=dtype,
        device=device,
        pack=pack,
        base_model=base_model,
        absent_below=absent_below,
        allow_missing=allow_missing,
    )
    _check_streams(tracker, opened, repo)
    result = run(tracker, opened, boxes or None, output, max_frames, progress=True, profile=profile)
    settings = {
        "model": repo,
        "base_model": base_model,
        "modality": tracker.modality,
        "streams": tracker.streams,
        "device": device,
        "dtype": dtype,
        "pack": pack,
        "absent_below": absent_below,
        "allow_missing": allow_missing,
    }
    _report(result, [*write_results(result, output, settings), output / f"{opened.name}.mp4"])


def _check_streams(tracker: "Tracker", source: "FrameSource", repo: str) -> None:
    """Says before the first frame what does not fit between the model's streams and the source's."""
    wanted, there = tracker.modality, source.modality
    if tracker.streams == 1 and there != "rgb":
        typer.echo(f"{repo} reads RGB alone: the {there} frames are not used", err=True)
    elif tracker.streams == 2 and there != wanted and (wanted != "any" or there == "rgb"):
        kinds = ["thermal", "depth", "event"] if wanted == "any" else [wanted]
        if not tracker.allow_missing:
            has = "only rgb" if there == "rgb" else f"rgb and {there}"
            raise ValueError(
                f"{repo} reads rgb and {' or '.join(kinds)}, and {source.name} has {has}: give "
                f"--{' or --'.join(kinds)} FOLDER, choose another --model, or --allow-missing to feed the RGB stream "
                "alone"
            )
        typer.echo(f"no {' or '.join(kinds)} stream: the RGB stream alone is fed (--allow-missing)", err=True)


def _report(result: "RunResult", files: list[Path]) -> None:
    count = len(result.predictions)
    done = "1 frame" if count == 1 else f"{count} frames"
    # the given frame is not tracked: alone it has no speed
    rate = f", {result.frames_per_second:.1f} per second in the tracker" if result.frames_per_second else ""
    typer.echo(f"{result.source.name}: {done}{rate}")
    if result.clock is not None:
        from .evaluation.speed import speed_of, speed_table

        speed = speed_of(result.clock.rows, result.clock.device)
        typer.echo(speed_table(speed) if speed is not None else "no frame was timed: there is only the given one")
    absent = sum(not p.present for found in result.predictions for p in found)
    if absent:
        typer.echo(f"reported as absent: {absent} of {count * len(result.predictions[0])} boxes")
    if result.mean_overlap is not None:
        which = "of the first target " if len(result.predictions[0]) > 1 else ""
        which += "over the frames where the target is present, without the given one"
        typer.echo(f"mean overlap {result.mean_overlap:.3f} {which}")
    typer.echo("written: " + ", ".join(str(path) for path in files))
    if result.stopped == "interrupted":
        typer.echo(f"interrupted after {done}; what was done is kept", err=True)
        raise typer.Exit(130)
    if result.stopped:
        _fail(f"{result.stopped} (what was done until then, {done}, is kept)")


def parse_box(text: str) -> list[float]:
    """`"x,y,width,height"` (comma or space) as four numbers.

    Raises:
        ValueError: not four numbers.

    Example:
        >>> parse_box("60,40,30,20.5")
        [60.0, 40.0, 30.0, 20.5]
    """
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ValueError(f"--box {text!r}: expected four numbers x,y,width,height in pixels, as in 60,40,30,20")
    return numbers


def default_model(modality: str = "rgb") -> str:
    """The checkpoint that comes with the project for RGB, or its adapter for RGB and a second modality.

    Looks in `examples/checkpoints` of the checkout that this package runs from, then of the current folder.

    Raises:
        ValueError: it is in neither place.

    Example:
        ```python
        Tracker.from_pretrained(default_model("thermal"))
        ```
    """
    name = "ostrack-tiny" if modality == "rgb" else f"seatrack-tiny-{modality}"
    roots = dict.fromkeys((Path(__file__).resolve().parent.parent, Path.cwd()))
    places = [root / "examples" / "checkpoints" / name for root in roots]
    for place in places:
        if place.is_dir():
            return str(place)
    raise ValueError(
        f"the default tracker {name} is in none of {', '.join(map(str, places))}: run from a checkout of mmtrackers, "
        "or name a tracker with --model (folder or Hub id)"
    )


@app.command()
@_user_errors
def evaluate(
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    dataset: Annotated[
        str | None, typer.Option(help="lasher, rgbt234, visevent, depthtrack, lasot, got10k, ...: layout and rules.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the set; test where there is one.")] = None,
    tracker: Annotated[
        list[str] | None, typer.Option(help="[NAME=]folder or Hub id of a tracker or adapter; may be repeated.")
    ] = None,
    results: Annotated[
        list[str] | None, typer.Option(help="[NAME=]folder of any tracker's raw results, to score; may be repeated.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Other rules than the set's own, by name.")] = None,
    names: Annotated[Path | None, typer.Option(help="Text file with the sequences to take, one per line.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of raw results, times and scores.")] = Path("evaluated"),
    batch: Annotated[int, typer.Option(min=1, help="Sequences side by side in one forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16 weights.")] = "float32",
    pack: Annotated[bool, typer.Option("--pack", help="Prepare the models for inference: faster.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the base, in place of the one an adapter names.")
    ] = None,
    absent_below: Annotated[
        float | None, typer.Option(help="Keep the box where it was at scores below this (0 to 1).")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Feed RGB in the place of a second stream that is not there.")
    ] = False,
    form: Annotated[str, typer.Option(help="Four numbers in --results are xywh, or xyxy (two corners).")] = "xywh",
    partial: Annotated[
        bool, typer.Option("--partial", help="Score --results in which sequences or frames are missing; marked.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away what a run with other settings left in --output.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write a report too: Markdown, LaTeX, JSON and one HTML page.")
    ] = False,
    card: Annotated[bool, typer.Option("--card", help="Write the scores into the cards of local trackers.")] = False,
) -> None:
    """Track through a data set and score the boxes under its rules; or score raw results.

    A run that was ended goes on where it was. Many processes: accelerate launch -m mmtrackers.cli evaluate ...
    """
    from .evaluation.command import Request
    from .evaluation.command import evaluate as run_evaluation

    given = {name: value for name, value in locals().items() if name in Request.__dataclass_fields__}
    try:
        run_evaluation(Request(trackers=tuple(tracker or ()), **given | {"results": tuple(results or ())}))
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one was", err=True)
        raise typer.Exit(130) from None


@app.command()
@_user_errors
def info(
    repo: Annotated[str, typer.Argument(help="Folder or Hub id of a tracker or an adapter.")],
    base_model: Annotated[str | None, typer.Option(help="The base, in place of the one an adapter names.")] = None,
) -> None:
    """Show what a tracker is made of: base, tuner, modality, sizes, parameters."""
    from .hub.auto import AutoTracker

    model = AutoTracker.from_pretrained(repo, **({"base_model": base_model} if base_model else {}))
    for name, value in describe(model, repo).items():
        typer.echo(f"{name:<12}{value}")


def describe(model: Any, repo: str) -> dict[str, str]:
    """What `mmtrackers info` shows of a loaded model.

    Args:
        model (`TrackerPreTrainedModel`): with or without an adapter.
        repo (`str`): where it came from.

    Example:
        ```python
        describe(AutoTracker.from_pretrained(folder), folder)["modality"]
        ```
    """
    from .hub.adapters import adapter_state_dict

    config = model.config
    adapters = getattr(model, "peft_config", None) or {}
    own = sum(tensor.numel() for name in adapters for tensor in adapter_state_dict(model, name).values())
    total = sum(p.numel() for p in model.parameters())
    described = {
        "tracker": f"{type(model).__name__} ({config.model_type})",
        "modality": "rgb" if config.streams == 1 else f"rgb + {config.modality}",
    }
    for adapter in adapters.values():
        described["base"] = str(adapter.base_model_name_or_path)
        described["tuner"] = str(getattr(adapter.peft_type, "value", adapter.peft_type))
    described |= {
        "sizes": f"template {config.template_size}, search {config.search_size}, patch {config.patch_size} pixels",
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}, {config.num_attention_heads} heads",
        "parameters": f"{total:,}" + (f", of them {own:,} in the adapter" if adapters else ""),
    }
    path = _adapter_file(repo)
    if adapters and path is not None:
        described["adapter"] = f"{path.stat().st_size:,} bytes ({path.name})"
    return described


def _adapter_file(repo: str) -> Path | None:
    name = "adapter_model.safetensors"
    if Path(repo).is_dir():
        return Path(repo) / name if (Path(repo) / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name)
    return Path(found) if isinstance(found, str) else None


@app.command()
@_user_errors
def push(
    folder: Annotated[Path, typer.Argument(help="A saved tracker or adapter.")],
    repo: Annotated[str, typer.Argument(help="Hub id: organisation/name.")],
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the base, where the adapter names a local folder.")
    ] = None,
) -> None:
    """Upload a saved tracker or adapter to the Hub."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give one that save_pretrained wrote")
    from .hub import publish

    typer.echo(f"pushed to {publish.push(folder, repo, private=private, base_model=base_model)}")


@app.command()
@_user_errors
def convert(
    system: Annotated[str, typer.Argument(help="Whose file: lorat, ostrack, odtrack, patrack, seatrack, spmtrack.")],
    file: Annotated[Path, typer.Argument(help="Official checkpoint, as published (.pth.tar, .pth), or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    base: Annotated[str | None, typer.Option(help="Folder or Hub id of the base that an adapter belongs to.")] = None,
    modality: Annotated[str | None, typer.Option(help="thermal, depth or event.")] = None,
    search_size: Annotated[int | None, typer.Option(help="Side of the search crop, where a file lacks it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Turn an official checkpoint into a folder of this package."""
    from .conversion.systems import convert_checkpoint

    told = {} if search_size is None else {"search_size": search_size}
    try:
        report = convert_checkpoint(system, file, out, base=base, modality=modality, overwrite=force, **told)
    except FileExistsError as error:
        raise ValueError(f"{error}, or --force to write into it") from error
    typer.echo(str(report))


def main() -> None:
    """Entry point of the `mmtrackers` command."""
    # a person at a terminal has no use for the line of our code that warned
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
