"""What could not be used in a training run, counted over all its data workers."""

import logging
import os
import tempfile
import weakref
from collections import Counter
from pathlib import Path

logger = logging.getLogger(__name__)


class Failures:
    """Reasons and how often each was met, in this process and in those that it hands this object to.

    They stand in a temporary file, a line each: workers only ever append, and a line is written in one piece.

    Example:
        >>> failures = Failures()
        >>> failures.add("frame 7 is empty"), failures.add("frame 7 is empty")
        (None, None)
        >>> failures.counts()
        Counter({'frame 7 is empty': 2})
    """

    def __init__(self) -> None:
        file, self._path = tempfile.mkstemp(prefix="mmtrackers-failures-", suffix=".txt")
        os.close(file)
        self._said: set[str] = set()
        weakref.finalize(self, _remove, self._path, os.getpid())

    def add(self, reason: str) -> None:
        """Count a reason; the first time that this process meets it, warn."""
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("left out of training: %s", reason)
        with open(self._path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(" ".join(reason.split()) + "\n")

    def counts(self) -> Counter[str]:
        """Reason -> how often it was met so far."""
        text = Path(self._path).read_text(encoding="utf-8", errors="surrogateescape")
        return Counter(text.splitlines())


def _remove(path: str, owner: int) -> None:
    # A data worker has a copy of the object, and ends before the others.
    if os.getpid() == owner:
        Path(path).unlink(missing_ok=True)
