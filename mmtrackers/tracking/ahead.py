"""Reading ahead: the next frames are decoded in a thread while the present one is looked at."""

import queue
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

_AHEAD_BYTES = 32 << 20


class ReadAhead(AbstractContextManager):
    """An iterator over frames that a thread reads beforehand, as many as fit 32 MB, at least one.

    An error of the source is raised after the frames before it. Leaving the `with` block ends the thread and closes
    the source.
    """

    def __init__(self, frames: Iterator[dict[str, Any]]) -> None:
        self._frames = frames
        self._queue: queue.SimpleQueue[tuple[dict[str, Any] | None, BaseException | None]] = queue.SimpleQueue()
        self._room = threading.Semaphore(1)
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> "ReadAhead":
        return self

    def __next__(self) -> dict[str, Any]:
        frame, error = self._queue.get()
        if frame is not None:
            self._room.release()
            return frame
        self._queue.put((None, error))  # and so again, if somebody asks again
        if error is not None:
            raise error
        raise StopIteration

    def _work(self) -> None:
        error, known = None, False
        try:
            while True:
                self._room.acquire()
                frame = None if self._stopped else next(self._frames, None)
                if frame is None:
                    break
                if not known:
                    known, size = True, sum(picture.nbytes for picture in frame.values() if picture is not None)
                    for _ in range(min(8, _AHEAD_BYTES // max(size, 1)) - 1):
                        self._room.release()
                self._queue.put((frame, None))
        except BaseException as caught:
            error = caught
        finally:
            getattr(self._frames, "close", lambda: None)()
            self._queue.put((None, error))

    def __exit__(self, *_: object) -> None:
        """Ends the thread; a source that is waiting for its camera is left to the end of the process."""
        self._stopped = True
        self._room.release()
        self._thread.join(timeout=2)
