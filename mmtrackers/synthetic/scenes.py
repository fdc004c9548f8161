"""Scenes composed from pictures: a moving target before a moving background, seen by two kinds of cameras.

A scene is a handful of layers (background, look-alikes, target, occluders) whose poses are smooth functions of time.
Any window of it is rendered straight at the wanted size, so a training pair costs two small renders and no frames.
"""

import math

import cv2
import numpy as np

from mmtrackers.processing.frames import check_modality

from . import cameras
from .bending import Bending
from .layers import Layer, View, Wobble, affine, color_matrix, warp
from .pictures import Draw, PictureLibrary, Sprite, patch_sprite, textured

BLINDNESSES = ("night", "camouflage", "glare")


class SyntheticScene:
    """One random scene: what is there, how it moves, how it is lit, and how well each camera sees it; ValueError for
    an unknown modality or blindness.

    Args:
        library ([`PictureLibrary`]), rng (`np.random.Generator`): the pictures; decides everything about the scene.
        modality (`str`): the second camera: "rgb" for none, "thermal", "depth" or "event".
        blindness (`str`, *optional*): what keeps the RGB camera from seeing the target: "none", "night", "camouflage"
            or "glare". Drawn by default: half the scenes with a second camera are blind, without one none is.
        size (two `int`, *optional*): height and width of the frame in pixels; drawn by default.
        span (two `float`): the times between which the scene is looked at; an occluder passes within them.
        blind_from (`float`): time at which night or glare sets in.
    """

    def __init__(
        self, library: PictureLibrary, rng: np.random.Generator, modality: str = "rgb", blindness: str | None = None,
        size: tuple[int, int] | None = None, span: tuple[float, float] = (0.0, 100.0), blind_from: float = -1.0,
    ) -> None:
        check_modality(modality)
        if blindness not in (None, "none", *BLINDNESSES):
            raise ValueError(f"blindness is {blindness!r}; expected None, 'none' or one of {BLINDNESSES}")
        # layers (None: the background) warped for the picture under way: the second camera need not warp them again
        self.seen: dict[tuple[Layer | None, float, View], tuple[np.ndarray, int, int]] = {}
        draw = Draw(rng)
        self.library, self.draw, self.modality, self.span = library, draw, modality, span
        self.height, self.width = size or self._frame_size()
        if blindness is None:
            blindness = draw.pick(BLINDNESSES) if modality != "rgb" and draw.chance(0.5) else "none"
        self.blindness, self.blind_from = blindness, blind_from
        self._make_background()
        self.target = self._make_target()
        self.behind, self.front = self._make_distractors(), self._make_occluders()
        if blindness == "camouflage":
            self._hide_target()
        elif draw.chance(0.6):
            self._bend_target()
        self._make_light()
        self._make_second_camera()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers before the background, from back to front."""
        return *self.behind, self.target, *self.front

    def _frame_size(self) -> tuple[int, int]:
        height = int(self.draw.log_uniform(240, 720))
        return height, int(height * self.draw.pick((1.333, 1.333, 1.778, 1.0)))

    def _make_background(self) -> None:
        draw = self.draw
        photos, cluttered = self.library.backgrounds, self.library.clutter
        self.background = draw.pick(cluttered if cluttered and draw.chance(0.7) else photos)
        cover = max(self.width / self.background.width, self.height / self.background.height)
        # a photo is not blown up beyond 2.5 frame pixels per pixel of its own: that would be a blur
        zoom = draw.log_uniform(1.1, max(1.3, min(3.5, 2.5 / cover)))
        slack_x = max(0.0, self.background.width * cover * zoom - self.width) / 2
        slack_y = max(0.0, self.background.height * cover * zoom - self.height) / 2
        moving = 0.0 if draw.chance(0.25) else draw.unit() ** 2
        self.camera = (
            Wobble(draw, math.log(cover * zoom), 0.15 * moving, (100, 600)),
            Wobble(draw, draw.normal(0.04), 0.08 * moving, (60, 400)),
            Wobble(draw, draw.uniform(-slack_x, slack_x) * 0.6, min(slack_x, self.width) * 0.5 * moving, (80, 500)),
            Wobble(draw, draw.uniform(-slack_y, slack_y) * 0.6, min(slack_y, self.height) * 0.5 * moving, (80, 500)),
        )
        self.background_mirrored = draw.chance(0.5)
        self.background_color = color_matrix(draw, 0.5, permute=0.1)

    def background_pose(self, time: float) -> np.ndarray:
        """3 x 3 map from the photo to the frame."""
        log_scale, angle, x, y = (wobble(time) for wobble in self.camera)
        scale = math.exp(log_scale)
        a, c = scale * math.cos(angle), scale * math.sin(angle)
        b, d = -c, a
        if self.background_mirrored:
            a, c = -a, -c
        u, v = self.background.width / 2, self.background.height / 2
        return affine(a, b, c, d, self.width / 2 + x - a * u - b * v, self.height / 2 + y - c * u - d * v)

    def _random_sprite(self) -> Sprite:
        draw, library = self.draw, self.library
        if draw.chance(0.5):
            return patch_sprite(library, draw)
        sprite = draw.pick(library.cutouts)
        return textured(library, draw, sprite) if draw.chance(0.4) else sprite

    def _layer(self, sprite: Sprite, x: Wobble, y: Wobble, size: float, change: float, color: np.ndarray) -> Layer:
        draw = self.draw
        turned = draw.normal(0.15) if draw.chance(0.85) else draw.uniform(-3.1, 3.1)
        return Layer(
            sprite, x, y,
            log_size=Wobble(draw, math.log(size), 0.35 * change, (80, 600)),
            log_aspect=Wobble(draw, draw.normal(0.2), 0.3 * change),
            rotation=Wobble(draw, turned, 0.35 * change if draw.chance(0.8) else 1.2 * change),
            shear=Wobble(draw, draw.normal(0.08), 0.15 * change),
            mirrored=draw.chance(0.5), color=color,
        )  # fmt: skip

    def _make_target(self) -> Layer:
        draw = self.draw
        size = draw.log_uniform(8, 0.3 * min(self.height, self.width))
        edge = min(0.5 * size, 0.3 * min(self.height, self.width))
        reach = draw.unit() ** 1.5
        if self.modality == "event" and self.blindness != "none":
            reach = max(reach, 0.4)  # what does not move is hidden from an event camera too
        place = []
        for length in (self.width, self.height):
            room = length / 2 - edge
            # nearer the middle of the frame than its border, as in real video
            middle = 0.5 * (draw.uniform(-room, room) + draw.uniform(-room, room))
            # a third of the targets may leave the frame in part
            free = room - abs(middle) + (0.6 * edge if draw.chance(0.3) else 0.0)
            place.append(Wobble(draw, length / 2 + middle, min(free, reach * 4 * size), (40, 300)))
        color = color_matrix(draw, 0.5, permute=0.15)
        target = self._layer(self._random_sprite(), *place, size, 0.3 + 0.9 * draw.unit(), color)
        target.depth = draw.log_uniform(800, 6000)
        if draw.chance(0.2):
            self._approach_background(target)
        self.target_gain = Wobble(draw, 0.0, 0.25 * draw.unit())
        return target

    def _approach_background(self, target: Layer) -> None:
        """Low contrast: move the target's mean color most of the way to that of what lies behind it."""
        view = self._view_of(target, self.span[0], 8)
        behind = cameras.background_rgb(self, self.span[0], view).reshape(-1, 3).mean(axis=0)
        pixels = target.sprite.picture.level(0.1)[0].reshape(-1, 4).astype(np.float32)
        own = cv2.transform(pixels[:, None], target.color)[:, 0].sum(axis=0)
        own = own[:3] / max(1.0, own[3]) * 255
        target.color = target.color.copy()
        target.color[:3, 3] += self.draw.uniform(0.3, 0.75) * (behind - own) / 255

    def _view_of(self, layer: Layer, time: float, pixels: int) -> View:
        x1, y1, x2, y2 = layer.bounds(time)
        return View(x1, y1, max(x2 - x1, 1e-3), max(y2 - y1, 1e-3), pixels, pixels)

    def _make_distractors(self) -> list[Layer]:
        draw, target = self.draw, self.target
        layers = []
        for _ in range(max(0, draw.below(8) - 2)):
            alike, size = draw.chance(0.45), target.size(self.span[0]) * draw.log_uniform(0.6, 1.6)
            time, color = draw.uniform(*self.span), color_matrix(draw, 0.6, permute=0.2)
            if alike:
                color = color @ target.color if draw.chance(0.7) else target.color
            sprite = target.sprite if alike else self._random_sprite()
            angle, away = draw.uniform(0, 6.3), draw.uniform(1.0, 3.0) * max(size, target.size(time))
            place = [Wobble(draw, away * part, 0.4 * size) for part in (math.cos(angle), math.sin(angle))]
            layer = self._layer(sprite, *place, size, 0.6, color)
            layer.anchor, layer.drift = target, (draw.normal(0.03) * size, draw.normal(0.03) * size, time)
            layer.depth = draw.log_uniform(1200, 9000)
            layers.append(layer)
        return layers

    def _make_occluders(self) -> list[Layer]:
        """Something that passes before the target once, fast or slowly, near the end of the span or anywhere in it."""
        draw, target = self.draw, self.target
        if not draw.chance(0.4):
            return []
        start, end = self.span
        time = end - draw.unit() * min(8.0, end - start) if draw.chance(0.5) else draw.uniform(start, end)
        size = target.size(time) * draw.log_uniform(0.5, 1.4)
        angle, away = draw.uniform(0, 6.3), 0.5 * (size + target.size(time)) * draw.uniform(0.35, 1.0)
        speed = size * draw.log_uniform(0.004, 0.2) * (1 if draw.chance(0.5) else -1)
        sprite = self._random_sprite()
        place = [Wobble(draw, away * part, 0.0) for part in (math.cos(angle), math.sin(angle))]
        layer = self._layer(sprite, *place, size, 0.3, color_matrix(draw, 0.5))
        layer.anchor, layer.drift, layer.depth = target, (speed, draw.normal(0.3) * speed, time), 0.7 * target.depth
        return [layer]

    def _bend_target(self) -> None:
        """A target that is not stiff; a third of them turn out of the plane as well, and so change their aspect."""
        draw, target = self.draw, self.target
        bending = Bending(draw, target.sprite, draw.uniform(0.2, 1.0))
        # before it bends it stands where the stiff one stood: the room round it is as wide on both sides
        target.sprite, target.bending = bending.sprite, bending
        if draw.chance(0.35):
            target.log_aspect = Wobble(draw, target.log_aspect.base, draw.uniform(0.3, 1.0), (60, 300))
        target.kept.clear()

    def _hide_target(self) -> None:
        """Camouflage: the target wears what lies behind it at the start of the span."""
        sprite, time = self.target.sprite, self.span[0]
        matrix = np.linalg.inv(self.target.pose(time)) @ self.background_pose(time)
        size = (sprite.picture.width, sprite.picture.height)
        self.target.unseen = sprite
        self.target.sprite = sprite.repainted(warp(self.background, matrix, size, cv2.BORDER_REFLECT_101))
        self.target.color = self.background_color
        self.target_gain = Wobble(self.draw, 0.0, 0.0)

    def _make_light(self) -> None:
        draw = self.draw
        change = draw.unit()
        self.gain = Wobble(draw, draw.normal(0.12), 0.35 * change)
        self.gamma = Wobble(draw, draw.normal(0.1), 0.25 * change)
        self.cast = [Wobble(draw, draw.normal(0.04), 0.08 * change) for _ in range(3)]
        self.noise = draw.log_uniform(0.5, 4.0) if draw.chance(0.7) else draw.uniform(4, 14)
        self.jpeg = int(draw.log_uniform(10, 80)) if draw.chance(0.35) else 0
        self.interlaced = (draw.below(4) + 1) * (1 if draw.chance(0.5) else -1) if draw.chance(0.05) else 0
        self.lowres = draw.uniform(1.3, 2.5) if draw.chance(0.15) else 1.0
        self.blur = [draw.chance(0.35), draw.chance(0.35)]
        self.exposure = draw.log_uniform(1, 12)
        self.night_gain = draw.log_uniform(0.02, 0.12)
        self.glare = (draw.normal(0.4), draw.normal(0.4), draw.uniform(1.2, 3.0), draw.uniform(60, 160))

    def _make_second_camera(self) -> None:
        draw, blind = self.draw, self.blindness != "none"
        self.heat_floor, self.heat_contrast = draw.uniform(40, 190), draw.uniform(0.1, 0.5)
        self.heat_sign = 1 if draw.chance(0.7) else -1
        self.shift = (draw.normal(0.02), draw.normal(0.02)) if draw.chance(0.5) else (0.0, 0.0)
        # where RGB sees well the second camera is sometimes the worse one, so that neither can be trusted alone
        difference = draw.uniform(35, 110) if blind or draw.chance(0.75) else draw.uniform(0, 12)
        warmer = self.heat_floor < 70 or (self.heat_floor < 160 and draw.chance(0.7))
        self.target.warmth = self.heat_floor + (difference if warmer else -difference)
        for layer in (*self.behind, *self.front):
            layer.warmth = (self.target.warmth if draw.chance(0.4) else self.heat_floor) + draw.normal(25)
        for layer in (self.target, *self.behind, *self.front):
            layer.heat_gain = draw.uniform(0.1, 0.5) * (1 if draw.chance(0.6) else -1)
        self.far = draw.log_uniform(5000, 12000)
        self.slope, self.tilt = draw.uniform(0, 2.5), draw.normal(0.2)
        if not blind and draw.chance(0.2):
            self.target.depth = 0.95 * self.far
        self.event_threshold, self.event_step = draw.log_uniform(0.06, 0.25), draw.uniform(0.5, 2.0)
        self.noise_offset = (draw.below(1 << 16), draw.below(1 << 16))
        # what the cameras record: colors or gray, how much contrast, and how poor the second one is, from 0 to 1
        self.gray = draw.chance(0.28)
        self.contrast = draw.uniform(0.25, 0.8) if draw.chance(0.25) else 1.0
        self.haze = draw.uniform(20, 200)
        # where RGB sees, the second camera may see next to nothing: an adapter must not take it for the better one
        self.poor = draw.uniform(0.3, 1.0) if self.blindness == "none" and draw.chance(0.35) else 0.0

    def visible_box_xyxy(self, time: float) -> tuple[float, float, float, float]:
        """The part of the box inside the frame (empty, of no width or height, where there is none); pixels."""
        ends = zip(self.target.bounds(time), (self.width, self.height) * 2, strict=True)
        return tuple(min(max(value, 0.0), limit) for value, limit in ends)

    def visible_share(self, time: float) -> float:
        """Part of the target's area that lies in the frame and is not covered, 0..1 (on a 32 x 32 raster)."""
        return cameras.visible_share(self, time, self._view_of(self.target, time, 32))

    def whole_frame(self) -> View:
        """The view of the frame at its own size."""
        return View(0, 0, self.width, self.height, self.width, self.height)

    def render(self, time: float, view: View) -> tuple[np.ndarray, np.ndarray | None]:
        """What both cameras see through a window (`view`) at a `time` in frames: RGB uint8 `[rows, columns, 3]`, and
        the second camera's picture or None: thermal uint8 `[rows, columns]`, depth uint16 `[rows, columns]` in mm (0
        where it is unknown), event uint8 `[rows, columns, 3]`. Everything outside the frame is 0."""
        return cameras.render(self, time, view)
