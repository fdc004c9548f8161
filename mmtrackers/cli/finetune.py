"""`mmtrackers finetune | data`: train on one's own sequences, and what a folder of them looks like to this package."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from .ending import exit_code_of

OWN_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
sets = typer.Typer(help="Folders of sequences.", no_args_is_help=True)


def finetune(context: typer.Context) -> None:
    """Train an adapter on a frozen tracker, or a whole base; --help lists the options.

    The loop, to read and change: mmtrackers/training/loop.py. Many processes: accelerate launch -m mmtrackers.cli
    finetune ...
    """
    from mmtrackers.finetune import main

    if (interrupt := main(context.args).interrupt) is not None:
        raise typer.Exit(exit_code_of(interrupt))


@sets.command()
def check(
    folder: Annotated[Path, Argument(help="One sequence, or a folder of them, at most four levels down.")],
) -> None:
    """Say which layout is seen, how many sequences, frames and boxes, and the first problems by file and line.

    A sequence of your own is a folder of pictures, or rgb/ with thermal/, depth/ or event/ beside it, and a
    groundtruth.txt with one x,y,width,height in pixels per frame; a line without numbers is a frame without target.
    """
    from mmtrackers.data.check import check_folder

    found = check_folder(folder)
    typer.echo("\n".join(found.lines()))
    if found.problems:
        raise typer.Exit(2)
