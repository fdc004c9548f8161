"""Renders a composed scene as an RGB, thermal, depth or event camera sees it through a window.

What keeps RGB from seeing (night, glare, the target's camouflage) touches RGB alone: heat, distance and brightness
changes are rendered from the same layers without it.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from .layers import Layer, View, warp
from .pictures import Draw, Picture, blend

if TYPE_CHECKING:
    from .scenes import SyntheticScene

NOISE_SIDE = 512
DEPTH_CLIP_MM = 10000
# one fixed field, cut at random offsets: drawing fresh noise would cost more than the whole render
_NOISE = (np.random.default_rng(20).standard_normal((NOISE_SIDE, NOISE_SIDE, 3)) * 64).astype(np.int16)
_GRAY_NOISE = _NOISE[..., 0].copy()
_RELIEF = 1 + 0.0004 * (np.arange(256, dtype=np.float64) - 110)
# OpenCV makes its color map anew in every call, which takes ten times as long as a crop's look-up
_DEPTHS = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_JET)
# brightness as an event pixel measures it, and its answer: red for brighter, blue for darker, white for no change
_LOG = np.log(np.arange(256, dtype=np.float32) + 12)
_EVENT_STEPS = 31.75
_CHANGE = (np.arange(256) - 128) / _EVENT_STEPS
_SHADE = np.where(np.abs(_CHANGE) >= 1, 255 - 63.75 * np.minimum(np.abs(_CHANGE), 4), 255).astype(np.uint8)
_EVENTS = np.stack([np.where(_CHANGE > 0, 255, _SHADE), _SHADE, np.where(_CHANGE > 0, _SHADE, 255)], axis=-1)
_EVENTS = _EVENTS.astype(np.uint8)[None]


def render(scene: "SyntheticScene", time: float, view: View) -> tuple[np.ndarray, np.ndarray | None]:
    """Both cameras' pictures of a window; see `SyntheticScene.render`."""
    # a smaller window is rendered at the frame's own resolution and enlarged, as a crop of a real frame is
    columns, rows = max(4, min(view.columns, round(view.width))), max(4, min(view.rows, round(view.height)))
    native = replace(view, columns=columns, rows=rows)

    def enlarged(picture: np.ndarray, how: int = cv2.INTER_LINEAR) -> np.ndarray:
        return picture if native == view else cv2.resize(picture, (view.columns, view.rows), interpolation=how)

    scene.seen.clear()
    rgb = enlarged(render_rgb(scene, time, native))
    second = {"thermal": render_thermal, "event": render_event, "depth": render_depth}.get(scene.modality)
    # unknown depth next to a known one must not turn into a distance in between
    how = cv2.INTER_NEAREST if scene.modality == "depth" else cv2.INTER_LINEAR
    return rgb, second and enlarged(second(scene, time, native), how)


def raster(layer: Layer, time: float, view: View, picture: Picture) -> tuple[np.ndarray, int, int]:
    """A layer's picture warped into the part of the view it covers, and that part's left and top (may be empty)."""
    x1, y1, x2, y2 = layer.bounds(time)
    across, down = view.columns / view.width, view.rows / view.height
    left, right = math.floor((x1 - view.x1) * across) - 1, math.ceil((x2 - view.x1) * across) + 1
    top, bottom = math.floor((y1 - view.y1) * down) - 1, math.ceil((y2 - view.y1) * down) + 1
    left, top, right, bottom = max(0, left), max(0, top), min(view.columns, right), min(view.rows, bottom)
    if right <= left or bottom <= top:
        return np.zeros((0, 0, picture.levels[0].shape[2]), np.uint8), 0, 0
    matrix = view.matrix @ layer.pose(time)
    matrix[0, 2] -= left
    matrix[1, 2] -= top
    return warp(picture, matrix, (right - left, bottom - top), cv2.BORDER_CONSTANT), left, top


def heat_patches(scene: "SyntheticScene", time: float, view: View) -> Iterator[tuple[Layer, np.ndarray, int, int]]:
    """The layers in a view, from back to front, with shade and cover as `raster` gives them; out of their colors,
    where those are warped already."""
    for layer in scene.layers:
        if layer.unseen is None and (layer, time, view) in scene.seen:
            patch, left, top = scene.seen[layer, time, view]
            if patch.size:
                patch = cv2.merge((cv2.cvtColor(patch, cv2.COLOR_RGBA2GRAY), cv2.extractChannel(patch, 3)))
        else:
            patch, left, top = raster(layer, time, view, layer.sprite_at(time).heat_picture())
        if patch.size:
            yield layer, patch, left, top


def background(scene: "SyntheticScene", time: float, view: View) -> np.ndarray:
    """The photo alone, uint8 [rows, columns, 3]; not to be written."""
    if (None, time, view) not in scene.seen:
        matrix = view.matrix @ scene.background_pose(time)
        photo = warp(scene.background, matrix, (view.columns, view.rows), cv2.BORDER_REFLECT_101)
        scene.seen[None, time, view] = photo, 0, 0
    return scene.seen[None, time, view][0]


def background_rgb(scene: "SyntheticScene", time: float, view: View) -> np.ndarray:
    """The photo alone, in the scene's colors, uint8 [rows, columns, 3]."""
    photo = background(scene, time, view)
    color = scene.background_color[:3].copy()
    color[:, 3] *= 255  # a photo is opaque everywhere: alpha as a constant
    return cv2.transform(photo, color)


def compose_rgb(scene: "SyntheticScene", time: float, view: View, events: bool = False) -> np.ndarray:
    """All layers in color, before light, blindness and noise; for `events` unsmeared and without camouflage."""
    canvas = background_rgb(scene, time, view)
    for layer in scene.layers:
        hidden = events and layer.unseen is not None
        if not hidden and (layer, time, view) in scene.seen:
            patch, left, top = scene.seen[layer, time, view]
        else:
            sprite = layer.unseen if hidden else layer.sprite_at(time)
            patch, left, top = raster(layer, time, view, sprite.picture)
            if not hidden:
                scene.seen[layer, time, view] = patch, left, top
        if not patch.size:
            continue
        color = layer.color
        if layer is scene.target:
            color = color * np.array([[math.exp(scene.target_gain(time))]] * 3 + [[1]], np.float32)
        patch = cv2.transform(patch, color)
        if not events and layer is scene.target and scene.blur[0]:
            # smeared along its motion while the shutter is open, for many frames, so that it is seen
            (x0, y0), (x1, y1), long = layer.center(time - 0.5), layer.center(time + 0.5), scene.exposure
            dx, dy = long * (x1 - x0) * view.columns / view.width, long * (y1 - y0) * view.rows / view.height
            patch = cv2.filter2D(patch, -1, line_kernel(dx, dy)) if math.hypot(dx, dy) > 1 else patch
        # OpenCV copies a part of the channels that numpy cut out, ten times as slowly
        blend(canvas, cv2.cvtColor(patch, cv2.COLOR_RGBA2RGB), cv2.extractChannel(patch, 3), left, top)
    return canvas


def line_kernel(dx: float, dy: float) -> np.ndarray:
    """Averaging kernel along a line of this length in pixels (at most 15)."""
    reach = min(7, max(1, round(max(abs(dx), abs(dy)) / 2)))
    scale = reach / max(abs(dx), abs(dy), 1e-6)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    end = (round(dx * scale), round(dy * scale))
    cv2.line(kernel, (reach - end[0], reach - end[1]), (reach + end[0], reach + end[1]), 1.0)
    return kernel / kernel.sum()


def render_rgb(scene: "SyntheticScene", time: float, view: View) -> np.ndarray:
    """The color camera's picture, uint8 [rows, columns, 3]."""
    canvas = compose_rgb(scene, time, view)
    dark = scene.blindness == "night" and time >= scene.blind_from
    canvas = cv2.LUT(canvas, light_table(scene, time, scene.night_gain if dark else 1.0))
    if scene.blindness == "glare" and time >= scene.blind_from:
        canvas = add_glare(scene, time, view, canvas)
    draw = moment(scene, time)
    if scene.blur[1] and draw.chance(0.5):
        canvas = camera_blur(draw, canvas)
    if scene.lowres > 1:
        small = [max(2, int(side / scene.lowres)) for side in (view.columns, view.rows)]
        canvas = cv2.resize(cv2.resize(canvas, small), (view.columns, view.rows), interpolation=cv2.INTER_LINEAR)
    add_noise(canvas, draw, max(scene.noise, 5.0) if dark else scene.noise)
    if scene.jpeg:
        _, code = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, scene.jpeg])
        canvas = cv2.imdecode(code, cv2.IMREAD_COLOR)
    if pixels := scene.interlaced:
        # every second row shifted by what moved between the two fields of a frame
        rows = canvas[1::2]
        if pixels > 0:
            rows[:, pixels:] = rows[:, :-pixels].copy()
        else:
            rows[:, :pixels] = rows[:, -pixels:].copy()
    if scene.gray:
        canvas = cv2.cvtColor(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    black_outside(scene, canvas, view)
    return canvas


def moment(scene: "SyntheticScene", time: float) -> Draw:
    """Numbers that belong to one scene and time, so that a frame is the same whenever it is rendered."""
    return Draw(np.random.default_rng((*scene.noise_offset, round(abs(time) * 64))))


def light_table(scene: "SyntheticScene", time: float, gain: float) -> np.ndarray:
    """Gain, gamma and color cast at a time as a lookup table, uint8 [256, 1, 3]."""
    gamma = math.exp(scene.gamma(time))
    tone = (np.arange(256, dtype=np.float32) / 255) ** gamma * (255 * gain * math.exp(scene.gain(time)))
    cast = np.array([math.exp(wobble(time)) for wobble in scene.cast], np.float32)
    tone = tone[:, None, None] * cast
    if scene.contrast < 1:
        tone = scene.haze * gain + scene.contrast * (tone - scene.haze * gain)
    return np.clip(tone, 0, 255).astype(np.uint8)


def add_glare(scene: "SyntheticScene", time: float, view: View, canvas: np.ndarray) -> np.ndarray:
    """A light that outshines the target's surroundings, and a veil over the rest."""
    shift_x, shift_y, radius, veil = scene.glare
    x1, y1, x2, y2 = scene.target.bounds(time)
    size = math.sqrt((x2 - x1) * (y2 - y1))
    matrix = view.matrix
    middle_x = ((x1 + x2) / 2 + shift_x * size) * matrix[0, 0] + matrix[0, 2]
    middle_y = ((y1 + y2) / 2 + shift_y * size) * matrix[1, 1] + matrix[1, 2]
    reach_x, reach_y = radius * max(size, x2 - x1) * matrix[0, 0], radius * max(size, y2 - y1) * matrix[1, 1]
    across = np.exp(-((((np.arange(view.columns) + 0.5) - middle_x) / reach_x) ** 2)).astype(np.float32)
    down = np.exp(-((((np.arange(view.rows) + 0.5) - middle_y) / reach_y) ** 2)).astype(np.float32)
    light = (700 * np.outer(down, across) + veil).clip(0, 255).astype(np.uint8)
    return cv2.add(canvas, cv2.cvtColor(light, cv2.COLOR_GRAY2RGB))


def camera_blur(draw: Draw, canvas: np.ndarray) -> np.ndarray:
    """Shake (a line) or defocus (a Gaussian)."""
    if draw.chance(0.5):
        angle, length = draw.uniform(0, 3.2), draw.uniform(2, 7)
        return cv2.filter2D(canvas, -1, line_kernel(length * math.cos(angle), length * math.sin(angle)))
    return cv2.GaussianBlur(canvas, (0, 0), draw.uniform(0.5, 1.6))


def noise_field(draw: Draw, rows: int, columns: int, colors: bool = False) -> np.ndarray:
    """Gaussian noise of deviation 64, int16 [rows, columns] or [rows, columns, 3]; not to be written."""
    field = _NOISE if colors else _GRAY_NOISE
    if rows <= NOISE_SIDE // 2 and columns <= NOISE_SIDE // 2:
        top, left = draw.below(NOISE_SIDE - rows), draw.below(NOISE_SIDE - columns)
        return field[top : top + rows, left : left + columns]
    field = field.take((np.arange(rows) + draw.below(NOISE_SIDE)) % NOISE_SIDE, axis=0)
    return field.take((np.arange(columns) + draw.below(NOISE_SIDE)) % NOISE_SIDE, axis=1)


def add_noise(canvas: np.ndarray, draw: Draw, deviation: float) -> None:
    """Add Gaussian noise in place to uint8 [rows, columns] or [rows, columns, 3]; deviation up to 20."""
    field = noise_field(draw, *canvas.shape[:2], colors=canvas.ndim == 3)
    # 16 bits hold the product: the field stays within 6 deviations
    step = (field * np.int16(deviation * 4)) >> 8
    np.clip(canvas + step, 0, 255, out=canvas, casting="unsafe")


def black_outside(scene: "SyntheticScene", canvas: np.ndarray, view: View) -> None:
    """Zero what lies outside the frame, in place."""
    across, down = view.columns / view.width, view.rows / view.height
    left, right = (round(x * across - view.x1 * across) for x in (0, scene.width))
    top, bottom = (round(y * down - view.y1 * down) for y in (0, scene.height))
    canvas[: max(0, top)] = 0
    canvas[max(0, bottom) :] = 0
    canvas[:, : max(0, left)] = 0
    canvas[:, max(0, right) :] = 0


def misaligned(scene: "SyntheticScene", view: View) -> View:
    """The window as the second camera has it: the two are registered to a few percent of the target only."""
    size = math.exp(scene.target.log_size.base)
    return replace(view, x1=view.x1 + scene.shift[0] * size, y1=view.y1 + scene.shift[1] * size)


def render_thermal(scene: "SyntheticScene", time: float, view: View) -> np.ndarray:
    """Heat, uint8 [rows, columns]: every layer has its own warmth and a little of its texture."""
    own = misaligned(scene, view)
    gray = cv2.cvtColor(background(scene, time, own), cv2.COLOR_RGB2GRAY)
    slope = scene.heat_contrast * scene.heat_sign
    table = np.clip(scene.heat_floor + slope * (np.arange(256) - 110), 0, 255).astype(np.uint8)
    canvas = cv2.GaussianBlur(cv2.LUT(gray, table), (0, 0), 1.0)
    for layer, patch, left, top in heat_patches(scene, time, own):
        alpha = cv2.extractChannel(patch, 1)
        warmth = (layer.warmth - 110 * layer.heat_gain) / 255
        heat = cv2.transform(patch, np.array([[layer.heat_gain, warmth]], np.float32))
        blend(canvas, heat.reshape(alpha.shape), alpha, left, top)
    draw = moment(scene, time + 0.25)
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.6 + 2 * scene.poor)
    if scene.poor:
        contrast = 1 - 0.9 * scene.poor
        canvas = cv2.convertScaleAbs(canvas, alpha=contrast, beta=(1 - contrast) * scene.heat_floor)
    add_noise(canvas, draw, 2.0 + 14 * scene.poor)
    black_outside(scene, canvas, view)
    return canvas


def render_depth(scene: "SyntheticScene", time: float, view: View, holes: bool = True) -> np.ndarray:
    """Distance, uint16 [rows, columns] in mm, 0 where the sensor has no answer."""
    matrix = view.matrix
    rows, columns = (np.arange(length, dtype=np.float32) + np.float32(0.5) for length in (view.rows, view.columns))
    x = ((columns - matrix[0, 2]) / (matrix[0, 0] * scene.width))[None, :]
    y = ((rows - matrix[1, 2]) / (matrix[1, 1] * scene.height))[:, None]
    # a floor is linear in the inverse of the distance; the wall behind it is at `far`
    floor = 1.0 + scene.slope * (y - 0.35) * 2 + scene.tilt * (x - 0.5)
    canvas = np.float32(scene.far) / np.maximum(floor, 1.0, dtype=np.float32)
    for layer, patch, left, top in heat_patches(scene, time, view):
        # what comes nearer grows, and its surface is not flat
        distance = layer.depth * math.exp(layer.log_size.base - layer.log_size(time))
        region = canvas[top : top + patch.shape[0], left : left + patch.shape[1]]
        shade, alpha = cv2.split(patch)
        surface = cv2.LUT(shade, (distance * _RELIEF).astype(np.float32))
        # OpenCV would take a patch of four pixels for a scalar
        cv2.copyTo(surface, (alpha > 127).view(np.uint8), region)
    if holes:
        noise = noise_field(moment(scene, time + 0.25), *canvas.shape)
        canvas *= 1 + np.float32(0.00014 + 0.0008 * scene.poor) * noise
        canvas[noise > 160] = 0
        if scene.poor:  # whole patches without an answer
            coarse = noise_field(moment(scene, time + 0.375), math.ceil(view.rows / 6), math.ceil(view.columns / 6))
            canvas[cv2.resize(coarse, (view.columns, view.rows)) > 100 - 110 * scene.poor] = 0
    depth = np.minimum(canvas, np.float32(65535)).astype(np.uint16)
    black_outside(scene, depth, view)
    return depth


def depth_range(scene: "SyntheticScene", time: float) -> tuple[int, int]:
    """Smallest distance (mm) of the clipped whole frame, where some is always unknown, and the largest, from a coarse
    rendering."""
    columns = max(8, round(24 * scene.width / scene.height))
    depth = render_depth(scene, time, View(0, 0, scene.width, scene.height, columns, 24), holes=False)
    top = min(3 * float(np.median(depth)), DEPTH_CLIP_MM)
    return 0, int(min(top, depth.max()))


def depth_picture(depth: np.ndarray, low: int, high: int) -> np.ndarray:
    """Depth in the image processor's colors (JET in OpenCV's order) between a whole frame's smallest and largest
    distance, uint8 [rows, columns, 3]."""
    scale = 255.0 / max(high - low, 1)
    levels = cv2.convertScaleAbs(depth.clip(low, high), alpha=scale, beta=-low * scale)
    return cv2.LUT(cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB), _DEPTHS)


def render_event(scene: "SyntheticScene", time: float, view: View) -> np.ndarray:
    """Changes of brightness since a moment ago, uint8 [rows, columns, 3]: red brighter, blue darker, on white; an
    event camera sees in the dark and against the light."""
    own = misaligned(scene, view)
    before, now = (cv2.LUT(cv2.cvtColor(compose_rgb(scene, at, own, events=True), cv2.COLOR_RGB2GRAY), _LOG)
                   for at in (time - scene.event_step, time))  # fmt: skip
    noise = noise_field(moment(scene, time + 0.25), *now.shape)
    # in units of the sensor's threshold; the noise alone fires in one pixel of a hundred
    seen = np.float32(_EVENT_STEPS / scene.event_threshold * (1 - 0.9 * scene.poor))
    change = (now - before) * seen + noise * np.float32((0.006 + 0.012 * scene.poor) * _EVENT_STEPS)
    levels = cv2.add(change, 128.5, dtype=cv2.CV_8U)
    picture = cv2.LUT(cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB), _EVENTS)
    black_outside(scene, picture, view)
    return picture


def visible_share(scene: "SyntheticScene", time: float, view: View) -> float:
    """Part of the target inside the frame and not covered; the view is its box on a small raster."""
    patch, left, top = raster(scene.target, time, view, scene.target.sprite_at(time).picture)
    own = np.zeros((view.rows, view.columns), np.uint8)
    own[top : top + patch.shape[0], left : left + patch.shape[1]] = patch[..., 3]
    total = np.count_nonzero(own > 127)
    for layer in scene.front:
        patch, left, top = raster(layer, time, view, layer.sprite_at(time).picture)
        own[top : top + patch.shape[0], left : left + patch.shape[1]][patch[..., 3] > 127] = 0
    black_outside(scene, own, view)
    return np.count_nonzero(own > 127) / max(total, 1)
