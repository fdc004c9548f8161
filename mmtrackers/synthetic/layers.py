"""Layers of a composed scene: how they move, and how they are warped and laid over one another.

Coordinates are continuous frame pixels: pixel i covers [i, i + 1). Times are frame numbers; they need not be whole.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from .pictures import Draw, Picture, Sprite


class Wobble:
    """A smooth random function of time: a value that moves round `base` by two sine waves, at most `reach` together,
    with periods of the given shortest to longest length in frames."""

    def __init__(self, draw: Draw, base: float, reach: float, period: tuple[float, float] = (50.0, 400.0)) -> None:
        self.base = base
        share = draw.uniform(0.4, 0.9)
        self.first, self.second = [
            (reach * part, 2 * math.pi / draw.log_uniform(*period), draw.uniform(0, 2 * math.pi))
            for part in (share, 1 - share)
        ]

    def __call__(self, time: float) -> float:
        size, speed, phase = self.first
        other_size, other_speed, other_phase = self.second
        wave = size * math.sin(speed * time + phase) + other_size * math.sin(other_speed * time + other_phase)
        return self.base + wave


def affine(a: float, b: float, c: float, d: float, x: float, y: float) -> np.ndarray:
    """3 x 3 matrix mapping (u, v) to (a u + b v + x, c u + d v + y)."""
    return np.array([[a, b, x], [c, d, y], [0.0, 0.0, 1.0]])


def color_matrix(draw: Draw, strength: float, permute: float = 0.0) -> np.ndarray:
    """Random change of hue, saturation, contrast and brightness on premultiplied RGBA, float32 [4, 4]."""
    sources = np.argsort([draw.unit() for _ in range(3)]).tolist() if draw.chance(permute) else [0, 1, 2]
    saturation = 1 + strength * draw.uniform(-0.8, 0.4)
    gray = (1 - saturation) / 3
    gain = math.exp(strength * draw.normal(0.35))
    gains = [1 + strength * draw.normal(0.1) for _ in range(3)]
    offset = strength * draw.normal(0.12)
    rows = [
        [(saturation * (column == source) + gray) * gain * own for column in range(3)] + [offset]
        for source, own in zip(sources, gains, strict=True)
    ]
    return np.array([*rows, [0.0, 0.0, 0.0, 1.0]], np.float32)


def kept_at(method: Callable[["Layer", float], Any]) -> Callable[["Layer", float], Any]:
    """A layer's method of a time whose last answers are kept: both cameras and every check ask for the same ones."""

    @functools.wraps(method)
    def at(self: "Layer", time: float) -> Any:
        answers = self.kept.setdefault(method.__name__, {})
        if time not in answers:
            if len(answers) > 8:
                answers.clear()
            answers[time] = method(self, time)
        return answers[time]

    return at


@dataclass(eq=False)
class Layer:
    """A sprite with its motion; `kept` is to be cleared after its shape or motion has changed."""

    sprite: Sprite
    x: Wobble
    y: Wobble
    log_size: Wobble
    log_aspect: Wobble
    rotation: Wobble
    shear: Wobble
    mirrored: bool
    color: np.ndarray
    depth: float = 4000.0
    warmth: float = 128.0
    heat_gain: float = 0.5
    drift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # pixels per frame in x and y, and the frame it starts from
    anchor: "Layer | None" = None  # its x and y are then relative to the anchor's center at drift[2]
    unseen: Sprite | None = None  # what the other cameras take for its texture, where RGB sees another one
    bending: Callable[[float], Sprite] | None = None  # the sprite as it is bent at a time
    kept: dict[str, dict[float, Any]] = field(default_factory=dict)

    def sprite_at(self, time: float) -> Sprite:
        """What is shown at a time, in the coordinates of `sprite`."""
        return self.sprite if self.bending is None else self._bent(time)

    @kept_at
    def _bent(self, time: float) -> Sprite:
        return self.bending(time)

    @kept_at
    def pose(self, time: float) -> np.ndarray:
        """3 x 3 affine map from sprite to frame coordinates."""
        scale = math.exp(self.log_size(time)) / self.sprite.extent
        stretch = math.exp(self.log_aspect(time) / 2)
        across, down, shear, angle = scale * stretch, scale / stretch, self.shear(time), self.rotation(time)
        across = -across if self.mirrored else across
        cosine, sine = math.cos(angle), math.sin(angle)
        a, b, c, d = cosine * across, (cosine * shear - sine) * down, sine * across, (sine * shear + cosine) * down
        u, v = self.sprite.center
        x, y = self.center(time)
        return affine(a, b, c, d, x - a * u - b * v, y - c * u - d * v)

    def center(self, time: float) -> tuple[float, float]:
        """Where the middle of the sprite is."""
        x, y = self.x(time), self.y(time)
        x, y = x + self.drift[0] * (time - self.drift[2]), y + self.drift[1] * (time - self.drift[2])
        if self.anchor is not None:
            other = self.anchor.center(self.drift[2])
            x, y = x + other[0], y + other[1]
        return x, y

    @kept_at
    def bounds(self, time: float) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 of the outline in the frame."""
        matrix = self.pose(time)
        across, down = (matrix[:2, :2] @ self.sprite_at(time).hull.T).tolist()
        x, y = matrix[:2, 2].tolist()
        return min(across) + x, min(down) + y, max(across) + x, max(down) + y

    def size(self, time: float) -> float:
        """Square root of the area of the box in frame pixels."""
        x1, y1, x2, y2 = self.bounds(time)
        return math.sqrt((x2 - x1) * (y2 - y1))


def warp(picture: Picture, matrix: np.ndarray, size: tuple[int, int], border: int) -> np.ndarray:
    """Sample a picture under a 3 x 3 map from its coordinates to the output's; size is (width, height)."""
    (a, b, x), (c, d, y), _ = matrix.tolist()  # numbers of Python: numpy's take ten times as long one by one
    pixels, across, down = picture.level(math.sqrt(abs(a * d - b * c)))
    a, b, c, d = a / across, b / down, c / across, d / down
    # OpenCV counts from pixel centers, we from pixel corners
    flat = np.array(((a, b, x + 0.5 * (a + b) - 0.5), (c, d, y + 0.5 * (c + d) - 0.5)))
    return cv2.warpAffine(pixels, flat, size, flags=cv2.INTER_LINEAR, borderMode=border)


@dataclass(frozen=True)
class View:
    """A window of the frame and the size it is rendered at."""

    x1: float
    y1: float
    width: float
    height: float
    columns: int
    rows: int

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """3 x 3 map from frame to output coordinates; not to be written."""
        across, down = self.columns / self.width, self.rows / self.height
        return affine(across, 0, 0, down, -self.x1 * across, -self.y1 * down)
