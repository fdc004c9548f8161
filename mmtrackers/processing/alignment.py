"""Streams that do not show the same view pixel for pixel: the matrix that maps one onto RGB, and crops through it.

A matrix maps pixels of the other stream's picture to pixels of the RGB picture; a pixel's coordinates are those of its
center, as in OpenCV. Only crops are warped, never whole frames: matrix and crop are one map.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .crops import AlignedCrop, Crop
from .files import read_text

SCALE = "scale"
Alignment = np.ndarray | str

_UNKNOWN_DEPTH = (128, 0, 0)  # of `depth_to_colors`: what 0 becomes
# What lies beyond a picture's border: the edge goes on, no distance, no event
_BORDERS = {"depth": (cv2.BORDER_CONSTANT, _UNKNOWN_DEPTH), "event": (cv2.BORDER_CONSTANT, (255, 255, 255))}


@dataclass(frozen=True, eq=False)
class View:
    """One stream of a frame as crops are taken from it: uint8 `[H, W, 3]` as the camera shows it, what feeds it, the
    matrix `[3, 3]` from its pixels to those of the frame (None: the same), and the frame's height and width."""

    picture: np.ndarray
    modality: str
    matrix: np.ndarray | None = None
    frame_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frame that boxes refer to."""
        return self.frame_size or self.picture.shape[:2]


def as_views(image: np.ndarray | Sequence[View]) -> Sequence[View]:
    """Views as they are, or a uint8 picture `[H, W, C]` of all streams as one; ValueError for another one."""
    if isinstance(image, (list, tuple)):
        return image
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.dtype != np.uint8 or image.size == 0:
        shown = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"a crop needs a uint8 picture [H, W, C] as stack() gives it, got {shown}")
    return [View(image, "rgb")]


def check_alignment(alignment: Alignment, modality: str = "second") -> Alignment:
    """An alignment (3 x 3 numbers, or 2 x 3) as float64 `[3, 3]` with a 1 in its corner, or "scale" (one view in two
    sizes) as it is; ValueError for another shape, numbers that are not finite, or a matrix that cannot be inverted."""
    if isinstance(alignment, str) and alignment == SCALE:
        return SCALE
    what = f"the alignment of the {modality} stream"
    out = f"it maps {modality} pixels to rgb pixels: give 3 x 3 numbers, such as `mmtrackers align` writes, or 'scale'"
    try:
        matrix = np.asarray(alignment, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is no matrix of numbers; {out}") from None
    if matrix.shape == (2, 3):
        matrix = np.vstack((matrix, (0.0, 0.0, 1.0)))
    if matrix.shape != (3, 3):
        raise ValueError(f"{what} has the shape {matrix.shape}; {out}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{what} has numbers that are not finite; {out}")
    # against the matrix's own size, and in units of a picture's side where it shifts
    norm = np.diag((1e-3, 1e-3, 1.0)) @ matrix @ np.diag((1e3, 1e3, 1.0))
    if abs(matrix[2, 2]) < 1e-12 or abs(np.linalg.det(norm / max(np.abs(norm).max(), 1e-300))) < 1e-9:
        raise ValueError(f"{what} is singular (it flattens the picture): {matrix.round(6).tolist()}; {out}")
    return matrix / matrix[2, 2]


def frame_matrix(
    alignment: Alignment, size: tuple[int, int], frame_size: tuple[int, int], modality: str
) -> np.ndarray:
    """The matrix of an alignment for pictures of these sizes (height, width); ValueError where the mapped picture does
    not meet the RGB picture, or its horizon lies within it."""
    (height, width), (rows, columns) = size, frame_size
    if isinstance(alignment, str):
        x, y = columns / width, rows / height
        return np.array([[x, 0, 0.5 * x - 0.5], [0, y, 0.5 * y - 0.5], [0, 0, 1.0]])
    mapped = alignment @ np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1.0]])
    out = "was it made for pictures of other sizes, or does it map rgb to the other stream? Its inverse would be right"
    if (mapped[2] <= 0).any():
        raise ValueError(f"the alignment of the {modality} stream turns part of its picture inside out: {out} then")
    corners = (mapped[:2] / mapped[2]).T.astype(np.float32)
    frame = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32)
    if cv2.intersectConvexConvex(corners, frame)[0] < 0.01 * rows * columns:
        where = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in corners)
        raise ValueError(f"the alignment puts the corners of the {modality} picture ({width} x {height}) at {where}, "
                         f"outside the rgb picture ({columns} x {rows}): {out} then")  # fmt: skip
    return alignment


def read_alignment(path: str | Path) -> np.ndarray:
    """A matrix, float64 `[3, 3]`, from a file: three rows of text, JSON (the rows, or an object with "matrix" or the
    like), OpenCV YAML. ValueError where it is missing, or holds none."""
    text = read_text(path, "alignment")
    try:
        if text.startswith("%YAML") or "opencv-matrix" in text:
            found = _from_opencv(path)
        elif text.lstrip().startswith(("{", "[")):
            found = json.loads(text)
            if isinstance(found, dict):
                named = [found[name] for name in ("matrix", "homography", "H") if name in found]
                found = named[0] if named else next((v for v in found.values() if isinstance(v, list)), None)
        else:
            lines = [line.partition("#")[0].replace(",", " ").split() for line in text.splitlines()]
            found = [[float(number) for number in line] for line in lines if line]
    except (ValueError, cv2.error):
        found = None
    try:
        return check_alignment(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _from_opencv(path: str | Path) -> np.ndarray | None:
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    try:
        nodes = [storage.getNode(name) for name in storage.root().keys()]  # noqa: SIM118
        return next((node.mat() for node in nodes if node.isMap()), None)
    finally:
        storage.release()


def write_alignment(path: str | Path, matrix: np.ndarray) -> None:
    """Writes a matrix as three rows of text."""
    rows = (" ".join(f"{number:.10g}" for number in row) for row in check_alignment(matrix))
    Path(path).write_text("\n".join(rows) + "\n")


def warp(picture: np.ndarray, matrix: np.ndarray, size: int | tuple[int, int], modality: str) -> np.ndarray:
    """A uint8 picture `[H, W, 3]` through a matrix (its pixels -> the result's), with the interpolation and the border
    that its modality asks for: a mixture of two depths' colors would be a wrong distance. `size`: the side, or width
    and height."""
    size = (size, size) if isinstance(size, int) else size
    border, value = _BORDERS.get(modality, (cv2.BORDER_REPLICATE, (0, 0, 0)))
    flags = cv2.INTER_NEAREST if modality == "depth" else cv2.INTER_LINEAR
    if np.array_equal(matrix[2], (0, 0, 1)):
        return cv2.warpAffine(picture, matrix[:2], size, flags=flags, borderMode=border, borderValue=value)
    return cv2.warpPerspective(picture, matrix, size, flags=flags, borderMode=border, borderValue=value)


def cut_warped(view: View, where: Crop | AlignedCrop, fill: np.ndarray | None = None) -> np.ndarray:
    """A crop `[size, size, 3]` of the frame out of an aligned stream, uint8, or float32 of an `AlignedCrop`: outside
    the frame as a crop of RGB is there, of the color `fill` `[3]` in the second case."""
    if isinstance(where, Crop):
        scale, shift = np.full(2, where.resize_factor), np.array([where.x1, where.y1]) * -where.resize_factor
    else:
        scale, shift = where.scale, where.translation
    to_crop = np.diag((*scale, 1.0))
    to_crop[:2, 2] = shift + 0.5 * scale - 0.5
    warped = warp(view.picture, to_crop @ view.matrix, where.size, view.modality)
    if isinstance(where, Crop):
        return _faded(warped, *(_inside(where, axis, view.size[1 - axis]) for axis in (1, 0)))
    left, top, right, bottom = where.target
    cut = np.empty(warped.shape, np.float32)
    cut[:] = 0 if fill is None else fill
    cut[top:bottom, left:right] = warped[top:bottom, left:right]
    return cut


def _faded(picture: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """A uint8 picture `[H, W, 3]` with its rows and columns weighed, changed in place."""
    if down.all() and across.all():
        return picture
    rows, columns = np.flatnonzero(down), np.flatnonzero(across)
    if not (rows.size and columns.size):
        return np.zeros_like(picture)
    # all but a few weigh 1, or nothing at the borders: a product of the whole would take as long as the warp
    edges = (np.flatnonzero(down % 1), slice(None)), (slice(None), np.flatnonzero(across % 1))
    weighed = [picture[y, x] * (down[y, None] * across[x])[..., None] + 0.5 for y, x in edges]
    for (y, x), values in zip(edges, weighed, strict=True):
        picture[y, x] = values.astype(np.uint8)
    picture[: rows[0]] = picture[rows[-1] + 1 :] = 0
    picture[:, : columns[0]] = picture[:, columns[-1] + 1 :] = 0
    return picture


def _inside(where: Crop, axis: int, length: int) -> np.ndarray:
    """How much of a crop's columns or rows lies inside the frame, 0 to 1, as `cut_square` blends the frame's edge."""
    first = (where.x1, where.y1)[axis]
    at = np.arange(first, first + where.side)
    last = length if first + where.side < length else length - 1
    row = ((at >= 0) & (at < last)).astype(np.float32)
    return cv2.resize(row[None], (where.size, 1), interpolation=cv2.INTER_LINEAR)[0]
