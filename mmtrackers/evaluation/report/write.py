"""Reports of evaluations: a table to paste, a LaTeX table, JSON with everything, and one page to look through.

Figures of other papers stand beside the measured ones, always marked as published and with the place that they were
read in (`published.json`).
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmtrackers.data.sequence import Sequence as VideoSequence
from mmtrackers.evaluation.protocols import PROTOCOLS
from mmtrackers.evaluation.results import FORMAT, EvaluationResult, Speed, write_whole

STAGES = ("read", "crop", "model", "decode")


@dataclass(frozen=True)
class Published:
    """A figure of a paper or of a project's page: not measured here.

    Args:
        tracker (`str`): its name there.
        scores (`dict[str, float]`): metric -> fraction; metrics that were not published are not in it.
        source (`str`): where it was read: repository and file.
    """

    tracker: str
    scores: dict[str, float]
    source: str


@dataclass(frozen=True)
class SetReport:
    """The results on one part of a set under one protocol, and what was published on it.

    Args:
        dataset (`str`), split (`str`), protocol (`str`): as in the results.
        results (`tuple[EvaluationResult, ...]`): in descending order of the headline score.
        published (`tuple[Published, ...]`): likewise.
        published_sequences (`int`): sequences of the split that the published figures were measured on.
    """

    dataset: str
    split: str
    protocol: str
    results: tuple[EvaluationResult, ...]
    published: tuple[Published, ...] = ()
    published_sequences: int = 0

    @property
    def title(self) -> str:
        """What stands above its tables; a test split goes without saying."""
        return self.dataset if self.split in ("", "test") else f"{self.dataset}, {self.split}"

    @property
    def key(self) -> str:
        """Letters, digits and dashes: for anchors and labels."""
        name = "-".join(filter(None, (self.dataset, self.split, self.protocol)))
        return "".join(c if c.isalnum() else "-" for c in name.lower())

    @property
    def metrics(self) -> list[str]:
        """The figures in the order of the protocol's tables."""
        return list(dict.fromkeys(name for result in self.results for name in result.scores))

    @property
    def headline(self) -> str:
        """The metric to rank by."""
        return self.results[0].headline

    @property
    def source(self) -> str:
        """Whose rules the protocol follows."""
        return PROTOCOLS[self.protocol].source if self.protocol in PROTOCOLS else self.protocol

    @property
    def counts(self) -> tuple[int, int]:
        """Sequences and frames, of the result that has most of them."""
        return max((len(result.sequences), sum(row.frames for row in result.sequences)) for result in self.results)

    @property
    def whole(self) -> bool:
        """Whether the results are of the same sequences as the published figures, as far as can be seen."""
        counts = {len(result.sequences) for result in self.results}
        partial = any(result.partial for result in self.results)
        return self.split in ("", "test") and counts == {self.published_sequences} and not partial

    def best(self, metric: str) -> float | None:
        """The largest of the measured scores, if there are several to compare and they are complete."""
        values = [result.scores[metric] for result in self.results if metric in result.scores and not result.partial]
        return max(values) if len(values) > 1 else None


def write_report(
    results: Sequence[EvaluationResult],
    folder: str | Path,
    sequences: Mapping[str, Iterable[VideoSequence]] | None = None,
    worst: int = 4,
) -> list[Path]:
    """Writes the report of one or more evaluations.

    `report.md` (tables to paste), `report.tex` (booktabs), `report.json` (everything, to be read back by
    `read_report`) and `report.html`: one page without anything from elsewhere, with curves, attributes, a table of
    sequences to sort, the worst sequences in pictures, and speed.

    Args:
        results (list of [`EvaluationResult`]): any number of trackers on any number of sets; those with the same
            `dataset`, `split` and `protocol` stand in one table. Partial results are marked in every file.
        folder (`str` or `Path`): made if need be; files of an earlier report are replaced.
        sequences (`dict[str, list[Sequence]]`, *optional*): dataset (as in the results) -> its sequences, for the
            pictures of the worst ones. Those whose raw results (`SequenceScore.file`) cannot be found are left out.
        worst (`int`): so many sequences per set are shown in pictures.

    Returns:
        `list[Path]`: the files.

    Raises:
        ValueError: no result, or two of the same tracker, set and protocol.

    Example:
        >>> import tempfile
        >>> result = EvaluationResult("ours", "LasHeR", "lasher", {"PR": 0.7, "SR": 0.57}, "SR")
        >>> [path.name for path in write_report([result], tempfile.mkdtemp())]
        ['report.md', 'report.tex', 'report.json', 'report.html']
    """
    from .page import page

    sets = grouped(results)
    folder = Path(folder)
    pages = {
        "report.md": markdown(sets),
        "report.tex": latex(sets),
        "report.json": as_json(sets),
        "report.html": page(sets, sequences or {}, worst),
    }
    return [write_whole(folder / name, text) for name, text in pages.items()]


def read_report(path: str | Path) -> list[EvaluationResult]:
    """The results of a `report.json`.

    Raises:
        ValueError: not such a file; names it.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        return [EvaluationResult.from_json(json.dumps({"format": FORMAT} | result)) for result in record["results"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report of evaluations: {error}") from error


def grouped(results: Sequence[EvaluationResult]) -> list[SetReport]:
    """Results by set, split and protocol, with what was published; sets in the order of their first result."""
    if not results:
        raise ValueError("there is no result to report")
    sets: dict[tuple[str, str, str], list[EvaluationResult]] = {}
    for result in results:
        known = sets.setdefault((result.dataset, result.split, result.protocol), [])
        if any(other.tracker == result.tracker for other in known):
            raise ValueError(f"two results of {result.tracker!r} on {result.dataset} ({result.protocol}): give one of "
                             "them another name")  # fmt: skip
        known.append(result)
    reports = []
    for (dataset, split, protocol), rows in sets.items():
        headline = rows[0].headline
        rows.sort(key=lambda result: -result.scores.get(result.headline, -1.0))
        published = sorted(published_on(protocol), key=lambda row: -row.scores.get(headline, -1.0))
        count = _published_file()["sets"].get(protocol, {}).get("sequences", 0)
        reports.append(SetReport(dataset, split, protocol, tuple(rows), tuple(published), count))
    return reports


def published_on(protocol: str) -> list[Published]:
    """Published figures on the whole test split of a protocol's set.

    Example:
        >>> [row.scores["SR"] for row in published_on("lasher") if row.tracker == "SEATrack"]
        [0.573]
    """
    record = _published_file()
    rows = record["sets"].get(protocol, {"rows": []})["rows"]
    return [
        Published(row["tracker"], {name: round(value / 100, 6) for name, value in row["scores"].items()},
                  record["sources"][row["source"]])
        for row in rows
    ]  # fmt: skip


@lru_cache(maxsize=1)
def _published_file() -> dict:
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def percent(value: float | None) -> str:
    """A fraction as papers print it.

    Example:
        >>> percent(0.5731), percent(None)
        ('57.3', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def as_json(sets: Sequence[SetReport]) -> str:
    """Everything: the results as they are, and the published figures with their sources."""
    record = {
        "format": FORMAT,
        "results": [dataclasses.asdict(result) for part in sets for result in part.results],
        "published": {part.protocol: [dataclasses.asdict(row) for row in part.published] for part in sets},
    }
    return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------------------------------------------------- markdown


def markdown(sets: Sequence[SetReport]) -> str:
    """GitHub's Markdown: per set the scores, then attributes, speed and settings."""
    parts = []
    for part in sets:
        parts.append(f"## {part.title}\n")
        parts.append(f"{extent(part)}. Protocol `{part.protocol}` after {part.source}; scores in percent.\n")
        parts += [f"> **Partial:** {warning}\n" for warning in partial_warnings(part)]
        parts.append(_markdown_scores(part))
        parts.append(_markdown_attributes(part))
    parts.append(_markdown_speed(sets))
    parts.append(_markdown_settings(sets))
    return "\n".join(text for text in parts if text)


def extent(part: SetReport) -> str:
    """How much was measured, in words."""
    sequences, frames = part.counts
    return f"{sequences:,} sequence{'' if sequences == 1 else 's'}, {frames:,} frames"


def partial_warnings(part: SetReport) -> list[str]:
    """What makes results of a set no results to publish, in words."""
    found = []
    for result in part.results:
        if result.partial:
            short = sum(row.partial for row in result.sequences)
            found.append(f"{result.tracker} lacks {len(result.missing)} sequences and has {short} short ones: not a "
                         "number to publish.")  # fmt: skip
    return found


def comparison_note(part: SetReport) -> str:
    """What to bear in mind where published figures stand beside the measured ones."""
    if not part.published:
        return ""
    note = "Published figures are their authors' and were not measured here."
    if not part.whole:
        split = f" of the split {part.split}" if part.split not in ("", "test") else ""
        partial = ", some of them partial" if any(result.partial for result in part.results) else ""
        note += (f" They are of the whole test split ({part.published_sequences} sequences), the measured ones of "
                 f"{part.counts[0]}{split}{partial}: no comparison.")  # fmt: skip
    return note


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join([line(header), line(ruler), *(line(row) for row in rows)]) + "\n"


def _cell(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _markdown_scores(part: SetReport) -> str:
    rows = []
    for result in part.results:
        name = f"**{_cell(result.tracker)}**" + (" (partial)" if result.partial else "")
        rows.append([name, *(_strong(result.scores.get(m), part.best(m)) for m in part.metrics), _fps(result.speed)])
    sources = sources_of(part)
    for row in part.published:
        name = f"{_cell(row.tracker)} (published [{sources[row.source]}])"
        rows.append([name, *(percent(row.scores.get(metric)) for metric in part.metrics), ""])
    text = _table(["tracker", *part.metrics, "frames/s"], rows)
    if part.published:
        listed = "; ".join(f"[{number}] {source}" for source, number in sources.items())
        text += f"\n{comparison_note(part)} Sources: {listed}.\n"
    return text


def sources_of(part: SetReport) -> dict[str, int]:
    """Source -> its number in a set's table."""
    return {source: k for k, source in enumerate(dict.fromkeys(row.source for row in part.published), 1)}


def _strong(value: float | None, best: float | None) -> str:
    return f"**{percent(value)}**" if value is not None and value == best else percent(value)


def _fps(speed: Speed | None) -> str:
    return f"{speed.frames_per_second:.1f}" if speed is not None and speed.frames_per_second else ""


def _markdown_attributes(part: SetReport) -> str:
    names = attribute_names(part)
    if not names:
        return ""
    rows = []
    for name, count in names.items():
        scores = [result.attributes.get(name) for result in part.results]
        rows.append([f"{_cell(name)} ({count})", *(percent(s and s.scores.get(part.headline)) for s in scores)])
    title = f"{part.headline} by attribute (sequences that have it):\n\n"
    return title + _table(["attribute", *(_cell(result.tracker) for result in part.results)], rows)


def attribute_names(part: SetReport) -> dict[str, int]:
    """Attribute -> the number of sequences that have it, the commonest first."""
    counts: dict[str, int] = {}
    for result in part.results:
        for name, row in result.attributes.items():
            counts[name] = max(counts.get(name, 0), len(row.sequences))
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def speeds(sets: Sequence[SetReport]) -> list[tuple[str, str, Speed]]:
    """Tracker, set and speed of every result that was timed."""
    return [(r.tracker, part.title, r.speed) for part in sets for r in part.results if r.speed and r.speed.stages]


def _markdown_speed(sets: Sequence[SetReport]) -> str:
    rows = []
    for tracker, title, speed in speeds(sets):
        stages = [speed.stages.get(name) for name in (*STAGES, "track")]
        cells = [f"{s.median:.1f} ({s.low:.1f}–{s.high:.1f})" if s else "–" for s in stages]
        where = f"{speed.device}, {speed.threads} threads, batch {speed.batch}"
        rows.append([_cell(tracker), title, *cells, f"{speed.frames_per_second:.1f}", where])
    if not rows:
        return ""
    header = ["tracker", "set", *STAGES, "track", "frames/s", "where"]
    return ("## Speed\n\nMilliseconds per frame: median (middle half), warm-up left out; frames/s of the tracker "
            "without reading.\n\n" + _table(header, rows))  # fmt: skip


def _markdown_settings(sets: Sequence[SetReport]) -> str:
    lines = []
    for part in sets:
        for result in part.results:
            if (s := result.settings) is not None:
                adapter = [f"{s.tuner} on {s.base}"] if s.tuner else []
                about = [s.system, *adapter, s.modality, s.dtype, s.device, *(["packed"] if s.pack else [])]
                lines.append(f"- {_cell(result.tracker)} on {part.title}: {_cell(', '.join(about))}; settings "
                             f"{s.fingerprint}")  # fmt: skip
            lines += [f"- {_cell(result.tracker)} on {part.title}: {_cell(note)}" for note in result.notes]
    return "## Settings and notes\n\n" + "\n".join(lines) + "\n" if lines else ""


# ------------------------------------------------------------------------------------------------------------- LaTeX

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_LATEX |= {c: "\\" + c for c in "&%$#_{}"}


def tex(text: str) -> str:
    """Text for LaTeX.

    Example:
        >>> print(tex("HMFT_LT & co"))
        HMFT\\_LT \\& co
    """
    return "".join(_LATEX.get(c, c) for c in text)


def latex(sets: Sequence[SetReport]) -> str:
    r"""One `table` per set, for a document with `\usepackage{booktabs}`."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_latex_table(part) for part in sets)


def _latex_table(part: SetReport) -> str:
    def line(name: str, cells: Iterable[str]) -> str:
        return " & ".join([name, *(cell.replace("–", "--") for cell in cells)]) + r" \\"

    lines = [r"\begin{table}", r"\centering", r"\begin{tabular}{l" + "r" * len(part.metrics) + "}", r"\toprule"]
    lines += [line("Tracker", map(tex, part.metrics)), r"\midrule"]
    for row in part.published:
        lines.append(line(tex(row.tracker) + r"$^\dagger$", (percent(row.scores.get(m)) for m in part.metrics)))
    lines += [r"\midrule"] if part.published else []
    for result in part.results:
        cells = []
        for metric in part.metrics:
            value = result.scores.get(metric)
            best = value is not None and value == part.best(metric)
            cells.append(rf"\textbf{{{percent(value)}}}" if best else percent(value))
        lines.append(line(tex(result.tracker) + (r" (partial)" if result.partial else ""), cells))
    caption = f"{tex(part.title)}, {extent(part)}."
    if part.published:
        listed = "; ".join(tex(source) for source in sources_of(part))
        caption += rf" $^\dagger$ {tex(comparison_note(part))} Sources: {listed}."
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", rf"\label{{tab:{part.key}}}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"
