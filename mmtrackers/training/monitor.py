"""What a training loop keeps an eye on: losses, signals, validation."""

import logging
import math
import signal
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator

from mmtrackers.data.sequence import Sequence
from mmtrackers.processing.boxes import iou_xywh

if TYPE_CHECKING:
    from mmtrackers.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


class LossMeter:
    """Sums of named scalars that stay on the device until they are read: no host-device synchronization per step."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.sums: dict[str, torch.Tensor | float] = dict((state or {}).get("sums", {}))
        self.counts: dict[str, int] = dict((state or {}).get("counts", {}))
        self._first_bad: torch.Tensor | None = None

    def add(self, values: dict[str, torch.Tensor], moment: int = 0) -> None:
        """Adds one scalar tensor per name; `moment` is a number by which the caller finds this batch again."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
            here = torch.where(value.isfinite(), -1, moment)
            before = here if self._first_bad is None else self._first_bad
            self._first_bad = torch.where(before >= 0, before, here)

    def first_bad(self) -> int | None:
        """The `moment` of the first value that was not finite since the last `mean`, in this process."""
        return None if self._first_bad is None or self._first_bad < 0 else int(self._first_bad)

    def state(self, accelerator: Accelerator | None = None) -> dict[str, Any]:
        """Sums and counts as numbers, averaged over the processes (every process must call)."""
        sums = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in self.sums.items()}
        if sums and accelerator is not None:
            together = torch.stack([value.to(accelerator.device) for value in sums.values()])
            sums = dict(zip(sums, accelerator.reduce(together, reduction="mean"), strict=True))
        return {"sums": {name: value.item() for name, value in sums.items()}, "counts": dict(self.counts)}

    def mean(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Means over what was added and over the processes; starts anew. Raises `FloatingPointError` on NaN or inf."""
        state = self.state(accelerator)
        self.check(state)
        self.sums, self.counts, self._first_bad = {}, {}, None
        return {name: value / state["counts"][name] for name, value in state["sums"].items()}

    @staticmethod
    def check(state: dict[str, Any]) -> None:
        """Raises `FloatingPointError` when a sum of `state()` is not finite."""
        bad = [name for name, value in state["sums"].items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"{', '.join(bad)} became NaN or infinite")


@torch.no_grad()
def validation_overlap(tracker: "Tracker", sequences: Iterable[Sequence]) -> float:
    """Mean overlap, 0 to 1, of tracking through sequences, each begun once with the box of its first frame with the
    target: over those with a later frame that shows it, of the mean over such frames. The model's mode stays."""
    was_training, means, left_out = tracker.model.training, [], []
    tracker.model.eval()
    try:
        for sequence in sequences:
            shown = np.flatnonzero(sequence.present)
            if len(shown) < 2:
                left_out.append(sequence.name)
                continue
            first, counted = shown[0], shown[1:]
            frames = (sequence.read(index) for index in range(first, shown[-1] + 1))
            found = np.stack([prediction.box for prediction in tracker.track(frames, sequence.boxes_xywh[first])])
            means.append(float(iou_xywh(found[counted - first], sequence.boxes_xywh[counted]).mean()))
    finally:
        tracker.model.train(was_training)
    if left_out:
        logger.warning("not validated on, since fewer than two frames show the target: %s", ", ".join(left_out))
    if not means:
        raise ValueError("no validation sequence shows the target in two frames")
    return float(np.mean(means))


def draw_losses(history: list[dict[str, Any]], path: Path) -> None:
    """Draws the course of loss and validation, of [`TrainingProgress`]'s history, as a png file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, color in (("loss", "tab:blue"), ("validation", "tab:orange")):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=name, marker="o" if len(points) < 20 else None)
            axes = axes.twinx() if name == "loss" else axes
    figure.axes[0].set(xlabel="step", ylabel="loss")
    axes.set_ylabel("mean overlap in validation" if any("validation" in entry for entry in history) else "")
    figure.savefig(path)


class StopRequest(ExitStack):
    """Turns SIGINT, SIGTERM and SIGHUP into a flag that the loop reads after a step; a second signal acts at once. A
    SIGHUP that is ignored (`nohup`) stays so."""

    wanted, number = False, signal.SIGINT

    def _receive(self, number: int, _: Any) -> None:
        if self.wanted:
            raise KeyboardInterrupt(number)
        self.wanted, self.number = True, number

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, *_hangup()):
                self.callback(signal.signal, number, signal.signal(number, self._receive))
        return self


def _hangup() -> list[int]:
    """The signal of a terminal that is closed, where there is one and it is heard."""
    number = getattr(signal, "SIGHUP", None)  # not on Windows
    return [] if number is None or signal.getsignal(number) == signal.SIG_IGN else [number]


def quiet_worker(_: int) -> None:
    """`worker_init_fn` for loaders: one OpenCV thread per worker; Ctrl-C and a closed terminal are the main process's
    affair."""
    import cv2

    cv2.setNumThreads(0)
    for number in (signal.SIGINT, *_hangup()):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
