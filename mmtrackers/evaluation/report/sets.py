"""What a report says of one set: its results, the published figures beside them, and what to bear in mind."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmtrackers.evaluation.protocols import PROTOCOLS
from mmtrackers.evaluation.results import EvaluationResult


@dataclass(frozen=True)
class Published:
    """A figure of a paper or of a project's page, not measured here: `scores` are metric -> fraction, `source` says
    where it was read (repository and file)."""

    tracker: str
    scores: dict[str, float]
    source: str


@dataclass(frozen=True)
class SetReport:
    """The results on one part of a set under one protocol, in descending order of the headline score, and what was
    published on it, on `published_sequences` sequences of the split."""

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
    def rules(self) -> str:
        """Whose rules the protocol follows."""
        return PROTOCOLS[self.protocol].source if self.protocol in PROTOCOLS else self.protocol

    @property
    def sequences(self) -> int:
        """How many sequences the result has that has most of them."""
        return max(len(result.sequences) for result in self.results)

    @property
    def extent(self) -> str:
        """How much was measured, in words."""
        frames = max(sum(row.frames for row in result.sequences) for result in self.results)
        return f"{self.sequences:,} sequence{'' if self.sequences == 1 else 's'}, {frames:,} frames"

    def best(self, metric: str) -> float | None:
        """The largest of the measured scores, if there are several to compare and they are complete."""
        values = [result.scores[metric] for result in self.results if metric in result.scores and not result.partial]
        return max(values) if len(values) > 1 else None

    @property
    def warnings(self) -> list[str]:
        """What makes results no results to publish, in words."""
        return [f"{result.tracker} lacks {len(result.missing)} sequences and has "
                f"{sum(row.partial for row in result.sequences)} short ones: not a number to publish."
                for result in self.results if result.partial]  # fmt: skip

    @property
    def note(self) -> str:
        """What to bear in mind where published figures stand beside the measured ones."""
        note = "Published figures are their authors' and were not measured here."
        split = f" of the split {self.split}" if self.split not in ("", "test") else ""
        partial = ", some of them partial" if any(result.partial for result in self.results) else ""
        if split or partial or {len(result.sequences) for result in self.results} != {self.published_sequences}:
            note += (f" They are of the whole test split ({self.published_sequences} sequences), the measured ones of "
                     f"{self.sequences}{split}{partial}: no comparison.")  # fmt: skip
        return note

    @property
    def sources(self) -> dict[str, int]:
        """Source of published figures -> its number in the set's table."""
        return {source: k for k, source in enumerate(dict.fromkeys(row.source for row in self.published), 1)}

    @property
    def attributes(self) -> dict[str, int]:
        """Attribute -> the number of sequences that have it, the commonest first."""
        counts: Counter[str] = Counter()
        for result in self.results:
            counts |= Counter({name: len(row.sequences) for name, row in result.attributes.items()})
        return dict(counts.most_common())

    def attribute_score(self, result: EvaluationResult, attribute: str) -> float | None:
        """The headline score over the sequences that have an attribute."""
        row = result.attributes.get(attribute)
        return row and row.scores.get(self.headline)


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
        # on another set than the protocol's own its published figures say nothing
        own = protocol not in PROTOCOLS or PROTOCOLS[protocol].title == dataset
        published = sorted(published_on(protocol) if own else [], key=lambda row: -row.scores.get(headline, -1.0))
        count = _published_file()["sets"].get(protocol, {}).get("sequences", 0)
        reports.append(SetReport(dataset, split, protocol, tuple(rows), tuple(published), count))
    return reports


def published_on(protocol: str) -> list[Published]:
    """Published figures on the whole test split of a protocol's set."""
    sources, found = _published_file()["sources"], []
    for row in _published_file()["sets"].get(protocol, {"rows": []})["rows"]:
        scores = {name: round(value / 100, 6) for name, value in row["scores"].items()}
        found.append(Published(row["tracker"], scores, sources[row["source"]]))
    return found


@lru_cache(maxsize=1)
def _published_file() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
