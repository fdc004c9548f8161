"""How many threads a loop on a CPU runs with: a number, or what the loop itself finds to be faster."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import cv2
import torch

LOOK_AGAIN = 300  # steps between two comparisons
_COMPARED = 4  # steps that a setting is tried for
_HOPELESS = 1.5  # times the other setting's step: no further step is tried


class ThreadChoice:
    """All threads or one, whichever makes the steps of a loop shorter; looked at again every few hundred steps.

    OpenMP's threads wait for each other by spinning. On a machine of its own all cores are faster; beside another
    busy process one thread may be several times as fast as two, and no setting is best in both cases.

    Args:
        threads (`int` or `str`): a number fixes it; "auto" compares.

    Attributes:
        threads (`int`): the number in use.

    Raises:
        ValueError: neither "auto" nor a positive number.
    """

    def __init__(self, threads: int | str = "auto") -> None:
        self._most = torch.get_num_threads()
        self._fixed = threads != "auto"
        try:
            self.threads = int(threads) if self._fixed else self._most
        except ValueError:
            self.threads = 0
        if self.threads < 1:
            raise ValueError(f"threads is {threads!r}, expected a positive whole number or auto")
        self._recent: deque[float] = deque(maxlen=2 * _COMPARED)
        self._tried: list[float] | None = None  # steps of the other setting, while it is tried
        self._until = 2 * _COMPARED  # steps until it is; the first ones are slow for other reasons
        self._set(self.threads)

    def _set(self, threads: int) -> None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)

    @property
    def _other(self) -> int:
        return 1 if self.threads > 1 else self._most

    def step(self, seconds: float) -> None:
        """A step has ended that took so long."""
        if self._fixed or self._most == 1:
            return
        if self._tried is None:
            self._recent.append(seconds)
            self._until -= 1
            if self._until == 0:
                self._tried = []
                self._set(self._other)
            return
        self._tried.append(seconds)
        usual = median(list(self._recent)[-_COMPARED:])
        if seconds > _HOPELESS * usual or len(self._tried) == _COMPARED:
            if median(self._tried) < usual:
                self.threads = self._other
                self._recent.clear()
            self._tried, self._until = None, LOOK_AGAIN
            self._set(self.threads)


@contextmanager
def chosen_threads(threads: int | str = "auto") -> Iterator[ThreadChoice]:
    """A [`ThreadChoice`] for the length of a block; the settings of torch and OpenCV are as before after it.

    Example:
        >>> before = torch.get_num_threads()
        >>> with chosen_threads(1):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        yield ThreadChoice(threads)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
