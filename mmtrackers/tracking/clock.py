"""Where the time of tracking goes: a clock that is told when each stage ends."""

import time

import torch

STAGES = ("read", "crop", "model", "decode")


class StageClock:
    """Times the stages of each step of a tracker on a device: `rows` are, per step, the seconds of `STAGES`.

    On an accelerator every stage waits until the device has done its work: the split is then true, and the whole a
    little slower than without a clock.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.rows: list[list[float]] = []
        self._row = dict.fromkeys(STAGES, 0.0)
        self._last = 0.0

    def begin(self, read: float = 0.0) -> None:
        """A step begins; `read` are the seconds of reading, where they were measured elsewhere."""
        self._row = dict.fromkeys(STAGES, 0.0) | {"read": read}
        self._last = self._now()

    def __call__(self, stage: str) -> None:
        """A stage has ended."""
        now = self._now()
        self._row[stage] += now - self._last
        self._last = now

    @property
    def row(self) -> list[float]:
        """The seconds of this step's stages so far."""
        return list(self._row.values())

    def end(self) -> list[float]:
        """The step has ended; its row."""
        self.rows.append(self.row)
        return self.rows[-1]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
