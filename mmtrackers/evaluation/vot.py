"""The VOT toolkit's side of a tracker: the process that it drives over TraX, and its registry entry.

The toolkit (package `vot-toolkit`, Kristan et al., the VOT challenges) starts a process per tracker and talks to it
through the protocol TraX (Čehovin Zajc, 2017; package `vot-trax`): a region and the paths of a frame's images go in, a
region and a confidence come out. The toolkit may live in another environment than the tracker.

    python -m mmtrackers.evaluation.vot register trackers.ini NAME MODEL --device cuda     # once
    vot evaluate NAME && vot analysis NAME                                                 # in the workspace
"""

import configparser
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmtrackers.data.sequence import read_image
from mmtrackers.tracking.tracker import Tracker

# TraX knows these three channels only, so an event camera cannot be evaluated by the toolkit.
CHANNELS = {"rgb": "color", "depth": "depth", "thermal": "ir"}
# Seconds for one answer; the first one waits until the model is loaded.
TIMEOUT = 300

app = typer.Typer(
    help="Trackers for the VOT toolkit.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
Model = Annotated[str, typer.Argument(help="Folder or Hub id of a tracker or an adapter.")]
Modality = Annotated[str | None, typer.Option(help="Second stream; the model's own by default.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16 weights.")]
Base = Annotated[str | None, typer.Option(help="The base, in place of the one an adapter names.")]


def serve(tracker: Tracker, name: str = "mmtrackers") -> None:
    """Answers the toolkit's requests on standard input and output (or on `TRAX_SOCKET`) until it says goodbye; every
    initialization begins a new session of the tracker, whose `name` the toolkit is told. ValueError where that reads
    events, or a request cannot be answered; ImportError where the package `vot-trax` is not installed."""
    modalities = [tracker.modality] if tracker.streams == 1 else ["rgb", tracker.modality]
    if unknown := [modality for modality in modalities if modality not in CHANNELS]:
        raise ValueError(f"the VOT toolkit has channels for {', '.join(CHANNELS)}, none for {', '.join(unknown)}: "
                         "evaluate such a tracker with `mmtrackers evaluate`")  # fmt: skip
    channels = {modality: CHANNELS[modality] for modality in modalities}
    try:
        import trax.image
        import trax.region
        import trax.server
    except ImportError as error:
        raise ImportError("the VOT toolkit talks through the package vot-trax: pip install vot-trax") from error
    _ascii_output()
    session = None
    with trax.server.Server(
        [trax.region.Region.RECTANGLE], [trax.image.Image.PATH], list(channels.values()), tracker_name=name
    ) as server:
        while (request := server.wait()).type != trax.TraxStatus.QUIT:
            if lacking := [channel for channel in channels.values() if channel not in request.image]:
                sent = ", ".join(request.image) or "no image"
                raise ValueError(f"the toolkit sent {sent}, but the tracker reads the channel {lacking[0]}")
            frame = {name: read_image(request.image[channel].path(), name) for name, channel in channels.items()}
            if request.type == trax.TraxStatus.INITIALIZE:
                if len(request.objects) != 1:
                    raise ValueError(f"{len(request.objects)} targets in one run; this integration follows one")
                session = tracker.start(frame, request.objects[0][0].bounds())
                prediction = session.initial_prediction()
            elif session is None:
                raise ValueError("a frame came before the first initialization")
            else:
                prediction = session.update(frame)
            box = trax.region.Rectangle.create(*prediction.box.tolist())
            server.status([(box, {"confidence": prediction.score})])


def _ascii_output() -> None:
    """TraX shares standard output with whatever is printed, and its client ends the connection at a byte above 127:
    the blocks of a progress bar are enough."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="ascii", errors="backslashreplace")


@app.command("serve")
def _serve(
    model: Model, name: Annotated[str, typer.Option(help="What the toolkit is told.")] = "mmtrackers",
    modality: Modality = None, device: Device = "cpu", dtype: Dtype = "float32",
    pack: Annotated[bool, typer.Option("--pack", help="Prepare the model for inference.")] = False,
    base_model: Base = None,
) -> None:
    """Answer the toolkit over TraX (the toolkit starts this)."""
    _ascii_output()
    options = {"dtype": dtype, "device": device, "pack": pack, "base_model": base_model, "modality": modality}
    serve(Tracker.from_pretrained(model, **options), name)


@app.command(help="Enter a tracker into the toolkit's registry.")
def register(
    registry: Annotated[Path, typer.Argument(help="trackers.ini of the workspace.")],
    name: Annotated[str, typer.Argument(help="The toolkit's identifier for the tracker.")],
    model: Model, modality: Modality = None, device: Device = "cpu", dtype: Dtype = "float32",
    pack: Annotated[bool, typer.Option(help="Prepare the model for inference.")] = True,
    base_model: Base = None,
    label: Annotated[str | None, typer.Option(help="Its name in the toolkit's reports.")] = None,
) -> str:
    """Adds a tracker to the toolkit's `trackers.ini`, which is made if need be, and returns the entry; folders are
    written as absolute paths, since the toolkit starts trackers in an empty one. ValueError for a name that cannot be
    used, or is there already.

    Example:
        >>> import tempfile
        >>> _ = register(Path(tempfile.mkdtemp()) / "trackers.ini", "seatrack", "hub/id")  # doctest: +ELLIPSIS
        added to ...
        [seatrack]
        label = seatrack
        ...
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"the toolkit takes letters, digits, _ and - in a tracker's name, not {name!r}")
    registry = Path(registry)
    text = registry.read_text(encoding="utf-8") if registry.is_file() else ""
    known = configparser.ConfigParser(interpolation=None)
    known.read_string(text, source=str(registry))
    if name in known:
        raise ValueError(f"{registry} has a tracker {name} already: take another name, or delete the entry")
    command = [sys.executable, "-m", "mmtrackers.evaluation.vot", "serve", _place(model)]
    options = {"--name": name, "--modality": modality, "--device": device, "--dtype": dtype}
    options["--base-model"] = base_model and _place(base_model)
    command += [part for option, value in options.items() if value for part in (option, value)]
    command += ["--pack"] if pack else []
    fields = {
        "label": label or name, "protocol": "trax", "command": shlex.join(command), "timeout": str(TIMEOUT),
        # The process starts in an empty folder: a checkout that is not installed would not be found there.
        "env_PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    # A lone percent sign would be an interpolation for the toolkit's parser.
    entry = f"[{name}]\n" + "".join(f"{key} = {value.replace('%', '%%')}\n" for key, value in fields.items())
    registry.write_text(text + ("\n" if text else "") + entry, encoding="utf-8")
    typer.echo(f"added to {registry}:\n{entry}", nl=False)
    return entry


def _place(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).is_dir() else model


if __name__ == "__main__":
    try:
        app()
    except (ValueError, OSError) as error:
        if sys.argv[1] == "serve":  # the toolkit keeps the traceback in its log
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
