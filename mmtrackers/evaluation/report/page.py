"""The report's page: SVG plots, the table of sequences and the pictures, filled into `report.html.jinja`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

import mmtrackers
from mmtrackers.data.sequence import Sequence as VideoSequence
from mmtrackers.evaluation.results import Curve

from .pictures import worst_sequences
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


def page(sets: Sequence[SetReport], sequences: Mapping[str, Iterable[VideoSequence]], worst: int = 4) -> str:
    """The whole page as text: no file, font or script from elsewhere.

    Args:
        sets (list of [`SetReport`]): what to show.
        sequences (`dict[str, list[Sequence]]`): dataset -> its sequences, for the pictures.
        worst (`int`): sequences per set that are shown in pictures.
    """
    trackers = dict.fromkeys(result.tracker for part in sets for result in part.results)
    styles = {name: k % STYLES for k, name in enumerate(trackers)}
    shown = {part.key: {
        "charts": _charts(part, styles), "rows": _sequence_rows(part),
        "worst": worst_sequences(part, styles, sequences.get(part.dataset, ()), worst),
    } for part in sets}  # fmt: skip
    return render("report.html.jinja", sets, shown=shown, trackers=styles, version=mmtrackers.__version__)


def _charts(part: SetReport, styles: dict[str, int]) -> list[dict[str, Any]]:
    found = []
    for name, (title, figures) in CURVES.items():
        curves = {result.tracker: result.curves[name] for result in part.results if name in result.curves}
        if not curves:
            continue
        figure = next((metric for metric in figures if metric in part.metrics), "")
        scores = {result.tracker: result.scores.get(figure) for result in part.results if result.tracker in curves}
        legend = sorted(scores.items(), key=lambda row: -(row[1] or 0))
        svg = line_chart(curves, styles, f"{title} on {part.title}")
        found.append({"name": name, "title": title, "figure": figure, "svg": svg, "legend": legend})
    return found


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 270, 40, 12, 10, 40


def line_chart(curves: Mapping[str, Curve], styles: Mapping[str, int], label: str) -> Markup:
    """The curve of each tracker as an SVG; y runs from 0 to 1, x over what the curves have.

    Example:
        >>> svg = line_chart({"a": Curve((0.0, 1.0), (1.0, 0.0), "overlap", "success")}, {"a": 0}, "Success")
        >>> svg.count("<polyline"), "overlap" in svg
        (1, True)
    """
    first = next(iter(curves.values()))
    right = max(max(curve.x) for curve in curves.values()) or 1.0

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / right

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value)

    parts = []
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        at = f"{y(share):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 7}" y="{y(share) + 4:.1f}">{100 * share:.0f}</text>')
        parts.append(f'<text class="tick mid" x="{x(share * right):.1f}" y="{_HEIGHT - _BOTTOM + 17}">'
                     f"{share * right:.4g}</text>")  # fmt: skip
    parts.append(f'<text class="axis mid" x="{x(right / 2):.1f}" y="{_HEIGHT - 5}">{escape(first.x_label)}</text>')
    parts.append(f'<line class="cursor" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" x1="0" x2="0"/>')
    # Drawn from the last to the first, so that the best lies on top
    for name, curve in reversed(curves.items()):
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(curve.x, curve.y, strict=True))
        parts.append(f'<polyline class="line s{styles[name]}" data-tracker="{escape(name)}" points="{points}"/>')
    data = {name: [curve.x, [round(v, 4) for v in curve.y]] for name, curve in curves.items()}
    place = {"left": _LEFT, "width": _WIDTH - _LEFT - _RIGHT, "right": right}
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'data-curves="{escape(json.dumps(data))}" data-place="{escape(json.dumps(place))}">{"".join(parts)}</svg>'
    )


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
