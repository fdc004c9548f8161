"""Cameras and network streams: a thread reads, the newest frame counts, a broken connection is made again."""

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import av
import cv2
import numpy as np

from .sources import Frame, FrameSource

logger = logging.getLogger(__name__)

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "tcp", "srt")
PATIENCE = 60.0  # seconds without a picture after which a source is given up

_ANSWER = 10.0  # seconds in which a stream must open, or give its next packet
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
_RECORDED = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")

Picture = av.VideoFrame | np.ndarray


def is_live(place: str) -> bool:
    """Whether this names a camera or a network stream: an index, `/dev/video0`, or an address that is no video file.
    """
    if place.isdecimal() or place.startswith("/dev/video"):
        return True
    return is_address(place) and PurePosixPath(urlsplit(place).path).suffix.lower() not in _RECORDED


def is_address(place: str) -> bool:
    """Whether this is a network address."""
    return "://" in place and urlsplit(place).scheme.lower() in SCHEMES


class NewestFrame(AbstractContextManager):
    """Reads a camera (index, `/dev/videoN`) or a stream (address) in a thread of its own and keeps its newest frame,
    and nothing else.

    A connection that breaks is made again, after a pause that grows to five seconds; a warning says so each time.
    After `patience` seconds without a picture, a minute by default, it is given up.
    """

    def __init__(self, place: str, patience: float | None = None) -> None:
        self.place, self.patience = place, PATIENCE if patience is None else patience
        self._changed = threading.Condition()
        self._picture: Picture | None = None
        self._number, self._reason, self._ended = 0, "it never answered", False
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._read, name=f"reader of {place}", daemon=True)
        self._thread.start()

    def newer_than(self, number: int) -> tuple[int, np.ndarray]:
        """Waits for a frame after the one of this number: `(its number, [H, W, 3] uint8 RGB)`, the newest there is;
        ValueError where none came for `patience` seconds, or the first connection failed."""
        with self._changed:
            while self._number <= number and not self._ended:
                left = self.patience - (time.monotonic() - self._last)
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._number <= number or time.monotonic() - self._last > self.patience:
                waited = "" if self._ended else f" within {self.patience:g} s"
                again = "gave no picture" if self._number == 0 else "gives no more pictures"
                out = "is it plugged in, and free?"
                if is_address(self.place):
                    out = "is the address right, and the camera on? Another program (ffplay) would show why"
                raise ValueError(f"{self.place} {again}{waited} ({self._reason}): {out}")
            number, picture = self._number, self._picture
        return number, picture if isinstance(picture, np.ndarray) else picture.to_ndarray(format="rgb24")

    def __exit__(self, *_: object) -> None:
        """Ends the reading; the thread goes when its current packet is there."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _read(self) -> None:
        tries = 0
        while not self._ended:
            begun = self._number
            try:
                for picture in (_from_network if is_address(self.place) else _from_device)(self.place):
                    with self._changed:
                        if self._ended:
                            return
                        self._picture, self._last = picture, time.monotonic()
                        self._number += 1
                        self._changed.notify_all()
                reason = "the stream ended"
            except (av.FFmpegError, OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            with self._changed:
                self._reason = reason
                if self._number == 0 and tries > 0:  # what never worked is not waited for
                    self._ended = True
                    self._changed.notify_all()
                    return
            tries = 0 if self._number > begun else tries + 1
            if self._number and not self._ended:
                logger.warning("%s broke off (%s): connecting again", self.place, reason)
            time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])


def _from_network(address: str) -> Iterator[Picture]:
    options = {"fflags": "nobuffer", "flags": "low_delay"}
    if address.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    with av.open(address, options=options, timeout=(_ANSWER, _ANSWER)) as container:
        if not container.streams.video:
            raise ValueError("it holds no video")
        container.streams.video[0].thread_type = "SLICE"  # by frames, decoding would lag by as many as there are cores
        yield from container.decode(video=0)


def _from_device(place: str) -> Iterator[Picture]:
    camera = cv2.VideoCapture(int(place) if place.isdecimal() else place)
    try:
        if not camera.isOpened():
            raise ValueError("it cannot be opened")
        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        while True:
            good, image = camera.read()
            if not good:
                raise ValueError("it gives no more frames")
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    finally:
        camera.release()


def open_live(place: str, second: dict[str, str] | None = None, patience: float | None = None) -> FrameSource:
    """A camera or stream, or two of them, as a source of its newest frames: what came meanwhile is left out.

    With two, each frame of the first goes with the newest one of the second; where that one has broken off, its last
    frame stands until it is back or given up.
    """
    places = {"rgb": place} | (second or {})

    def frames() -> Iterator[Frame]:
        with ExitStack() as stack:
            rgb, *others = [stack.enter_context(NewestFrame(where, patience)) for where in places.values()]
            for reader in others:
                reader.newer_than(0)  # all are there before the first pair is made
            number = 0
            while True:
                number, picture = rgb.newer_than(number)
                yield dict(zip(places, [picture, *(reader.newer_than(0)[1] for reader in others)], strict=True))

    return FrameSource(_name_of(place), frames, list(places)[-1], live=True)


def _name_of(place: str) -> str:
    if not is_address(place):
        return "camera" + place.removeprefix("/dev/video")
    parts = urlsplit(place)
    return re.sub(r"[\W_]", "_", f"{parts.hostname or parts.scheme}{parts.path}").strip("_") or "stream"
