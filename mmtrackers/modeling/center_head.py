"""Center head of the OSTrack family: three convolutional branches, and the decoding of their maps."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mmtrackers.hub.adapters import merged

from .kept import kept
from .losses import center_loss
from .packing import PackedConv


class ConvNormAct(nn.Module):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.norm(self.conv(x)))

    def packed(self, dtype: torch.dtype) -> PackedConv:
        """The convolution with the norm folded in."""
        return PackedConv.folded((self.conv, self.norm))


def _branch(in_channels: int, channels: int, outputs: int) -> nn.Sequential:
    widths = [in_channels, channels, channels // 2, channels // 4, channels // 8]
    stages = [ConvNormAct(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*stages, nn.Conv2d(widths[-1], outputs, 1))


class CenterHead(nn.Module):
    """Score, size and offset maps from search features (OSTrack, section 3.3 of arXiv 2203.11991); `channels` is the
    width of a branch's first convolution, halved three times."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.score, self.size, self.offset = (_branch(in_channels, channels, outputs) for outputs in (1, 2, 2))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Features `[B, g * g, C]` to the maps of `TrackingOutput`; scores and sizes are probabilities."""
        grid = math.isqrt(features.shape[1])
        score, size, offset = self._maps(features.transpose(1, 2).unflatten(2, (grid, grid)))
        score, size = torch.cat([score, size], 1).float().sigmoid().clamp(1e-4, 1 - 1e-4).split([1, 2], 1)
        return {"score_map": score, "size_map": size, "offset_map": offset.float()}

    def decode(self, maps: Mapping[str, Tensor], window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Boxes cxcywh `[B, 4]` (fractions of the crop) at the best cell of each score map, and its score `[B]`; both
        under a window `[g, g]`, a factor on the scores, where one is given."""
        score_map = maps["score_map"]
        corners, factors = _cells(score_map.shape[-1], score_map.device)
        response = score_map if window is None else score_map * window
        scores, cell = response.flatten(1).max(1)
        boxes = torch.addcmul(corners, torch.cat([maps["offset_map"], maps["size_map"]], 1), factors)
        return boxes.flatten(2).gather(2, cell.view(-1, 1, 1).expand(-1, 4, 1)).squeeze(2), scores

    def loss(
        self, maps: Mapping[str, Tensor], boxes_cxcywh: Tensor, labels_xywh: Tensor, box_weight: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return center_loss(maps["score_map"], boxes_cxcywh, labels_xywh, box_weight)

    def _maps(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.score(features), self.size(features), self.offset(features)

    def packed(self, dtype: torch.dtype) -> "PackedCenterHead":
        """This head with the first convolutions of its branches as one."""
        return PackedCenterHead(self)


class PackedCenterHead(CenterHead):
    """A `CenterHead` for inference."""

    def __init__(self, head: CenterHead):
        nn.Module.__init__(self)
        branches = [merged(branch) for branch in (head.score, head.size, head.offset)]
        stages = [merged(branch[0]) for branch in branches]
        self.first = PackedConv.folded(*((stage.conv, stage.norm) for stage in stages))
        self.score, self.size, self.offset = (
            nn.Sequential(*branch[1:-1], PackedConv(merged(branch[-1]), relu=False)) for branch in branches
        )

    def _maps(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score, size, offset = self.first(features).chunk(3, 1)
        return self.score(score), self.size(size), self.offset(offset)


@kept
def _cells(grid: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What turns `[offset, size]` into boxes: cells' corners `[4, g, g]` (0 for sizes), factors `[4, 1, 1]`."""
    corners = np.zeros((4, grid, grid), np.float32)
    corners[1], corners[0] = np.indices((grid, grid)) / grid
    factors = np.array([1 / grid, 1 / grid, 1, 1], np.float32).reshape(4, 1, 1)
    return torch.from_numpy(corners).to(device), torch.from_numpy(factors).to(device)
