"""Where adapters take hold: modules without parameters that do the plain thing, and the layout of the tokens."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenLayout:
    """Which token of a sequence is what: `[prefix | template tokens | search tokens]`, streams on the batch axis.

    Args:
        streams (`int`): 1 (RGB) or 2 (RGB, then X); a batch of B pairs has `streams * B` rows, stream-major.
        prefix (`int`): tokens before the template.
        template_tokens (`int`): tokens of all templates together; 0 where only search rows are left.
        search_tokens (`int`): search tokens that are present (fewer than the grid after elimination).
        template_grid, search_grid (`tuple[int, int]`): rows and columns of one template and of the search crop.

    Example:
        >>> layout = TokenLayout(2, 0, 64, 256, (8, 8), (16, 16))
        >>> layout.tokens, layout.search
        (320, slice(64, 320, None))
    """

    streams: int
    prefix: int
    template_tokens: int
    search_tokens: int
    template_grid: tuple[int, int]
    search_grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        return self.prefix + self.template_tokens + self.search_tokens

    @property
    def template(self) -> slice:
        return slice(self.prefix, self.prefix + self.template_tokens)

    @property
    def search(self) -> slice:
        return slice(self.prefix + self.template_tokens, self.tokens)

    def search_only(self) -> "TokenLayout":
        """The layout after every row but the search rows was dropped."""
        return replace(self, prefix=0, template_tokens=0)

    def without_template(self) -> "TokenLayout":
        """The layout after the template's rows were dropped."""
        return replace(self, template_tokens=0)

    def drop_template(self, x: Tensor) -> Tensor:
        """The rows that are read after the last layer, prefix and search, of tokens `[S*B, N, C]`."""
        if not self.template_tokens:
            return x
        search = x[:, self.search]
        return torch.cat([x[:, : self.prefix], search], 1) if self.prefix else search


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: zeroes whole rows of the batch axis with probability `rate`, scales the others up."""
    if not training or rate == 0.0:
        return x
    keep = 1.0 - rate
    return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class ResidualJunction(nn.Module):
    """Seam: the residual sum of one sub-layer, `x + drop_path(y)`.

    It is called with all that an adapter at this place may need: the site's input `x` `[S*B, N, C]`, `h = norm(x)`,
    the sub-layer's output `y`, the block's own `norm`, and the layout. Returns the new tokens and an auxiliary loss
    (None here). An adapter that must see every token, also in the last layer, says so by `needs_all_rows`. A junction
    that training does not go through is `bypassed_in_training`, and no tuner can stand on it.
    """

    needs_all_rows = bypassed_in_training = False

    def __init__(self, drop_path_rate: float = 0.0):
        super().__init__()
        self.drop_path_rate = drop_path_rate

    def forward(
        self, x: Tensor, h: Tensor, y: Tensor, norm: nn.Module, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        return x + drop_path(y, self.drop_path_rate, self.training), None


class StreamFusion(nn.Module):
    """Seam: fuses the streams' final search features and prefix tokens, by their sum or mean.

    Called with the normed search features of all streams `[S*B, Nx, C]`, the search rows of every layer (only where
    `needs_levels` is true, else None), the normed prefix tokens `[S*B, P, C]` or None, and the layout; returns
    `[B, Nx, C]` and `[B, P, C]`.
    """

    needs_levels = False

    def __init__(self, how: str = "sum"):
        super().__init__()
        self.how = how

    def forward(
        self, features: Tensor, levels: tuple[Tensor, ...] | None, token: Tensor | None, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        if layout.streams == 1:
            return features, token
        return self._fused(features, layout), None if token is None else self._fused(token, layout)

    def _fused(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        streams = tokens.view(layout.streams, -1, *tokens.shape[1:])
        return streams.sum(0) if self.how == "sum" else streams.mean(0)


class Neck(nn.Module):
    """Seam: between the fused search features `[B, Nx, C]` and the head; hands them on unchanged."""

    def forward(self, features: Tensor, layout: TokenLayout) -> Tensor:
        return features


def scale_by_token(features: Tensor, token: Tensor) -> Tensor:
    """Search features `[B, Nx, C]`, each times its product with a fused track token `[B, 1, C]`; in float32, as the
    product is not scaled and reaches thousands."""
    weights = (features.float() * token.float()).sum(-1, keepdim=True)
    return (features.float() * weights).to(features.dtype)


def add_losses(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Sum of two auxiliary losses, each of which may be missing."""
    if first is None or second is None:
        return second if first is None else first
    return first + second
