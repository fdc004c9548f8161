"""What `mmtrackers evaluate` does: trackers to run, others' results to score, one table."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from mmtrackers.data import open_dataset
from mmtrackers.data.layouts import DATASETS
from mmtrackers.tracking.tracker import Tracker

from .card import add_to_card
from .plan import Processes
from .protocols import PROTOCOLS, get_protocol
from .raw import Form, score_folder
from .results import EvaluationResult
from .run import SCORES, evaluate_tracker
from .scoring import Protocol
from .settings import settings_of
from .speed import speed_table
from .truths import truth_of


@dataclass(frozen=True)
class Request:
    """One call of the command; the fields are its options.

    Example:
        >>> Request(root=Path("LasHeR"), dataset="lasher", trackers=("ours=out/ours",)).protocol_name
        'lasher'
    """

    root: Path
    dataset: str | None = None
    split: str | None = None
    protocol: str | None = None
    names: Path | None = None
    trackers: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    output: Path = Path("evaluated")
    batch: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    pack: bool = False
    base_model: str | None = None
    absent_below: float | None = None
    allow_missing: bool = False
    form: Form = "xywh"
    partial: bool = False
    overwrite: bool = False
    card: bool = False
    report: bool = False

    @property
    def protocol_name(self) -> str:
        """The rules: those that were asked for, else the set's own."""
        name = self.protocol or self.dataset
        if name is None:
            raise ValueError(f"which rules? Give --dataset or --protocol; known: {', '.join(PROTOCOLS)}")
        return name


def evaluate(request: Request, say: Callable[[str], None] = typer.echo) -> list[EvaluationResult]:
    """Runs the trackers, scores the folders, prints a table, and leaves everything in files.

    Raises:
        ValueError: nothing to evaluate, names that are used twice, or anything that a run or a file complains of.

    Example:
        ```python
        evaluate(Request(Path("LasHeR"), "lasher", split="test", trackers=("org/seatrack-thermal",)))
        ```
    """
    protocol, processes = get_protocol(request.protocol_name), Processes()
    trackers, folders = _named(request.trackers), _named(request.results)
    if not trackers and not folders:
        raise ValueError("nothing to evaluate: give --tracker REPO, or --results FOLDER of raw results")
    if request.form not in ("xywh", "xyxy"):
        raise ValueError(f"--form {request.form}: expected xywh or xyxy")
    twice = sorted(set(trackers) & set(folders))
    if twice:
        raise ValueError(f"{', '.join(twice)}: a name for a tracker and for results; choose another with NAME=PLACE")
    split = request.split or _only_split(request.dataset)
    sequences = open_dataset(request.root, request.names, dataset=request.dataset, split=split)
    # Parts of a set in folders of their own: VTUAV's short and long videos are two tables.
    place = request.output / (protocol.name if split in (None, "test") else f"{protocol.name}-{split}")
    say_once = say if processes.main else _silent
    say_once(f"{protocol.title}: {len(sequences)} sequences, rules of {protocol.source}")
    found = []
    if folders:
        truths = [truth_of(sequence, protocol) for sequence in sequences]
        for name, folder in folders.items():
            result = score_folder(folder, truths, protocol, name, request.form, request.partial)
            found.append(replace(result, split=split or ""))
            if processes.main:
                found[-1].save(place / name / SCORES)
    for name, repo in trackers.items():
        found.append(_run(name, repo, sequences, protocol, split or "", place, request, processes))
    if processes.main:
        _print(found, protocol, place, say)
        scored = [result for result in found if result.scores]
        if request.report and scored:
            from mmtrackers.evaluation.report.write import write_report

            files = write_report(scored, place.with_name(f"{place.name}-report"), {protocol.title: sequences})
            say("report: " + ", ".join(map(str, files)))
        if request.card:
            for result in found[len(folders) :]:
                say("card: " + ", ".join(map(str, add_to_card(trackers[result.tracker], result))))
    return found


def _silent(text: str) -> None:
    """Only the main process speaks."""


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


def _run(
    name: str,
    repo: str,
    sequences: Sequence,
    protocol: Protocol,
    split: str,
    place: Path,
    request: Request,
    processes: Processes,
) -> EvaluationResult:
    tracker = Tracker.from_pretrained(
        repo,
        dtype=request.dtype,
        device=processes.device(request.device),
        base_model=request.base_model,
        absent_below=request.absent_below,
        allow_missing=request.allow_missing,
    )
    settings = settings_of(tracker, repo, request.pack)
    if request.pack:
        tracker.model.pack()
    return evaluate_tracker(
        tracker,
        sequences,
        protocol,
        name=name,
        output=place / name,
        batch=request.batch,
        settings=settings,
        overwrite=request.overwrite,
        progress=True,
        split=split,
    )


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
