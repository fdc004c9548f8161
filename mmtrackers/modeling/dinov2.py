"""DINOv2 as a one-stream tracking trunk: token types, one position table for template and search, the same seams."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .seams import TokenLayout
from .vit import Embeddings, Mlp, ViTLayer, ViTTrunk, check_pixels

# above this rate stochastic depth draws samples before the sub-layer, which then costs less, as in DINOv2
SUBSET_RATE = 0.1
BACKGROUND, FOREGROUND, SEARCH = 0, 1, 2


def resample_positions(table: Tensor, side: int) -> Tensor:
    """An image ViT's position table `[1, 1 + n * n, C]` (class token, then the grid row by row) for a square grid of
    another side: `[1, side * side, C]` without the class token, or ValueError where the grid is not square.

    Bicubic in float32 without antialiasing, as OSTrack and LoRAT do it.
    """
    grid = round((table.shape[1] - 1) ** 0.5)
    if grid * grid + 1 != table.shape[1]:
        raise ValueError(f"The position table has {table.shape[1]} rows, expected 1 + n * n for a square grid.")
    cells = table[:, 1:].float()
    if grid == side:
        return cells
    cells = cells.transpose(1, 2).unflatten(2, (grid, grid))
    cells = F.interpolate(cells, (side, side), mode="bicubic", align_corners=False)
    return cells.flatten(2).transpose(1, 2).contiguous()  # FSDP shards contiguous parameters only


class Dinov2Embeddings(nn.Module):
    """Patch embedding, one position table and learned token types (background and foreground of a template, search).

    The table belongs to the search grid; a template takes its top-left corner (LoRAT, arXiv 2403.05231).
    """

    packed = Embeddings.packed

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.template_grid, self.search_grid = config.template_grid, config.search_grid
        self.patch = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.position = nn.Parameter(torch.zeros(1, config.search_grid**2, width))
        self.token_type = nn.Embedding(3, width)

    def template(self, template: Tensor, mask: Tensor) -> Tensor:
        """`[B, T, S, 3, h, w]` and its foreground `[B, T, g, g]` to stream-major tokens `[S*B, T*Nz, C]`."""
        batch, count, streams = template.shape[:3]
        side, grid = self.template_grid, self.search_grid
        tokens = self.patch(template.permute(2, 0, 1, 3, 4, 5).flatten(0, 2)).flatten(2).transpose(1, 2)
        position = self.position.unflatten(1, (grid, grid))[:, :side, :side].flatten(1, 2)
        types = self.token_type((mask != 0).long().flatten(2)) + position
        tokens = tokens.view(streams, batch, count, *tokens.shape[1:]) + types.to(tokens.dtype)
        return tokens.reshape(streams * batch, -1, tokens.shape[-1])

    def search(self, search: Tensor) -> Tensor:
        """`[B, S, 3, H, W]` to stream-major tokens `[S*B, Nx, C]`."""
        tokens = self.patch(search.transpose(0, 1).flatten(0, 1)).flatten(2).transpose(1, 2)
        return tokens + (self.position + self.token_type.weight[SEARCH]).to(tokens.dtype)


class LayerScale(nn.Module):
    """A learned factor for every channel of a sub-layer's output."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor) -> Tensor:
        return y * self.gamma


class SwiGLU(nn.Module):
    """`w3(silu(a) * b)` with `[a, b] = w12(h)`: the MLP of the giant model."""

    def __init__(self, config):
        super().__init__()
        self.w12 = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.w3 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.scale = nn.Identity()

    def inner(self, h: Tensor) -> Tensor:
        gate, value = self.w12(h).chunk(2, -1)
        return F.silu(gate) * value

    def project(self, inner: Tensor) -> Tensor:
        return self.scale(self.w3(inner))


class Dinov2Layer(ViTLayer):
    """Pre-norm block of DINOv2, with layer scales, and one rate of stochastic depth in all layers. Above 0.1 each
    sub-layer runs on a random part of the batch and what it gives is scaled up; junctions are bypassed then."""

    def __init__(self, config, index: int):
        super().__init__(config, index)
        self.attention.scale, self.mlp.scale = LayerScale(config.hidden_size), LayerScale(config.hidden_size)
        self.subset_rate = config.drop_path_rate if config.drop_path_rate > SUBSET_RATE else 0.0
        for junction in (self.attention_junction, self.mlp_junction):
            junction.drop_path_rate = config.drop_path_rate
            junction.bypassed_in_training = self.subset_rate > 0

    @staticmethod
    def new_mlp(config) -> nn.Module:
        return SwiGLU(config) if config.use_swiglu_ffn else Mlp(config)

    def forward(
        self, x: Tensor, kept: Tensor | None, layout: TokenLayout, keep_rate: float = 1.0, **kwargs
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, TokenLayout]:
        if not (self.training and self.subset_rate):
            return super().forward(x, kept, layout, keep_rate, **kwargs)
        last = self.drops_template
        rows, factor = self._draw(x, layout)
        h = self.norm1(x[rows])
        attended, weights, _, _ = self.attention.attend(h, layout.drop_template(h) if last else h, layout, **kwargs)
        if last:
            x, layout = layout.drop_template(x), layout.without_template()
        x = x.index_add(0, rows, self.attention.project(attended).to(x.dtype), alpha=factor)
        rows, factor = self._draw(x, layout)
        y = self.mlp.project(self.mlp.inner(self.norm2(x[rows])))
        return x.index_add(0, rows, y.to(x.dtype), alpha=factor), weights, None, None, layout

    def _draw(self, x: Tensor, layout: TokenLayout) -> tuple[Tensor, float]:
        """Rows of the samples that a sub-layer sees, both streams of each, and the factor on what it gives."""
        batch = x.shape[0] // layout.streams
        count = max(int(batch * (1 - self.subset_rate)), 1)
        drawn = torch.randperm(batch, device=x.device)[:count]
        return torch.cat([drawn + s * batch for s in range(layout.streams)]), batch / count


class Dinov2Trunk(ViTTrunk):
    """Template and search pixels to fused search features; prefix tokens may go in front."""

    _no_split_modules = ["Dinov2Layer"]
    embeddings_class = Dinov2Embeddings
    layer_class = Dinov2Layer

    def embed_template(self, template: Tensor, template_mask: Tensor | None = None) -> Tensor:
        """Template pixels `[B, T, S, 3, h, w]` and their foreground `[B, T, g, g]` to tokens `[S*B, T*Nz, C]`."""
        config = self.config
        check_pixels("template", template, 6, config.streams, config.template_size)
        expected = [*template.shape[:2], config.template_grid, config.template_grid]
        if template_mask is None or list(template_mask.shape) != expected:
            found = "is missing" if template_mask is None else f"has shape {list(template_mask.shape)}"
            raise ValueError(
                f"template_mask {found}, expected {expected}: which cells of each template show the target. "
                "TrackerImageProcessor.template_mask makes it."
            )
        return self.embeddings.template(template, template_mask)


@torch.no_grad()
def init_dinov2_weights(module: nn.Module, std: float) -> None:
    """Initial values: truncated normal linear maps, positions and token types; layer scales 1."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
        init.trunc_normal_(module.weight, std=std)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)
    elif isinstance(module, LayerScale):
        init.ones_(module.gamma)
    elif isinstance(module, Dinov2Embeddings):
        init.trunc_normal_(module.position, std=std)
