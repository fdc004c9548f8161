"""Outlines that change over time: cut-outs that sway, stride, turn and stretch like things that are not stiff."""

import math

import cv2
import numpy as np

from .layers import Wobble
from .pictures import Draw, Sprite

GRID = 16  # nodes per side of the coarse field that is enlarged to the picture
ROOM = 0.25  # of a sprite's sides, left free on each of them
# -1 to 1 over the cut-out itself, beyond in the room around it
_AXIS = np.linspace(-1 - 2 * ROOM, 1 + 2 * ROOM, GRID, dtype=np.float32)
_U, _V = np.meshgrid(_AXIS, _AXIS)
_IN = np.clip(_U, -1, 1)


class Bending:
    """How a sprite's outline changes: a few smooth fields of displacement, each with a strength that changes in time.

    A `strength` of 1 moves the farthest parts by a third of the half side. `sprite` is the same one with room around
    it, which a layer shows unbent.
    """

    def __init__(self, draw: Draw, sprite: Sprite, strength: float) -> None:
        self.sprite = sprite.padded(ROOM)
        fast, slow = (12.0, 60.0), (40.0, 250.0)
        self.parts: list[tuple[Wobble, np.ndarray]] = []
        for _ in range(2):  # waves over the whole
            turn, count, phase = draw.uniform(0, 2 * math.pi), draw.uniform(0.5, 1.3), draw.uniform(0, 2 * math.pi)
            wave = np.sin(math.pi * count * (math.cos(turn) * _U + math.sin(turn) * _V) + phase)
            side = draw.uniform(0, 2 * math.pi)
            self._add(draw, 0.14 * strength, slow, wave * math.cos(side), wave * math.sin(side))
        if draw.chance(0.5):  # legs: two halves of one end that open and close
            low = np.maximum(_V if draw.chance(0.8) else -_V, 0)
            self._add(draw, 0.35 * strength, fast, low * np.tanh(5 * _U), 0 * _U)
        if draw.chance(0.5):  # bent as a whole, upright or lying
            bent = 0.5 * _V**2, 0 * _U
            self._add(draw, 0.5 * strength, slow, *(bent if draw.chance(0.5) else (0 * _U, 0.5 * _U**2)))
        if draw.chance(0.6):  # turned out of the plane: what lies inside the outline wanders to one side
            self._add(draw, 0.45 * min(1.0, strength), slow, 1 - _IN**2, 0 * _U)

    def _add(self, draw: Draw, reach: float, period: tuple[float, float], x: np.ndarray, y: np.ndarray) -> None:
        self.parts.append((Wobble(draw, 0.0, reach, period), np.stack((x, y)).astype(np.float32)))

    def __call__(self, time: float) -> Sprite:
        """The bent sprite, of the size of `self.sprite`."""
        height, width = self.sprite.picture.height, self.sprite.picture.width
        field = sum(wobble(time) * part for wobble, part in self.parts)
        unit = np.float32(0.5 / (1 + 2 * ROOM))
        across, down = (
            cv2.resize(coarse * (side * unit), (width, height), interpolation=cv2.INTER_LINEAR)
            for coarse, side in zip(field, (width, height), strict=True)
        )
        across += np.arange(width, dtype=np.float32)
        down += np.arange(height, dtype=np.float32)[:, None]
        return self.sprite.bent(across, down)
