"""The command line. One module per group of commands; what a command needs is imported when it runs."""

import sys
import warnings
from typing import Annotated

import typer
from typer import Option

from . import align, browse, evaluate, finetune, info, share, track
from .ending import Commands, interrupt_on_signals

CODES = "Exit codes: 0 done, 1 a fault of this program, 2 something that you can mend, 130 Ctrl-C."
app = typer.Typer(cls=Commands, epilog=CODES, no_args_is_help=True, pretty_exceptions_enable=False)
for command in (track.track, browse.app, align.align, evaluate.evaluate, info.info, share.push, share.convert,
                share.export):  # fmt: skip
    app.command()(command)
app.command(context_settings=finetune.OWN_OPTIONS)(finetune.finetune)
app.add_typer(finetune.sets, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        from mmtrackers import __version__

        typer.echo(f"mmtrackers {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, Option("--debug", help="Show the traceback of every error.")] = False,
    version: Annotated[bool, Option("--version", help="Show the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Track objects in RGB, thermal, depth and event video."""


def main() -> None:
    """Entry point of the `mmtrackers` command."""
    # a person at a terminal has no use for the line of our code that warned
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    interrupt_on_signals()
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
