"""PATrack's three adapters (arXiv 2603.21100): MDA and CEA for residual junctions, HA for the neck.

The formulas are those of the published code (ouha1998/Learning-Progressive-Adaptation-for-Multi-Modal-Tracking).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrackers.modeling.seams import TokenLayout

NORM_EPS = 1e-6


def crops(layout: TokenLayout) -> Iterator[tuple[slice, tuple[int, int]]]:
    """The rows of all templates, then those of the search crop, and their grids; counted from the first template
    token on."""
    if layout.template_tokens:
        yield slice(0, layout.template_tokens), layout.template_grid
    if layout.search_tokens != math.prod(layout.search_grid):
        raise ValueError(
            f"PROGRESSIVE reads whole grids, but only {layout.search_tokens} of {math.prod(layout.search_grid)} "
            "search tokens are left: run the model without candidate elimination (elimination_layers=[])."
        )
    yield slice(layout.template_tokens, layout.template_tokens + layout.search_tokens), layout.search_grid


def swap_streams(tokens: Tensor) -> Tensor:
    """`[2*B, ...]`, stream-major, with the two streams exchanged."""
    return tokens.roll(tokens.shape[0] // 2, 0)


class ModalityDependentAdapter(nn.Module):
    """MDA: high and low frequencies of `width` channels (a multiple of 4), on the map of each crop.

    A quarter of the channels goes through a depthwise convolution and a quarter through a max-pool (high frequencies),
    the other half is averaged over 2x2 cells (low frequencies); a depthwise convolution with a residual mixes them.
    Each stream receives what this makes of the other stream's tokens; see `ProgressiveConfig.mda_source`.
    """

    def __init__(self, dim: int, width: int, source: str = "other"):
        super().__init__()
        quarter, half, mixed = width // 4, width // 2, width // 2 * 3
        self.quarter, self.source = quarter, source
        self.down = nn.Linear(dim, width)
        self.high_expand = nn.Conv2d(quarter, half, 1, bias=False)
        self.high_depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.high_pooled = nn.Conv2d(quarter, half, 1)
        self.mix = nn.Conv2d(mixed, mixed, 3, padding=1, groups=mixed, bias=False)
        self.up = nn.Linear(mixed, dim)  # starts as the published 1x1 convolution does, its bias uniform
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)

    def frequencies(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Projected maps `[M, width, g, g]` to their high `[M, width, g, g]` and low `[M, width / 2, g, g]` parts."""
        convolved, pooled, low = maps.split([self.quarter, self.quarter, 2 * self.quarter], 1)
        convolved = self.high_depthwise(self.high_expand(convolved))
        pooled = self.high_pooled(F.max_pool2d(pooled, 3, stride=1, padding=1))
        low = F.interpolate(F.avg_pool2d(low, 2), scale_factor=2.0, mode="nearest")
        return F.gelu(torch.cat([convolved, pooled], 1)), low

    def mixed(self, maps: Tensor) -> Tensor:
        """Projected maps `[M, width, g, g]` to what is widened, `[M, 3/2 width, g, g]`."""
        both = torch.cat(self.frequencies(maps), 1)
        return both + self.mix(both)

    def narrow(self, h: Tensor, layout: TokenLayout) -> Tensor:
        """Normed tokens `[2*B, N, C]` to what each stream receives, before it is widened."""
        inner = self.down(h)
        if self.source == "other":
            inner = swap_streams(inner)
        parts = []
        for rows, grid in crops(layout):
            maps = inner[:, rows].unflatten(1, (-1, *grid)).flatten(0, 1).permute(0, 3, 1, 2)
            parts.append(self.mixed(maps).permute(0, 2, 3, 1).reshape(h.shape[0], rows.stop - rows.start, -1))
        return torch.cat(parts, 1)

    def forward(self, x: Tensor, h: Tensor, norm: nn.Module, layout: TokenLayout) -> Tensor:
        """What is added to the tokens `[2*B, N, C]`, from the normed ones `h`; `x` and `norm` are not used."""
        return self.up(self.narrow(h.to(self.down.weight.dtype), layout))


class ModalityEntangledAdapter(nn.Module):
    """CEA: each stream attends to a guide made of both. Switches as in `ProgressiveConfig`.

    In every crop, with R and T the streams' normed and narrowed tokens and the guide `G = [R | T] W`, RGB receives
    `softmax(R W_1 G^T) R W_2 + T` and the other stream `softmax(T W_3 G^T) T W_4 + R`, widened and sent through the
    block's own norm.
    """

    def __init__(self, dim: int, width: int, train_norm: bool = False, swap_outputs: bool = False):
        super().__init__()
        self.swap_outputs = swap_outputs
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=train_norm)
        self.down = nn.Linear(dim, width, bias=False)
        self.guide = nn.Linear(2 * width, width, bias=False)
        # of RGB, then of the other stream: width rows that make the queries, and as many that make the values
        self.query_value = nn.Parameter(torch.empty(2, 2 * width, width))
        self.up = nn.Linear(width, dim, bias=False)
        nn.init.uniform_(self.query_value, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def entangle(self, hidden: Tensor, layout: TokenLayout) -> Tensor:
        """Narrowed tokens `[2*B, N, width]` to what each stream receives, narrow."""
        streams = hidden.unflatten(0, (2, -1))
        guide = self.guide(torch.cat([streams[0], streams[1]], -1)).expand_as(streams)
        query, value = (streams.flatten(1, 2) @ self.query_value.mT).view(*streams.shape[:3], -1).chunk(2, -1)
        attended = []
        for rows, grid in crops(layout):
            # [2, crops, cells, width]: several templates each attend inside themselves
            parts = [t[:, :, rows].unflatten(2, (-1, math.prod(grid))).flatten(1, 2) for t in (query, guide, value)]
            attended.append(self.attend(*parts).reshape(hidden.shape[0], -1, hidden.shape[2]))
        attended = torch.cat(attended, 1)
        return swap_streams(attended) + hidden if self.swap_outputs else attended + swap_streams(hidden)

    def attend(self, query: Tensor, guide: Tensor, value: Tensor) -> Tensor:
        """What cells `[2, crops, cells, width]` get from those of the guide."""
        return F.scaled_dot_product_attention(query, guide, value, scale=1.0)

    def narrow(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """A site's input `[2*B, N, C]` to what each stream receives, before it is widened."""
        return self.entangle(self.down(self.norm(x)), layout)

    def forward(self, x: Tensor, h: Tensor, norm: nn.Module, layout: TokenLayout) -> Tensor:
        """What is added to the tokens `[2*B, N, C]`, from the site's input `x`; `h` is not used."""
        return norm(self.up(self.narrow(x.to(self.down.weight.dtype), layout)).to(x.dtype))


class HeadAdapter(nn.Module):
    """HA: three linear maps between the fused features and the head, in training with dropout before the last.

    As published it has no activation, and replaces its input, which `residual` adds.
    """

    def __init__(self, dim: int, width: int, dropout: float = 0.0, residual: bool = False):
        super().__init__()
        self.dropout, self.residual = dropout, residual
        self.down, self.middle, self.up = nn.Linear(dim, width), nn.Linear(width, width), nn.Linear(width, dim)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.middle(self.down(features.to(self.down.weight.dtype)))
        adapted = self.up(F.dropout(inner, self.dropout, self.training)).to(features.dtype)
        return features + adapted if self.residual else adapted
