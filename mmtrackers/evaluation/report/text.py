"""The report as texts to paste: GitHub's Markdown, and LaTeX."""

import re
from collections.abc import Iterable, Sequence

from mmtrackers.evaluation.results import Speed

from .sets import (
    STAGES,
    SetReport,
    attribute_names,
    comparison_note,
    extent,
    partial_warnings,
    percent,
    sources_of,
    speeds,
)


def markdown(sets: Sequence[SetReport]) -> str:
    """GitHub's Markdown: per set the scores, then attributes, speed and settings."""
    parts = []
    for part in sets:
        parts.append(f"## {_cell(part.title)}\n")
        parts.append(f"{extent(part)}. Protocol `{part.protocol}` after {part.source}; scores in percent.\n")
        parts += [f"> **Partial:** {warning}\n" for warning in partial_warnings(part)]
        parts.append(_markdown_scores(part))
        parts.append(_markdown_attributes(part))
    parts.append(_markdown_speed(sets))
    parts.append(_markdown_settings(sets))
    return "\n".join(text for text in parts if text)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join([line(header), line(ruler), *(line(row) for row in rows)]) + "\n"


def _cell(text: str) -> str:
    """A name or a note, none of whose characters are markup."""
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split()))
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


def _markdown_speed(sets: Sequence[SetReport]) -> str:
    rows = []
    for tracker, title, speed in speeds(sets):
        stages = [speed.stages.get(name) for name in (*STAGES, "track")]
        cells = [f"{s.median:.1f} ({s.low:.1f}–{s.high:.1f})" if s else "–" for s in stages]
        where = f"{speed.device}, {speed.threads} threads, batch {speed.batch}"
        rows.append([_cell(tracker), _cell(title), *cells, f"{speed.frames_per_second:.1f}", where])
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
                lines.append(f"- {_cell(result.tracker)} on {_cell(part.title)}: {_cell(', '.join(about))}; settings "
                             f"{s.fingerprint}")  # fmt: skip
            lines += [f"- {_cell(result.tracker)} on {_cell(part.title)}: {_cell(note)}" for note in result.notes]
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
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


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
