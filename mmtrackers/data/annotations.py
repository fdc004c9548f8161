"""Reading of the text files that annotate a sequence: boxes and flags."""

from pathlib import Path

import numpy as np


def read_boxes(path: str | Path, corners: bool = False) -> np.ndarray:
    """Read a box file: rectangles, polygons or corner pairs, one per line.

    Args:
        path (`str` or `Path`): text; numbers parted by comma, tab, space or semicolon, also mixed. Four numbers are x,
            y, w, h; six or more are a polygon, of which the upright bounds are taken; a single number (VOT's special
            code) or NaN means no box.
        corners (`bool`): four numbers are two opposite corners instead, in any order.

    Returns:
        `np.ndarray`: [N, 4] float64 x, y, w, h; NaN rows where there is no box.

    Raises:
        ValueError: a line that is neither; names file and line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "groundtruth.txt"
        >>> _ = file.write_text("1,2,3,4\\n0 0 4 1 3 6 -1 5\\nnan,nan,nan,nan\\n")
        >>> read_boxes(file).tolist()
        [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 5.0, 6.0], [nan, nan, nan, nan]]
    """
    lines = _fields(path)
    try:
        values = np.array([fields for _, fields in lines], dtype=np.float64)
    except ValueError:  # rows of several lengths, or a word: line by line, which can also say where
        return np.array([_box(path, *row, corners) for row in _numbers(path, lines)]).reshape(-1, 4)
    if values.ndim != 2 or values.shape[1] != 4 or corners:
        rows = zip((number for number, _ in lines), values.tolist(), strict=True)
        return np.array([_box(path, *row, corners) for row in rows]).reshape(-1, 4)
    values[np.isnan(values).any(1)] = np.nan
    return values


def read_flags(path: str | Path, count: int) -> np.ndarray:
    """Read one number per frame, a line each or all on one line.

    Returns:
        `np.ndarray`: [count] float64.

    Raises:
        ValueError: another number of flags, or something that is no number; names the file.
    """
    flags = np.array([value for _, values in _numbers(path, _fields(path)) for value in values])
    if len(flags) != count:
        raise ValueError(f"{path} has {len(flags)} flags for {count} frames: expected one per frame")
    return flags


def read_nfs_boxes(path: str | Path) -> np.ndarray:
    """Read a box file of NFS as distributed: `id x1 y1 x2 y2 frame lost occluded generated "class"` per line.

    The boxes are those of the 240 fps video (Kiani Galoogahi et al., ICCV 2017), so every eighth belongs to a frame of
    the 30 fps version, as visionml/pytracking's converted files have it. Files of x, y, w, h are taken as they are.

    Returns:
        `np.ndarray`: [N, 4] float64 x, y, w, h.
    """
    lines = _fields(path)
    if not lines or len(lines[0][1]) < 6:
        return read_boxes(path)
    corners = [(number, values[1:5]) for number, values in _numbers(path, [(n, f[:6]) for n, f in lines])]
    return np.array([_box(path, number, values, True) for number, values in corners[::8]])


def _box(path: str | Path, number: int, values: list[float], corners: bool) -> list[float]:
    if len(values) == 1 or np.isnan(values).any():
        return [np.nan] * 4
    if len(values) == 4 and not corners:
        return values
    if len(values) >= 4 and len(values) % 2 == 0:
        xs, ys = values[0::2], values[1::2]
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    raise ValueError(f"{path}, line {number}: {len(values)} numbers; expected 4 (a box) or an even number from 6 on "
                     "(a polygon)")


_DELIMITERS = str.maketrans(",;", "  ")


def _fields(path: str | Path) -> list[tuple[int, list[str]]]:
    """(line number, fields) of every line that is not blank."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    lines = enumerate(text.translate(_DELIMITERS).splitlines(), 1)
    return [(number, fields) for number, line in lines if (fields := line.split())]


def _numbers(path: str | Path, lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[float]]]:
    rows = []
    for number, fields in lines:
        try:
            rows.append((number, [float(field) for field in fields]))
        except ValueError as error:
            shown = Path(path).read_text(encoding="utf-8-sig").splitlines()[number - 1].strip()[:60]
            raise ValueError(f"{path}, line {number}: {shown!r} is not a row of numbers") from error
    return rows
