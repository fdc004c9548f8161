"""Which frame of a second stream goes with which RGB frame: by the numbers in file names, by time, or in order."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

PAIRINGS = ("number", "time", "rank")

A = TypeVar("A")
B = TypeVar("B")


def frame_numbers(names: Sequence[str]) -> np.ndarray | None:
    """The number of each frame: the last group of digits in which the names differ; int64 `[N]`, rising.

    None where the names hold no such numbers (or times, see `frame_times`).

    Example:
        >>> frame_numbers(["cam2_v008.jpg", "cam2_v010.jpg"]).tolist()
        [8, 10]
    """
    groups = [re.findall(r"[0-9]+", name.rpartition(".")[0] or name) for name in names]
    if not groups or frame_times(names) is not None or len({len(group) for group in groups}) != 1 or not groups[0]:
        return None
    varying = [k for k in range(len(groups[0])) if any(group[k] != groups[0][k] for group in groups)]
    column = [group[varying[-1] if varying else -1] for group in groups]
    if max(map(len, column)) > 18:
        return None
    numbers = np.array(column, dtype=np.int64)
    return numbers if (np.diff(numbers) > 0).all() else None


def frame_times(names: Sequence[str]) -> np.ndarray | None:
    """Seconds, where names are decimal numbers such as `1305031102.175304.png`; else None."""
    stems = [name.rpartition(".")[0] for name in names]
    if not stems or not all(re.fullmatch(r"[0-9]+\.[0-9]+", stem) for stem in stems):
        return None
    return np.array([float(stem) for stem in stems])


def paired(rgb: Sequence[str], other: Sequence[str], modality: str, by: str | None = None, cut: bool = False
           ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The frames of two lists of files that go together: indices into each, int64 `[N]`; ValueError where counts or
    numbers do not agree, which names the first frame that has no partner.

    Args:
        rgb, other (list of `str`): file names in order.
        modality (`str`): the second stream's, for messages.
        by (`str`, *optional*): "number" takes the frames that both streams have, "rank" goes by order alone. By
            default by order where the numbers agree: the same, or a constant apart.
        cut (`bool`): frames of the second stream behind the last RGB frame do not count.

    Example:
        >>> [side.tolist() for side in paired(["1.jpg", "2.jpg", "4.jpg"], ["2i.png", "4i.png"], "thermal", "number")]
        [[1, 2], [0, 1]]
    """
    a, b = (None, None) if by == "rank" else (frame_numbers(rgb), frame_numbers(other))
    if a is None or b is None:
        if by == "number":
            raise ValueError(f"the names of the frames ({rgb[0]}, {other[0]}) hold no numbers to pair the streams by")
        count = min(len(rgb), len(other)) if cut else len(rgb)
        if len(rgb) != count or (len(other) != count and not cut):
            raise ValueError(f"{len(rgb)} rgb frames but {len(other)} {modality} frames: the streams must be paired")
        return np.arange(count), np.arange(count)
    # another start is added to the second stream's numbers only where it makes all of them meet, or most
    start = int(a[0] - b[0])
    if not (len(a) == len(b) and (a - b == start).all()):
        meeting = [len(np.intersect1d(a, b + shift, assume_unique=True)) for shift in (0, start)]
        start = start if meeting[1] > 2 * meeting[0] else 0
    b = b + start
    b = b[b <= a[-1]] if cut else b
    _, left, right = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    if by != "number" and not len(left) == len(a) == len(b):
        alone = np.setxor1d(a, b, assume_unique=True)[0]
        lacks = "rgb" if alone in b else modality
        name = other[int(np.searchsorted(b, alone))] if lacks == "rgb" else rgb[int(np.searchsorted(a, alone))]
        raise ValueError(
            f"frame {alone} ({name}) has no {lacks} frame of that number ({len(rgb)} rgb frames, {len(other)} "
            f"{modality} frames): --pair-by number takes the frames that both have, --pair-by rank pairs them in order"
        )
    if not len(left):
        raise ValueError(f"the rgb and the {modality} frames have no number in common ({rgb[0]}, {other[0]})")
    return left, right


def nearest_in_time(rgb: Iterable[tuple[float, A]], other: Iterable[tuple[float, B]], tolerance: float
                    ) -> Iterator[tuple[A, B]]:  # fmt: skip
    """With each item of the first stream the item of the second that is nearest in time; ValueError, which says when,
    where that is further than the tolerance (seconds).

    Both are `(seconds, item)` in order of time, and read once, one item ahead.
    """
    following: Iterator[Any] = iter(other)
    now = next(following, None)
    ahead = next(following, None)
    for time, item in rgb:
        while ahead is not None and abs(ahead[0] - time) < abs(now[0] - time):
            now, ahead = ahead, next(following, None)
        if now is None or abs(now[0] - time) > tolerance:
            nearest = "it has no frame" if now is None else f"its nearest frame is at {now[0]:.3f} s"
            raise ValueError(f"nothing within {tolerance:.3f} s of {time:.3f} s in the second stream ({nearest})")
        yield item, now[1]
