"""What `mmtrackers evaluate` does: trackers to run, others' results to score, one table."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from mmtrackers.data import open_dataset
from mmtrackers.data.layouts import DATASETS
from mmtrackers.tracking.tracker import Tracker

from .card import add_to_card
from .plan import Processes
from .protocols import OWN_SEQUENCES, PROTOCOLS, get_protocol
from .raw import Form, score_folder
from .results import EvaluationResult
from .run import SCORES, evaluate_tracker
from .scoring import Protocol
from .settings import settings_of
from .speed import speed_table
from .truths import truth_of


def evaluate(
    root: str | Path,
    dataset: str | None = None,
    *,
    split: str | None = None,
    protocol: str | None = None,
    names: str | Path | None = None,
    pair_by: str | None = None,
    trackers: Sequence[str] = (),
    results: Sequence[str] = (),
    output: str | Path = "evaluated",
    batch: int = 1,
    device: str = "cpu",
    pack: bool = False,
    form: Form = "xywh",
    partial: bool = False,
    overwrite: bool = False,
    report: bool = False,
    card: bool = False,
    say: Callable[[str], None] = typer.echo,
    **loading: Any,
) -> list[EvaluationResult]:
    """Runs the trackers, scores the folders, prints a table, and leaves everything in files.

    The arguments are the options of `mmtrackers evaluate`, whose `--help` describes them; `trackers` and `results`
    hold its repeated `--tracker` and `--results`, `loading` goes to `Tracker.from_pretrained`.

    Raises:
        ValueError: nothing to evaluate, names that are used twice, or anything that a run or a file complains of.

    Example:
        ```python
        evaluate("LasHeR", "lasher", split="test", trackers=["org/seatrack-thermal"])
        ```
    """
    rules, processes = _rules(dataset, protocol), Processes()
    repos, folders = _named(trackers), _named(results)
    _check(repos, folders, form, card)
    own = dataset == OWN_SEQUENCES
    split = split or _only_split(dataset)
    sequences = open_dataset(root, names, dataset=None if own else dataset, split=split, pair_by=pair_by)
    title = _title(rules, dataset, Path(root))
    # Parts of a set in folders of their own: VTUAV's short and long videos are two tables.
    place = Path(output) / (rules.name if split in (None, "test") else f"{rules.name}-{split}")
    if processes.main:
        say(f"{title}: {len(sequences)} sequences, rules of {rules.source}")
    found = []
    if folders:
        truths = [truth_of(sequence, rules) for sequence in sequences]
        for name, folder in folders.items():
            result = score_folder(folder, truths, rules, name, form, partial)
            found.append(replace(result, split=split or "", dataset=title))
            if processes.main:
                found[-1].save(place / name / SCORES)
    for name, repo in repos.items():
        tracker = Tracker.from_pretrained(repo, device=processes.device(device), **loading)
        settings = settings_of(tracker, repo, pack)
        if pack:
            tracker.model.pack()
        about = {"name": name, "output": place / name, "split": split or "", "title": title, "progress": True}
        found.append(evaluate_tracker(
            tracker, sequences, rules, **about, batch=batch, settings=settings, overwrite=overwrite
        ))  # fmt: skip
    if processes.main:
        _print(found, rules, place, say)
        scored = [result for result in found if result.scores]
        if report and scored:
            from mmtrackers.evaluation.report.write import write_report

            files = write_report(scored, place.with_name(f"{place.name}-report"), {title: sequences})
            say("report: " + ", ".join(map(str, files)))
        if card:
            for result in found[len(folders) :]:
                say("card: " + ", ".join(map(str, add_to_card(repos[result.tracker], result))))
    return found


def _rules(dataset: str | None, protocol: str | None) -> Protocol:
    """The rules that were asked for, else the set's own."""
    if protocol is None and dataset is None:
        raise ValueError(f"which rules? Give --dataset or --protocol; known: {', '.join(PROTOCOLS)}. Your own "
                         f"sequences, in any known layout: --dataset {OWN_SEQUENCES}")
    return get_protocol(protocol or dataset)


def _check(repos: dict[str, str], folders: dict[str, str], form: str, card: bool) -> None:
    """What can be said before hours of tracking."""
    if not repos and not folders:
        raise ValueError("nothing to evaluate: give --tracker REPO, or --results FOLDER of raw results")
    if form not in ("xywh", "xyxy"):
        raise ValueError(f"--form {form}: expected xywh or xyxy")
    twice = sorted(set(repos) & set(folders))
    if twice:
        raise ValueError(f"{', '.join(twice)}: a name for a tracker and for results; choose another with NAME=PLACE")
    for repo in repos.values():
        if card and not Path(repo).is_dir():
            raise ValueError(f"--card writes into a tracker's own folder, and {repo} is none: download it first "
                             f"(hf download {repo} --local-dir FOLDER), or leave --card out")


def _title(rules: Protocol, dataset: str | None, root: Path) -> str:
    """The set to show: the protocol's own only where it is that set."""
    if dataset in PROTOCOLS and dataset != OWN_SEQUENCES and PROTOCOLS[dataset].title == rules.title:
        return rules.title
    return DATASETS[dataset].title if dataset in DATASETS else root.resolve().name


def _only_split(dataset: str | None) -> str | None:
    """The split to take where none was named: the test split, if there is one."""
    splits = DATASETS[dataset].splits if dataset in DATASETS else {}
    return "test" if "test" in splits else None


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


def _print(results: Sequence[EvaluationResult], protocol: Protocol, place: Path, say: Callable[[str], None]) -> None:
    width = max(len(result.tracker) for result in results) + 2
    say("".join([" " * width, *(f"{name:>8}" for name in protocol.metric_names)]))
    for result in results:
        values = [result.scores.get(name) for name in protocol.metric_names]
        cells = [f"{100 * value:8.2f}" if value is not None else f"{'-':>8}" for value in values]
        marks = f"   partial: {len(result.sequences)} sequences, {len(result.missing)} missing" * result.partial
        say(f"{result.tracker:<{width}}{''.join(cells)}{marks}")
    for result in results:
        notes = [*result.notes, *(note for row in result.sequences for note in row.notes)]
        for note in notes[:10]:
            say(f"note ({result.tracker}): {note}")
        if len(notes) > 10:
            say(f"note ({result.tracker}): {len(notes) - 10} more in {SCORES}")
        if result.speed is not None:
            say(f"{result.tracker}: {speed_table(result.speed)}")
    say(f"written: {place}/NAME/{SCORES}")
