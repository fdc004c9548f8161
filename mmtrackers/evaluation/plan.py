"""Which runs a protocol asks for, which of them share a forward pass, and which process does them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from accelerate import PartialState

from mmtrackers import data

from .scoring import Protocol, Truth
from .vot_scoring import MultiStart


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a tracker: a sequence (index and name) from its start, or from one of its anchors, through `frames`
    in order, with a box given in the first of them."""

    sequence: int
    name: str
    frames: np.ndarray
    box_xywh: np.ndarray
    anchor: int | None = None

    @property
    def label(self) -> str:
        """Its name among files."""
        return self.name if self.anchor is None else f"{self.name}_{self.anchor:08d}"


def planned(truths: Sequence[Truth], sequences: Sequence[data.Sequence], protocol: Protocol) -> list[Job]:
    """The runs that a protocol asks for. A run begins at the first frame where the target is present."""
    jobs = []
    for i, (truth, sequence) in enumerate(zip(truths, sequences, strict=True)):
        if isinstance(protocol, MultiStart):
            runs: dict[int | None, np.ndarray] = dict(truth.runs)
        else:
            first = int(np.argmax(sequence.present)) if sequence.present.any() else 0
            runs = {None: np.arange(first, len(truth))}
        for anchor, frames in runs.items():
            jobs.append(Job(i, truth.name, frames, truth.boxes_xywh[frames[0]], anchor))
    return jobs


def grouped(jobs: Sequence[Job], batch: int) -> list[list[Job]]:
    """Groups of `batch` runs of about the same length, longest first; the same for the same jobs."""
    ordered = sorted(jobs, key=lambda job: (-len(job.frames), job.label))
    return [ordered[i : i + batch] for i in range(0, len(ordered), batch)]


def processes() -> PartialState:
    """The processes that `accelerate launch` or `torchrun` has started; this one alone where neither has."""
    # they wait for the slowest one, which may track for hours
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def dealt(groups: Sequence[list[Job]], count: int) -> list[list[list[Job]]]:
    """Groups dealt to `count` processes, each to the one that has the fewest frames so far.

    Example:
        >>> jobs = [Job(i, str(n), np.arange(n), np.ones(4)) for i, n in enumerate((9, 5, 4, 1))]
        >>> [[group[0].name for group in part] for part in dealt([[job] for job in jobs], 2)]
        [['9', '1'], ['5', '4']]
    """
    parts: list[list[list[Job]]] = [[] for _ in range(count)]
    loads = [0] * count
    for group in groups:
        at = loads.index(min(loads))
        parts[at].append(group)
        loads[at] += sum(len(job.frames) for job in group)
    return parts
