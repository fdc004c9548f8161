"""How many threads a loop on a CPU runs with: a number, or what the loop itself finds to be faster."""

import math
from collections import deque
from collections.abc import Generator
from contextlib import AbstractContextManager
from statistics import median

import cv2
import torch

MOST = 1024  # threads that torch is asked for: far above it the system has none left for others
LOOK_AGAIN = 300  # steps between two comparisons
_COMPARED = 4  # steps that a setting is tried for
# times the other setting's step: no further step is tried; times the expected step: the settings are compared again
_HOPELESS = 1.5


class ThreadChoice(AbstractContextManager):
    """All `threads` or one, whichever makes the steps of a loop shorter; looked at again every few hundred steps,
    and when they have become much longer.

    OpenMP's threads wait for each other by spinning: all cores are faster on a machine of its own, one may be several
    times as fast beside another busy process. A number fixes it, "auto" compares; ValueError for anything else. After
    a `with` block the settings of torch and OpenCV are as before.
    """

    def __init__(self, threads: int | str = "auto") -> None:
        self._most, self._before = torch.get_num_threads(), cv2.getNumThreads()
        try:
            self.threads = self._most if threads == "auto" else int(threads)
        except ValueError:
            self.threads = 0
        if not 1 <= self.threads <= MOST:
            raise ValueError(f"threads is {threads!r}, expected a positive whole number or auto, {MOST} at most")
        self._set(self.threads)
        self._comparison = self._compare() if threads == "auto" and self._most > 1 else None
        if self._comparison is not None:
            next(self._comparison)

    def _set(self, threads: int) -> None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)

    def step(self, seconds: float) -> None:
        """A step has ended that took so long."""
        if self._comparison is not None:
            self._comparison.send(seconds)

    def _compare(self) -> Generator[None, float, None]:
        """Is sent the seconds of each step; sets the threads of the next ones."""
        recent: deque[float] = deque(maxlen=_COMPARED)
        wait, expected = 2 * _COMPARED, math.inf  # the first steps are slow for other reasons
        while True:
            for _ in range(wait):
                recent.append((yield))
                if len(recent) == _COMPARED and median(recent) > _HOPELESS * expected:
                    break  # something else has begun to run
            usual, other = median(recent), 1 if self.threads > 1 else self._most
            self._set(other)
            tried = [(yield)]
            while len(tried) < _COMPARED and tried[-1] <= _HOPELESS * usual:
                tried.append((yield))
            if median(tried) < usual:
                self.threads = other
            self._set(self.threads)
            wait, expected = LOOK_AGAIN, min(usual, median(tried))
            recent.clear()

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._most)
        cv2.setNumThreads(self._before)
