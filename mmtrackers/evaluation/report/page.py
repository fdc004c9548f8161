"""The report's page: plots, the table of sequences and the pictures, filled into `report.html.jinja`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import mmtrackers
from mmtrackers.data.sequence import Sequence as VideoSequence

from .pictures import line_points, worst_sequences
from .sets import SetReport
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


def page(sets: Sequence[SetReport], sequences: Mapping[str, Iterable[VideoSequence]]) -> str:
    """The whole page as text: no file, font or script from elsewhere. `sequences`: dataset -> those to show."""
    trackers = dict.fromkeys(result.tracker for part in sets for result in part.results)
    styles = {name: k % STYLES for k, name in enumerate(trackers)}
    shown = {part.key: {"charts": _charts(part), "rows": _sequence_rows(part),
                        "worst": worst_sequences(part, sequences.get(part.dataset, ()))} for part in sets}  # fmt: skip
    return render("report.html.jinja", sets, shown=shown, trackers=styles, version=mmtrackers.__version__)


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
