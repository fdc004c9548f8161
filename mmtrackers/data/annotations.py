"""Reading of the text files that annotate a sequence: boxes, flags and names."""

import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

_DELIMITERS = str.maketrans(",;", "  ")


def read_boxes(path: str | Path, corners: bool = False) -> np.ndarray:
    """Read a box file (rectangles, polygons, masks or corner pairs, one per line) as [N, 4] float64 x, y, w, h, NaN
    where there is no box; ValueError, which names file and line, for a line that is none of these.

    Args:
        path (`str` or `Path`): text, or a file of the VOT toolkit (`.bin`). Numbers are parted by comma, tab, space or
            semicolon, also mixed. Four numbers are x, y, w, h; six or more are a polygon, of which the upright bounds
            are taken; `m` with numbers is a mask of the VOT toolkit, which begins with its bounds. A single number
            (VOT's special code), NaN, or a line without numbers means no box; blank lines at the end are no rows.
        corners (`bool`): four numbers are two opposite corners instead, in any order.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "groundtruth.txt"
        >>> _ = file.write_text("1,2,3,4\\n0 0 4 1 3 6 -1 5\\n,,,\\nm1,2,3,4,0,12\\n")
        >>> read_boxes(file).tolist()
        [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 5.0, 6.0], [nan, nan, nan, nan], [1.0, 2.0, 3.0, 4.0]]
    """
    data = Path(path).read_bytes()
    if data[:2] == struct.pack("<h", 1):
        return _binary_boxes(data, path)
    lines = _lines(path)
    rows = [line.translate(_DELIMITERS).split() for line in lines]
    if not corners and all(len(fields) == 4 for fields in rows):
        with suppress(ValueError):  # something that is no number: the way below can say where
            values = np.array(rows, dtype=np.float64).reshape(-1, 4)
            values[np.isnan(values).any(1)] = np.nan
            return values
    return np.array([_box(path, k, line, corners) for k, line in enumerate(lines, 1)]).reshape(-1, 4)


def read_flags(path: str | Path, count: int) -> np.ndarray:
    """[count] float64: one number per frame, a line each or all on one line; ValueError, which names the file, for
    another number of flags, or something that is no number."""
    flags = [value for k, line in enumerate(_lines(path), 1) for value in _numbers(path, k, line)]
    if len(flags) != count:
        raise ValueError(f"{path} has {len(flags)} flags for {count} frames: expected one per frame")
    return np.array(flags)


def read_nfs_boxes(path: str | Path) -> np.ndarray:
    """Read a box file of NFS as distributed: `id x1 y1 x2 y2 frame lost occluded generated "class"` per line, of the
    240 fps video (Kiani Galoogahi et al., ICCV 2017). Every eighth belongs to a frame of the 30 fps version, as in
    visionml/pytracking's converted files. Files of x, y, w, h are taken as they are."""
    rows = [line.split() for line in _lines(path)]
    if not rows or len(rows[0]) < 6:
        return read_boxes(path)
    return np.array([_box(path, 8 * k + 1, " ".join(fields[1:5]), True) for k, fields in enumerate(rows[::8])])


def read_names(path: str | Path) -> list[str]:
    """The names in a list, one per line."""
    return [line.strip() for line in _lines(path) if line.strip()]


def _lines(path: str | Path) -> list[str]:
    """The lines of a text file, but for blank ones at the end."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error


def _box(path: str | Path, number: int, line: str, corners: bool) -> list[float]:
    mask = line.translate(_DELIMITERS).lstrip().startswith("m")
    values = _numbers(path, number, line.replace("m", "", 1) if mask else line)
    if not values or np.isnan(values).any() or (len(values) == 1 and len(line.split()) == 1 and "," not in line):
        return [np.nan] * 4
    if mask and len(values) >= 4:
        return values[:4]
    if len(values) == 4 and not corners:
        return values
    if len(values) >= 4 and len(values) % 2 == 0:
        return _bounds(values)
    raise ValueError(f"{path}, line {number}: {len(values)} numbers; expected 4 (a box) or an even number from 6 on "
                     "(a polygon)")


def _bounds(values: Sequence[float]) -> list[float]:
    xs, ys = values[0::2], values[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _numbers(path: str | Path, number: int, line: str) -> list[float]:
    try:
        return [float(field) for field in line.translate(_DELIMITERS).split()]
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {line.strip()[:60]!r} is not a row of numbers") from error


def _binary_boxes(data: bytes, path: str | Path) -> np.ndarray:
    """The trajectory of a binary file of the VOT toolkit; a code (unknown, initialization, failure) is no box."""
    file = io.BytesIO(data)
    rows: list[Sequence[float]] = []

    def take(form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))

    try:
        _, count = take("hI")
        for _ in range(count):
            kind = take("B")[0]
            if kind == 0:
                take("I")
                rows.append([np.nan] * 4)
            elif kind == 1:
                rows.append(take("ffff"))
            elif kind == 2:
                rows.append(_bounds(take(f"{2 * take('H')[0]}f")))
            elif kind == 3:
                *box, runs = take("hhHHH")
                take(f"{runs}H")
                rows.append(box)
            else:
                raise ValueError(f"{path}, row {len(rows)}: region type {kind} is not a code, rectangle, polygon or "
                                 "mask")  # fmt: skip
    except struct.error:
        if len(data) < 6:
            raise ValueError(f"{path} is truncated: it ends in its header, after {len(data)} of 6 bytes") from None
        raise ValueError(f"{path} is truncated: it promises {count} rows and ends in row {len(rows)}") from None
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    boxes[~np.isfinite(boxes).all(1)] = np.nan
    return boxes
