"""What the report's templates need: GitHub's Markdown, LaTeX (for `\\usepackage{booktabs}`) and the page."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from mmtrackers.tracking.clock import STAGES

from .sets import SetReport

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_LATEX |= {c: "\\" + c for c in "&%$#_{}"}


def render(template: str, sets: Sequence[SetReport], **more: Any) -> str:
    """Fills a template of this folder with the results of sets."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "cell": cell, "tex": tex}
    results = [(part.title, result) for part in sets for result in part.results]
    speeds = [{"tracker": result.tracker, "title": title, "speed": result.speed,
               "total": sum(stage.median for name, stage in result.speed.stages.items() if name in STAGES)}
              for title, result in results if result.speed is not None and result.speed.stages]  # fmt: skip
    settings = [(title, result) for title, result in results if result.settings or result.notes]
    return environment.get_template(template).render(
        sets=sets, stages=STAGES, speeds=speeds, settings=settings, **more
    )


def percent(value: float | None) -> str:
    """A fraction as papers print it.

    Example:
        >>> percent(0.5731), percent(None)
        ('57.3', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def cell(text: str) -> str:
    """Text for a cell of Markdown, none of whose characters are markup."""
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def tex(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
