"""`mmtrackers evaluate`: track through a data set and score the boxes, or score raw results."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from .ending import exit_code_of, quiet_loading
from .options import AllowMissing, BaseModel, Device, Dtype

if TYPE_CHECKING:
    from mmtrackers.evaluation import EvaluationResult


def evaluate(
    root: Annotated[Path, Option(help="Folder of the data set.")],
    dataset: Annotated[str | None, Option(help="lasher, visevent, lasot, ...; folder: your own sequences.")] = None,
    split: Annotated[str | None, Option(help="Part of the set; test where there is one.")] = None,
    tracker: Annotated[list[str] | None, Option(help="[NAME=]folder or Hub id to run; may be repeated.")] = None,
    results: Annotated[list[str] | None, Option(help="[NAME=]folder of raw results; may be repeated.")] = None,
    protocol: Annotated[str | None, Option(help="Other rules than the set's own, by name.")] = None,
    names: Annotated[Path | None, Option(help="Text file with the sequences to take, one per line.")] = None,
    pair_by: Annotated[str | None, Option(help="Pair two streams by number (common ones) or rank.")] = None,
    output: Annotated[Path, Option(help="Folder of raw results, times and scores.")] = Path("evaluated"),
    batch: Annotated[int, Option(min=1, help="Sequences side by side in one forward pass.")] = 1,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    pack: Annotated[bool, Option("--pack", help="Prepare the models for inference: faster.")] = False,
    base_model: BaseModel = None,
    absent_below: Annotated[float | None, Option(help="Keep the box at scores below this (0 to 1).")] = None,
    allow_missing: AllowMissing = False,
    form: Annotated[str, Option(help="Four numbers in --results are xywh, or xyxy (two corners).")] = "xywh",
    partial: Annotated[bool, Option("--partial", help="Score --results that lack sequences or frames.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a run with other settings in --output.")] = False,
    report: Annotated[bool, Option("--report", help="Write a report too: Markdown, LaTeX, JSON, HTML.")] = False,
    card: Annotated[bool, Option("--card", help="Write the scores into the cards of local trackers.")] = False,
) -> None:
    """Track through a data set and score the boxes under its rules; or score raw results.

    A run that was ended goes on where it was. Many processes: accelerate launch -m mmtrackers.cli evaluate ...
    """
    from mmtrackers.data import open_dataset
    from mmtrackers.data.layouts import DATASETS
    from mmtrackers.evaluation import add_to_card, evaluate_tracker, get_protocol, score_folder, truth_of
    from mmtrackers.evaluation.plan import processes
    from mmtrackers.evaluation.protocols import OWN_SEQUENCES, PROTOCOLS
    from mmtrackers.evaluation.report.write import write_report
    from mmtrackers.evaluation.run import SCORES, settings_of
    from mmtrackers.pretrained import located
    from mmtrackers.tracking.tracker import Tracker

    if protocol is None and dataset is None:
        raise ValueError(f"which rules? Give --dataset or --protocol; known: {', '.join(PROTOCOLS)}. Your own "
                         f"sequences, in any known layout: --dataset {OWN_SEQUENCES}")  # fmt: skip
    rules, state = get_protocol(protocol or dataset), processes()
    repos = {name: located(repo) for name, repo in _named(tracker or ()).items()}
    folders = _named(results or ())
    _check(repos, folders, card)
    row = DATASETS.get(dataset)
    split = split or ("test" if row is not None and "test" in row.splits else None)
    own = dataset == OWN_SEQUENCES
    sequences = open_dataset(root, names, dataset=None if own else dataset, split=split, pair_by=pair_by)
    title = root.resolve().name if row is None else row.title
    # Parts of a set in folders of their own: VTUAV's short and long videos are two tables.
    place = output / (rules.name if split in (None, "test") else f"{rules.name}-{split}")
    if state.is_main_process:
        typer.echo(f"{title}: {len(sequences)} sequences, rules of {rules.source}")
    found = []
    truths = [truth_of(sequence, rules) for sequence in sequences] if folders else []
    for name, folder in folders.items():
        result = score_folder(folder, truths, rules, name, form, partial)
        found.append(replace(result, split=split or "", dataset=title))
        if state.is_main_process:
            found[-1].save(place / name / SCORES)
    quiet_loading()
    # of several processes each has a GPU of its own
    device = str(state.device) if state.device.type == device else device
    loading = {"dtype": dtype, "base_model": base_model, "absent_below": absent_below, "allow_missing": allow_missing}
    try:
        for name, repo in repos.items():
            loaded = Tracker.from_pretrained(repo, device=device, **loading)
            settings = settings_of(loaded, repo, pack)
            if pack:
                loaded.model.pack()
            about = {"name": name, "output": place / name, "split": split or "", "title": title, "progress": True}
            found.append(evaluate_tracker(
                loaded, sequences, rules, **about, batch=batch, settings=settings, overwrite=overwrite
            ))  # fmt: skip
    except KeyboardInterrupt as interrupt:
        typer.echo("interrupted; the same command goes on where this one was", err=True)
        raise typer.Exit(exit_code_of(interrupt)) from None
    if not state.is_main_process:
        return
    typer.echo("\n".join([*_lines(found, rules.metric_names), f"written: {place}/NAME/{SCORES}"]))
    scored = [result for result in found if result.scores]
    if report and scored:
        files = write_report(scored, place.with_name(f"{place.name}-report"), {title: sequences})
        typer.echo("report: " + ", ".join(map(str, files)))
    for result in found[len(folders) :] if card else ():
        typer.echo("card: " + ", ".join(map(str, add_to_card(repos[result.tracker], result))))


def _check(repos: dict[str, str], folders: dict[str, str], card: bool) -> None:
    """What can be said before hours of tracking."""
    if not repos and not folders:
        raise ValueError("nothing to evaluate: give --tracker REPO, or --results FOLDER of raw results")
    if twice := sorted(set(repos) & set(folders)):
        raise ValueError(f"{', '.join(twice)}: a name for a tracker and for results; choose another with NAME=PLACE")
    for repo in repos.values():
        if card and not Path(repo).is_dir():
            raise ValueError(f"--card writes into a tracker's own folder, and {repo} is none: download it first "
                             f"(hf download {repo} --local-dir FOLDER), or leave --card out")  # fmt: skip


def _named(places: Sequence[str]) -> dict[str, str]:
    """`NAME=PLACE` or `PLACE` -> name -> place."""
    named: dict[str, str] = {}
    for text in places:
        name, equals, place = text.partition("=")
        if not equals:
            place, name = text, Path(text).name if Path(text).is_dir() else text
        name = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "tracker"
        if name in named:
            raise ValueError(f"{named[name]} and {place} would both be called {name}: name them with NAME=PLACE")
        named[name] = place
    return named


def _lines(results: "Sequence[EvaluationResult]", metrics: Sequence[str]) -> Iterator[str]:
    """A table of the scores in percent, what was noticed, and the speed."""
    from mmtrackers.evaluation.run import SCORES

    width = max(len(result.tracker) for result in results) + 2
    yield "".join([" " * width, *(f"{name:>8}" for name in metrics)])
    for result in results:
        values = [result.scores.get(name) for name in metrics]
        cells = [f"{100 * value:8.2f}" if value is not None else f"{'-':>8}" for value in values]
        marks = f"   partial: {len(result.sequences)} sequences, {len(result.missing)} missing" * result.partial
        yield f"{result.tracker:<{width}}{''.join(cells)}{marks}"
    for result in results:
        notes = [*result.notes, *(note for row in result.sequences for note in row.notes)]
        notes[10:] = [f"{len(notes) - 10} more in {SCORES}"] if len(notes) > 10 else []
        yield from (f"note ({result.tracker}): {note}" for note in notes)
        if result.speed is not None:
            yield f"{result.tracker}: {result.speed}"
