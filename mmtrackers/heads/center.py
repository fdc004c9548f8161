"""Centre head of the OSTrack family: three convolutional branches, and the decoding of their maps."""

import itertools

import torch
from torch import Tensor, nn


class ConvNormAct(nn.Module):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.norm(self.conv(x)))


def _branch(in_channels: int, channels: int, outputs: int) -> nn.Sequential:
    widths = [in_channels, channels, channels // 2, channels // 4, channels // 8]
    return nn.Sequential(
        *[ConvNormAct(a, b) for a, b in itertools.pairwise(widths)], nn.Conv2d(widths[-1], outputs, 1)
    )


class CenterHead(nn.Module):
    """Score, size and offset maps from search features (OSTrack, section 3.3 of arXiv 2203.11991).

    Args:
        in_channels (`int`): width C of the features.
        channels (`int`): width of a branch's first convolution; halved three times.

    Example:
        >>> maps = CenterHead(64, 32)(torch.zeros(1, 64, 16, 16))
        >>> [tuple(m.shape) for m in maps]
        [(1, 1, 16, 16), (1, 2, 16, 16), (1, 2, 16, 16)]
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.score = _branch(in_channels, channels, 1)
        self.size = _branch(in_channels, channels, 2)
        self.offset = _branch(in_channels, channels, 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features `[B, C, g, g]` to score `[B, 1, g, g]`, size `[B, 2, g, g]` (both probabilities) and offset."""
        score = self.score(features).float().sigmoid().clamp(1e-4, 1 - 1e-4)
        size = self.size(features).float().sigmoid().clamp(1e-4, 1 - 1e-4)
        return score, size, self.offset(features).float()


def decode_center(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Boxes at the best cell of each score map.

    Args:
        score_map (`Tensor`, shape `[B, 1, g, g]`): scores.
        size_map (`Tensor`, shape `[B, 2, g, g]`): width, height as fractions of the crop.
        offset_map (`Tensor`, shape `[B, 2, g, g]`): x, y offsets in cells.
        window (`Tensor`, shape `[g, g]`): factor on the scores; size and offset stay untouched.

    Returns:
        `tuple[Tensor, Tensor]`: boxes cxcywh `[B, 4]` as fractions of the crop, and the best (windowed) scores `[B]`.

    Example:
        >>> maps = torch.rand(2, 1, 8, 8), torch.rand(2, 2, 8, 8), torch.zeros(2, 2, 8, 8)
        >>> decode_center(*maps)[0].shape
        torch.Size([2, 4])
    """
    grid = score_map.shape[-1]
    response = score_map if window is None else score_map * window
    scores, cell = response.flatten(1).max(1)
    index = cell.view(-1, 1, 1).expand(-1, 4, 1)
    cx_cy_w_h = torch.cat([offset_map, size_map], 1).flatten(2).gather(2, index).squeeze(2)
    corner = torch.stack([cell % grid, cell // grid], 1)
    return torch.cat([(cx_cy_w_h[:, :2] + corner) / grid, cx_cy_w_h[:, 2:]], 1), scores
