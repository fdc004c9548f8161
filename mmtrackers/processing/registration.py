"""Finding the matrix that lays one camera's picture on another's: from the pictures themselves, or from points."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from .alignment import check_alignment, frame_matrix, warp
from .files import read_text

Model = Literal["affine", "homography"]
MODELS = {"affine": cv2.MOTION_AFFINE, "homography": cv2.MOTION_HOMOGRAPHY}
_PYRAMID = (8, 4, 2, 1)
_SMALLEST = 48  # pixels: the side below which a level of the pyramid shows nothing
_AT_LEAST = {"affine": 3, "homography": 8}
_UNLIKE = 0.1  # correlation of gradients below which nothing was found


@dataclass(frozen=True, eq=False)
class Registration:
    """A matrix, float64 `[3, 3]`, from pixels of the other picture to those of the RGB picture; and the correlation of
    their gradients, -1 to 1, with the other one merely scaled (`before`) and through the matrix (`after`)."""

    matrix: np.ndarray
    before: float
    after: float


def gradients(picture: np.ndarray) -> np.ndarray:
    """Logarithmic gradient magnitude of a uint8 picture, float32 `[H, W]` in 0..1: what pictures of two kinds of
    camera have in common."""
    gray = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    smooth = cv2.GaussianBlur(gray.astype(np.float32), (0, 0), 2)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    return cv2.normalize(np.log1p(np.hypot(across, down)), None, 0, 1, cv2.NORM_MINMAX)


def register(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], model: Model = "affine", modality: str = "second"
) -> Registration:
    """Estimates the alignment from pictures: the enhanced correlation coefficient (Evangelidis and Psarakis, PAMI
    2008) of gradients, from coarse to fine.

    Args:
        pairs (list of 2 `np.ndarray`): RGB picture `[H, W, 3]` and that of the other stream (`modality`), as
            `to_picture` gives it; of several pairs of one rig the gradients' mean counts: what moves fades.
        model (`str`): "affine", or "homography", which needs much more structure in the pictures.

    Raises:
        ValueError: no pairs, pictures that change in size, or nothing in common was found.
    """
    check_model(model)
    if not pairs or any(len({picture.shape[:2] for picture in side}) > 1 for side in zip(*pairs, strict=True)):
        raise ValueError("registration needs pairs of pictures, each side of one size")
    fixed, moving = (np.mean([gradients(picture) for picture in side], axis=0) for side in zip(*pairs, strict=True))
    scaled = frame_matrix("scale", moving.shape, fixed.shape, modality)
    inverse = np.linalg.inv(scaled)
    for level in _PYRAMID:
        if min(*fixed.shape, *moving.shape) / level >= _SMALLEST or level == 1:
            inverse = _refined(fixed, moving, inverse, level, model, modality)
    matrix = check_alignment(np.linalg.inv(inverse), modality)
    found = Registration(matrix, _agreement(fixed, moving, scaled), _agreement(fixed, moving, matrix))
    if found.after < max(_UNLIKE, found.before - 0.02):
        raise ValueError(f"no alignment was found: the pictures' edges agree by {found.after:.2f} with it and "
                         f"{found.before:.2f} without (1 would be perfect); take pictures with more edges that both "
                         "cameras see, or give points (--points FILE)")  # fmt: skip
    frame_matrix(matrix, moving.shape, fixed.shape, modality)
    return found


def _refined(
    fixed: np.ndarray, moving: np.ndarray, inverse: np.ndarray, level: int, model: Model, modality: str
) -> np.ndarray:
    """The map from fixed to moving, improved at one level of the pyramid."""
    factor = {"fx": 1 / level, "fy": 1 / level, "interpolation": cv2.INTER_AREA}
    small = [cv2.resize(side, None, **factor) for side in (fixed, moving)]
    # pixel centers: a coarse pixel is the middle of level x level fine ones
    shrink = np.array([[1 / level, 0, 0.5 / level - 0.5], [0, 1 / level, 0.5 / level - 0.5], [0, 0, 1]])
    guess = shrink @ inverse @ np.linalg.inv(shrink)
    guess = (guess / guess[2, 2]).astype(np.float32)
    projective = model == "homography"
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-6)
    try:
        _, guess = cv2.findTransformECC(
            *small, guess if projective else np.ascontiguousarray(guess[:2]), MODELS[model], criteria, None, 5
        )
    except cv2.error as error:
        raise ValueError(f"no alignment was found: the rgb and the {modality} picture have too few edges in common, "
                         "or lie too far apart; give points (--points FILE)") from error  # fmt: skip
    guess = guess if projective else np.vstack((guess, (0, 0, 1)))
    return np.linalg.inv(shrink) @ guess.astype(np.float64) @ shrink


def _agreement(fixed: np.ndarray, moving: np.ndarray, matrix: np.ndarray) -> float:
    """Correlation of the two where both are."""
    size = fixed.shape[::-1]
    mapped = cv2.warpPerspective(moving, matrix, size, flags=cv2.INTER_LINEAR)
    seen = cv2.warpPerspective(np.ones_like(moving), matrix, size, flags=cv2.INTER_NEAREST) > 0
    if np.count_nonzero(seen) < 0.05 * seen.size:
        return -1.0
    both = np.stack((fixed[seen], mapped[seen]))
    return float(np.nan_to_num(np.corrcoef(both)[0, 1], nan=0.0)) if both.std(axis=1).all() else 0.0


def check_model(model: str) -> None:
    """Raises ValueError for a name that is none of the models."""
    if model not in MODELS:
        raise ValueError(f"the model of an alignment is {' or '.join(MODELS)}, not {model!r}")


def matrix_from_points(points: np.ndarray, model: Model | None = None) -> tuple[np.ndarray, float]:
    """The alignment that lays points on points, by least squares, robust against a few wrong ones: float64 `[3, 3]`,
    other -> RGB, and the median distance of the points in pixels.

    Args:
        points (`np.ndarray` `[N, 4]`): x, y in the RGB picture and x, y of the same thing in the other one.
        model (`str`, *optional*): "affine" or "homography"; affine below 8 points by default, where a homography
            follows the errors of pointing (41 pixels off in the median with 4 points that are 1.5 pixels off).

    Raises:
        ValueError: too few points for the model, or points on one line.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 4 or not np.isfinite(points).all():
        raise ValueError(f"points are rows of four finite numbers (x, y in rgb and in the other), got {points.shape}")
    model = model or ("homography" if len(points) >= _AT_LEAST["homography"] else "affine")
    check_model(model)
    if len(points) < _AT_LEAST[model]:
        raise ValueError(f"{len(points)} points are too few: an affine alignment needs 3, better 6, a homography 8")
    fixed, moving = points[:, :2].copy(), points[:, 2:].copy()
    if model == "homography":
        matrix, _ = cv2.findHomography(moving, fixed, cv2.LMEDS if len(points) > 12 else 0)
    else:
        design = np.column_stack((moving, np.ones(len(points))))
        if np.linalg.matrix_rank(design / [*np.abs(moving).max(0).clip(1), 1], tol=1e-3) < 3:
            matrix = None
        else:
            matrix = np.vstack((np.linalg.lstsq(design, fixed, rcond=None)[0].T, (0, 0, 1)))
    if matrix is None:
        raise ValueError("the points lie on one line, or all in one place: spread them over the picture")
    matrix = check_alignment(matrix)
    mapped = cv2.perspectiveTransform(moving[None], matrix)[0]
    return matrix, float(np.median(np.linalg.norm(mapped - fixed, axis=1)))


def read_points(path: str | Path) -> np.ndarray:
    """Pairs of points, float64 `[N, 4]`, from a text file: `x y  x y` a line, RGB first; commas, and comments behind
    `#`, are allowed. ValueError where it is missing, or names a line that is not four numbers."""
    rows = []
    for number, line in enumerate(read_text(path, "points").splitlines(), start=1):
        if words := line.partition("#")[0].replace(",", " ").split():
            try:
                x, y, other_x, other_y = map(float, words)
            except ValueError:
                raise ValueError(f"{path}, line {number}: expected x and y in the rgb picture, then x and y of the "
                                 f"same point in the other one, got {line.strip()!r}") from None  # fmt: skip
            rows.append((x, y, other_x, other_y))
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def overlay(rgb: np.ndarray, other: np.ndarray, matrix: np.ndarray, modality: str = "second") -> np.ndarray:
    """A picture to judge an alignment (`[3, 3]`, other -> RGB) by: RGB's edges in cyan on the other picture, without
    (left) and with it; uint8 `[H, 2 W, 3]`, of the RGB picture's size."""
    height, width = rgb.shape[:2]
    scaled = frame_matrix("scale", other.shape[:2], (height, width), modality)
    ground = np.hstack([warp(other, m, (width, height), modality) for m in (scaled, matrix)]).astype(np.float32)
    strength = np.tile(gradients(rgb) ** 4, 2)[..., None]
    return (ground + strength * (np.float32([0, 255, 255]) - ground)).round().astype(np.uint8)
