"""Reports of evaluations: a table to paste, a LaTeX table, JSON with everything, and one page to look through.

Figures of other papers stand beside the measured ones, always marked as published and with the place that they were
read in (`published.json`).
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mmtrackers
from mmtrackers.data.sequence import Sequence as VideoSequence
from mmtrackers.evaluation.results import FORMAT, EvaluationResult
from mmtrackers.processing.files import write_text

from .pictures import line_points, worst_sequences
from .sets import SetReport, grouped
from .text import render

# Styles of lines, bars and boxes in the page's style sheet: eight colors, then the same with dotted lines.
STYLES = 16
# Plots: their titles, and which figure of a protocol belongs to each, for the legends
CURVES = {
    "success": ("Success", ("SR", "MSR", "AUC", "RSR", "AO")),
    "precision": ("Precision", ("PR", "MPR", "P", "RPR")),
    "normalized_precision": ("Normalized precision", ("NPR", "Pnorm")),
    "precision_recall": ("Precision and recall", ("F",)),
    "expected_overlap": ("Expected average overlap", ("EAO",)),
}


def write_report(
    results: Sequence[EvaluationResult], folder: str | Path,
    sequences: Mapping[str, Iterable[VideoSequence]] | None = None,
) -> list[Path]:
    """Writes the report of one or more evaluations; returns its files. ValueError for no result, or two of the same
    tracker, set and protocol.

    `report.md` (tables to paste), `report.tex` (booktabs), `report.json` (everything) and `report.html`, one page with
    all it needs: curves, attributes, a table of sequences to sort, the worst sequences in pictures, and speed.

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
    videos = sequences or {}
    trackers = dict.fromkeys(result.tracker for part in sets for result in part.results)
    styles = {name: k % STYLES for k, name in enumerate(trackers)}
    shown = {part.key: {"charts": _charts(part), "rows": _sequence_rows(part),
                        "worst": worst_sequences(part, videos.get(part.dataset, ()))} for part in sets}  # fmt: skip
    page = {"shown": shown, "trackers": styles, "version": mmtrackers.__version__}
    texts = {
        "report.md": render("report.md.jinja", sets),
        "report.tex": render("report.tex.jinja", sets),
        "report.json": json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        "report.html": render("report.html.jinja", sets, **page),
    }
    return [write_text(Path(folder) / name, text) for name, text in texts.items()]


def _charts(part: SetReport) -> list[dict[str, Any]]:
    """The set's plots: y runs from 0 to 1, x over what the curves have."""
    found = []
    for name, (title, figures) in CURVES.items():
        curves = {result.tracker: result.curves[name] for result in part.results if name in result.curves}
        if not curves:
            continue
        figure = next((metric for metric in figures if metric in part.metrics), "")
        scores = {result.tracker: result.scores.get(figure) for result in part.results if result.tracker in curves}
        right = max(max(curve.x) for curve in curves.values()) or 1.0
        found.append({
            "name": name, "title": title, "figure": figure, "label": f"{title} on {part.title}", "right": right,
            "x_label": next(iter(curves.values())).x_label,
            "legend": sorted(scores.items(), key=lambda row: -(row[1] or 0)),
            "curves": {tracker: [curve.x, [round(v, 4) for v in curve.y]] for tracker, curve in curves.items()},
            # drawn from the last to the first, so that the best lies on top
            "lines": {tracker: line_points(np.divide(curve.x, right), curve.y, (40, 10, 308, 220))
                      for tracker, curve in reversed(curves.items())},
        })  # fmt: skip
    return found


def _sequence_rows(part: SetReport) -> list[dict[str, Any]]:
    """One row per sequence: its scores by tracker and metric, and what was noted."""
    rows: dict[str, dict[str, Any]] = {}
    for k, result in enumerate(part.results):
        for score in result.sequences:
            row = rows.setdefault(score.name, {"name": score.name, "frames": score.frames, "scores": {}, "notes": []})
            row["scores"][k] = score.scores
            several = f"{result.tracker}: " if len(part.results) > 1 else ""
            notes = [*score.notes, *([] if score.counted else ["hits nothing: left out of the set's mean"])]
            notes += ["partial"] if score.partial and not score.notes else []
            row["notes"] += [several + note for note in notes]
    return list(rows.values())
