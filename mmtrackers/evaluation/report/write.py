"""Reports of evaluations: a table to paste, a LaTeX table, JSON with everything, and one page to look through.

Figures of other papers stand beside the measured ones, always marked as published and with the place that they were
read in (`published.json`).
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmtrackers.data.sequence import Sequence as VideoSequence
from mmtrackers.evaluation.results import FORMAT, EvaluationResult
from mmtrackers.processing.files import write_text

from .page import page
from .sets import grouped
from .text import latex, markdown


def write_report(
    results: Sequence[EvaluationResult], folder: str | Path,
    sequences: Mapping[str, Iterable[VideoSequence]] | None = None,
) -> list[Path]:
    """Writes the report of one or more evaluations; returns its files. ValueError for no result, or two of the same
    tracker, set and protocol.

    `report.md` (tables to paste), `report.tex` (booktabs), `report.json` (everything) and `report.html`: one page
    without anything from elsewhere, with curves, attributes, a table of sequences to sort, the worst sequences in
    pictures, and speed.

    Args:
        results (list of [`EvaluationResult`]): any number of trackers on any number of sets; those with the same
            `dataset`, `split` and `protocol` stand in one table. Partial results are marked in every file.
        folder (`str` or `Path`): made if need be; files of an earlier report are replaced.
        sequences (`dict[str, list[Sequence]]`, *optional*): dataset (as in the results) -> its sequences, for the
            pictures of the worst four. Those whose raw results (`SequenceScore.file`) cannot be found are left out.

    Example:
        >>> import tempfile
        >>> result = EvaluationResult("ours", "LasHeR", "lasher", {"PR": 0.7, "SR": 0.57}, "SR")
        >>> [path.name for path in write_report([result], tempfile.mkdtemp())]
        ['report.md', 'report.tex', 'report.json', 'report.html']
    """
    sets = grouped(results)
    record = {
        "format": FORMAT,
        "results": [dataclasses.asdict(result) for part in sets for result in part.results],
        "published": {part.protocol: [dataclasses.asdict(row) for row in part.published] for part in sets},
    }
    texts = {
        "report.md": markdown(sets),
        "report.tex": latex(sets),
        "report.json": json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        "report.html": page(sets, sequences or {}),
    }
    return [write_text(Path(folder) / name, text) for name, text in texts.items()]
