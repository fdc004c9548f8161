"""Pictures from which scenes are composed: cut-outs, photographs, and targets cut from photographs.

All layers are *sprites*: pictures with premultiplied alpha, so that any affine warp and any blending is linear, and
with the convex hull of their visible part, from which the exact box under an affine map follows.

Coordinates are continuous: pixel i covers [i, i + 1), its center is at i + 0.5.
"""

import copy
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

T = TypeVar("T")

VISIBLE_ALPHA = 128
HELD_OUT_SHARE = 0.1
# chosen to hold out photographs as well as drawings; another name would let trained trackers know the test pictures
SPLIT_NAME = "split 2: "
_CORNERS = np.array(((0, 0), (0, 1), (1, 0), (1, 1)), np.int32)


class Draw:
    """Fast scalar random numbers from one numpy Generator (numpy's own scalar calls cost microseconds each); the
    sequence of calls decides the result."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._numbers: list[float] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._numbers:
            self._numbers = self.rng.random(256).tolist()
        return self._numbers.pop()

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def log_uniform(self, low: float, high: float) -> float:
        """Uniform in the logarithm, in [low, high)."""
        return low * math.exp(math.log(high / low) * self.unit())

    def normal(self, deviation: float = 1.0) -> float:
        """Gaussian with mean 0."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.unit()))
        return deviation * radius * math.cos(2.0 * math.pi * self.unit())

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return min(int(self.unit() * count), count - 1)

    def pick(self, items: Sequence[T]) -> T:
        """One of them, each with the same chance."""
        return items[self.below(len(items))]


class Picture:
    """A picture, uint8 `[h, w, channels]`, with its half-size copies, so that shrinking warps do not alias."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.levels = [np.ascontiguousarray(pixels)]
        self.height, self.width = pixels.shape[:2]

    def level(self, scale: float) -> tuple[np.ndarray, float, float]:
        """The copy to sample at `scale` output pixels per picture pixel, and its size relative to the picture."""
        wanted = max(0, math.floor(math.log2(1.4 / max(scale, 1e-4)))) if scale < 0.7 else 0
        while len(self.levels) <= wanted and min(self.levels[-1].shape[:2]) >= 8:
            last = self.levels[-1]
            size = ((last.shape[1] + 1) // 2, (last.shape[0] + 1) // 2)
            self.levels.append(cv2.resize(last, size, interpolation=cv2.INTER_AREA))
        pixels = self.levels[min(wanted, len(self.levels) - 1)]
        return pixels, pixels.shape[1] / self.width, pixels.shape[0] / self.height


class Sprite:
    """A layer with an outline.

    Args:
        rgba (`np.ndarray` uint8 `[h, w, 4]`): RGB not premultiplied; some of it must be visible.
        hull (`np.ndarray` float32 `[n, 2]`, *optional*): corners (x, y) of its [`outline_hull`], if they are known.
    """

    def __init__(self, rgba: np.ndarray, hull: np.ndarray | None = None) -> None:
        alpha = cv2.extractChannel(rgba, 3)
        factor = cv2.merge((alpha, alpha, alpha, np.full_like(alpha, 255)))
        self.picture = Picture(cv2.multiply(rgba, factor, scale=1 / 255))  # premultiplied
        self.heat: Picture | None = None
        self._measure(outline_hull(alpha) if hull is None else hull)

    def _measure(self, hull: np.ndarray) -> None:
        self.hull = hull
        (x1, y1), (x2, y2) = hull.min(axis=0).tolist(), hull.max(axis=0).tolist()
        self.center = ((x1 + x2) / 2, (y1 + y2) / 2)
        self.extent = math.sqrt((x2 - x1) * (y2 - y1))

    def heat_picture(self) -> Picture:
        """Texture of the other modalities: uint8 [h, w, 2], premultiplied gray and alpha."""
        if self.heat is None:
            rgba = self.picture.levels[0]
            gray = cv2.cvtColor(rgba, cv2.COLOR_RGBA2GRAY)
            self.heat = Picture(cv2.merge((gray, cv2.extractChannel(rgba, 3))))
        return self.heat

    def padded(self, share: float) -> "Sprite":
        """The same picture with room round it, in parts of its sides: a bent outline reaches further."""
        across, down = round(share * self.picture.width), round(share * self.picture.height)
        border = (down, down, across, across, cv2.BORDER_CONSTANT)
        return self._like(lambda pixels: cv2.copyMakeBorder(pixels, *border), self.hull + np.float32((across, down)))

    def bent(self, map_x: np.ndarray, map_y: np.ndarray) -> "Sprite":
        """The picture whose pixel (x, y) is taken from (map_x, map_y) of this one; float32 [h, w] each."""
        return self._like(lambda pixels: cv2.remap(pixels, map_x, map_y, cv2.INTER_LINEAR))

    def _like(self, change: Callable[[np.ndarray], np.ndarray], hull: np.ndarray | None = None) -> "Sprite":
        """A sprite of the changed pixels, of the other modalities' texture too."""
        sprite = copy.copy(self)
        sprite.picture = Picture(change(self.picture.levels[0]))
        sprite.heat = None if self.heat is None else Picture(change(self.heat.levels[0]))
        sprite._measure(outline_hull(sprite.picture.levels[0][..., 3]) if hull is None else hull)
        return sprite

    def repainted(self, rgb: np.ndarray) -> "Sprite":
        """The same outline with other colors [h, w, 3]; the other modalities keep their own texture."""
        alpha = cv2.extractChannel(self.picture.levels[0], 3)
        sprite = Sprite(cv2.merge((*cv2.split(rgb), alpha)), self.hull)
        sprite.heat = self.heat_picture()
        return sprite


def outline_hull(alpha: np.ndarray) -> np.ndarray:
    """Convex hull of the visible pixels' corners, float32 [n, 2] (x, y)."""
    contours, _ = cv2.findContours((alpha >= VISIBLE_ALPHA).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        raise ValueError(f"the cut-out has no pixel with alpha >= {VISIBLE_ALPHA}; it needs a visible outline")
    points = cv2.convexHull(np.concatenate(contours))[:, 0, :]  # few are left, so that their corners cost little
    corners = (points[:, None] + _CORNERS).reshape(-1, 2)
    return cv2.convexHull(corners.astype(np.float32))[:, 0, :]


def is_held_out(name: str) -> bool:
    """Whether a picture belongs to the held-out tenth: decided by its file name alone, the same everywhere, and for
    all versions of a picture (dark and light, several sizes)."""
    stem = re.sub(r"(_contents_images|_dark|_light|_d|_l|_no_logo|_\d+x\d+)+$", "", Path(name).stem)
    return int.from_bytes(hashlib.sha256((SPLIT_NAME + stem).encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32


class PictureLibrary:
    """Cut-outs and backgrounds of a folder made by `examples/collect_pictures.py`, in memory; FileNotFoundError where
    it lacks some of this split.

    Args:
        folder (`str` or `Path`): holds `cutouts/*.png` (RGBA) and `backgrounds/*.jpg`.
        split (`str`): "train", "heldout" (about a tenth of the files, chosen by the hash of their names) or "all".
        clutter (`int`): how many further backgrounds are composed from photos strewn with cut-outs and patches.

    Example:
        >>> library = PictureLibrary("pictures", split="train")  # doctest: +SKIP
        >>> len(library.cutouts), len(library.backgrounds)  # doctest: +SKIP
        (3107, 347)
    """

    def __init__(self, folder: str | Path, split: str = "train", clutter: int = 96) -> None:
        if split not in ("train", "heldout", "all"):
            raise ValueError(f"split is {split!r}; expected 'train', 'heldout' or 'all'")
        self.folder, self.split = Path(folder), split
        self.cutouts = [Sprite(read_picture(path, "RGBA")) for path in self._paths("cutouts", "*.png")]
        self.backgrounds = [Picture(read_picture(path, "RGB")) for path in self._paths("backgrounds", "*.jpg")]
        draw = Draw(np.random.default_rng(0))
        self.clutter = [cluttered(self, draw) for _ in range(clutter)]

    def _paths(self, kind: str, pattern: str) -> list[Path]:
        paths = [path for path in sorted((self.folder / kind).glob(pattern))
                 if self.split == "all" or is_held_out(path.name) == (self.split == "heldout")]  # fmt: skip
        if not paths:
            raise FileNotFoundError(f"no {kind}/{pattern} of split {self.split!r} in {self.folder}; fill the folder "
                                    f"with: python examples/collect_pictures.py {self.folder}")  # fmt: skip
        return paths


def read_picture(path: Path, mode: str) -> np.ndarray:
    """uint8 [h, w, 3 or 4]; ValueError names an unreadable file."""
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert(mode))
    except OSError as error:
        raise ValueError(f"cannot read the picture {path}: {error}") from error


def random_patch(photo: Picture, draw: Draw, size: int) -> np.ndarray:
    """A randomly placed, scaled and stretched piece of a photo, uint8 [size, size, 3]."""
    longest = min(photo.height, photo.width)
    side = draw.log_uniform(0.12, 0.7) * longest
    width, height = min(side * draw.log_uniform(0.6, 1.7), longest - 1), side
    left, top = draw.uniform(0, photo.width - width), draw.uniform(0, photo.height - height)
    pixels, across, down = photo.level(size / side)
    rows = slice(int(top * down), int((top + height) * down) + 1)
    piece = pixels[rows, int(left * across) : int((left + width) * across) + 1]
    return cv2.resize(piece, (size, size), interpolation=cv2.INTER_LINEAR)


def random_outline(draw: Draw, center: tuple[float, float], radius: tuple[float, float]) -> np.ndarray:
    """Corners int32 [n, 2] in 1/16 pixels of a random shape: smooth blob, polygon, box or ellipse."""
    kind = draw.below(4)
    if kind == 0:
        count, waves = 32, [(k, draw.normal(0.22 / k), draw.uniform(0, 6.3)) for k in (2, 3, 4, 5)]
    else:
        count, waves = (draw.below(5) + 4 if kind == 1 else 24), []
    start = draw.uniform(0, 6.3) if kind == 1 else 0.0
    power = draw.uniform(3.0, 8.0) if kind == 2 else 2.0
    steps = np.arange(count) + ([draw.uniform(-0.3, 0.3) for _ in range(count)] if kind == 1 else 0.0)
    angles = start + 2 * math.pi * steps / count
    cosine, sine = np.cos(angles), np.sin(angles)
    # a superellipse goes from the ellipse (power 2) to a box with round corners
    reach = (np.abs(cosine) ** power + np.abs(sine) ** power) ** (-1 / power)
    reach *= np.maximum(0.3, 1 + sum(size * np.cos(k * angles + phase) for k, size, phase in waves))
    points = np.stack((center[0] + radius[0] * reach * cosine, center[1] + radius[1] * reach * sine), axis=1)
    return (points * 16).astype(np.int32)


def body_plan(draw: Draw, size: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Centres and radii of 1 to 4 parts: one piece, stacked parts (a figure), or parts side by side (a vehicle)."""
    half = size / 2
    style = draw.unit()
    if style < 0.45:
        return [((half, half), (0.34 * size, 0.34 * size))]
    if style < 0.75:
        wide = draw.uniform(0.13, 0.22) * size
        legs = (half, 0.70 * size), (0.8 * wide, 0.24 * size)
        trunk = (half + draw.normal(0.02 * size), 0.38 * size), (wide, 0.2 * size)
        return [legs, trunk, ((half + draw.normal(0.03 * size), 0.14 * size), (0.5 * wide, 0.09 * size))]
    parts = [((half, 0.58 * size), (0.42 * size, draw.uniform(0.12, 0.22) * size))]
    parts.append(((half + draw.normal(0.06 * size), 0.38 * size), (draw.uniform(0.15, 0.28) * size, 0.13 * size)))
    parts += [((side * size, 0.74 * size), (0.08 * size, 0.08 * size)) for side in (0.28, 0.72)]
    return parts if draw.chance(0.7) else parts[:2]


def patch_sprite(library: PictureLibrary, draw: Draw, size: int = 96) -> Sprite:
    """A target of `size` pixels cut from photographs by random outlines: things that no stamp shows."""
    texture = random_patch(draw.pick(library.backgrounds), draw, size)
    alpha = np.zeros((size, size), np.uint8)
    for index, (center, radius) in enumerate(body_plan(draw, size)):
        part = np.zeros((size, size), np.uint8)
        cv2.fillPoly(part, [random_outline(draw, center, radius)], 255, cv2.LINE_AA, shift=4)
        if index and not draw.chance(0.3):
            texture = cv2.copyTo(paint(library, draw, size), part, texture)
        alpha = cv2.max(alpha, part)
    return Sprite(cv2.merge((*cv2.split(texture), alpha)))


def textured(library: PictureLibrary, draw: Draw, sprite: Sprite) -> Sprite:
    """A cut-out with a photograph's texture over its own: many cut-outs are drawings in plain colors."""
    rgba = sprite.picture.levels[0]
    patch = random_patch(draw.pick(library.backgrounds), draw, 96)
    patch = cv2.resize(patch, (rgba.shape[1], rgba.shape[0]), interpolation=cv2.INTER_LINEAR)
    share = draw.uniform(0.3, 0.9)
    return sprite.repainted(cv2.addWeighted(patch, share, cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), 1 - share, 0))


def paint(library: PictureLibrary, draw: Draw, size: int) -> np.ndarray:
    """Filling of one part: a photo patch, or a nearly plain color with a little of the patch's shading."""
    patch = random_patch(draw.pick(library.backgrounds), draw, size)
    if draw.chance(0.5):
        return patch
    color = np.array([draw.uniform(0, 255) for _ in range(3)]) * draw.uniform(0.3, 1.0)
    plain = np.broadcast_to(color.astype(np.uint8), patch.shape)
    return cv2.addWeighted(patch, 0.25, plain, 0.75, 0)


def cluttered(library: PictureLibrary, draw: Draw) -> Picture:
    """A background in which many things stand about: a photo, pieces of others, cut-outs and patches on it."""
    canvas = draw.pick(library.backgrounds).levels[0].copy()
    for _ in range(draw.below(4)):
        piece = random_patch(draw.pick(library.backgrounds), draw, int(draw.uniform(60, 0.8 * canvas.shape[0])))
        paste(canvas, np.dstack((piece, np.full(piece.shape[:2], 255, np.uint8))), draw)
    for _ in range(int(draw.uniform(6, 45))):
        own = draw.chance(0.5)
        sprite = draw.pick(library.cutouts) if own else patch_sprite(library, draw, int(draw.uniform(24, 160)))
        picture = sprite.picture.levels[0]
        scale = draw.log_uniform(0.2, 1.3) if own else 1.0
        size = (max(8, int(picture.shape[1] * scale)), max(8, int(picture.shape[0] * scale)))
        paste(canvas, cv2.resize(picture, size, interpolation=cv2.INTER_AREA), draw)
    return Picture(canvas)


def paste(canvas: np.ndarray, picture: np.ndarray, draw: Draw) -> None:
    """Lay a premultiplied RGBA picture at a random place over the canvas, in part outside it."""
    rows, columns = picture.shape[:2]
    top = int(draw.uniform(-0.4 * rows, canvas.shape[0] - 0.6 * rows))
    left = int(draw.uniform(-0.4 * columns, canvas.shape[1] - 0.6 * columns))
    picture = picture[max(0, -top) : canvas.shape[0] - top, max(0, -left) : canvas.shape[1] - left]
    top, left = max(0, top), max(0, left)
    gain = draw.uniform(0.5, 1.0)
    blend(canvas, cv2.convertScaleAbs(picture[..., :3], alpha=gain), picture[..., 3], left, top)


def blend(canvas: np.ndarray, patch: np.ndarray, alpha: np.ndarray, left: int, top: int) -> None:
    """Lay a premultiplied patch over a region of the canvas, in place; all uint8."""
    region = canvas[top : top + patch.shape[0], left : left + patch.shape[1]]
    keep = cv2.bitwise_not(alpha)
    if region.ndim == 3:
        keep = cv2.cvtColor(keep, cv2.COLOR_GRAY2RGB)
    cv2.add(cv2.multiply(region, keep, scale=1 / 255), patch, dst=region)
