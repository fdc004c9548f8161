"""`mmtrackers evaluate`: track through a data set and score the boxes, or score raw results."""

from pathlib import Path
from typing import Annotated

import typer

from .ending import exit_code_of, quiet_loading


def evaluate(
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="lasher, rgbt234, visevent, lasot, got10k, ...: layout and rules; folder: your own sequences."
        ),
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
    pair_by: Annotated[
        str | None, typer.Option(help="Where frame numbers of two streams disagree: number (common ones) or rank.")
    ] = None,
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
    given = locals()
    from mmtrackers.pretrained import located

    named = [one.rpartition("=") for one in given.pop("tracker") or ()]
    given["trackers"] = [f"{name}{equals}{located(repo)}" for name, equals, repo in named]
    given["results"] = results or ()
    from mmtrackers.evaluation.command import evaluate as run_evaluation

    quiet_loading()
    try:
        run_evaluation(**given)
    except KeyboardInterrupt as interrupt:
        typer.echo("interrupted; the same command goes on where this one was", err=True)
        raise typer.Exit(exit_code_of(interrupt)) from None
