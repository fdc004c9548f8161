"""GSAHF: Gram-aligned hypergraph fusion of both streams' search tokens (SDMoEA, arXiv 2603.13719)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .config import SDMoEConfig


def align(features: Tensor, temperature: float) -> Tensor:
    """Each stream's features `[S, 2, B, n, d]` (levels, streams, batch, tokens, channels) plus the other's, averaged
    by the softmax of their cosines over a temperature: attention with unit-length queries and keys."""
    unit = F.normalize(features, dim=-1)
    query, key, value = (t.flatten(0, 2).unsqueeze(1) for t in (unit, unit.flip(1), features.flip(1)))
    other = F.scaled_dot_product_attention(query, key, value, scale=1.0 / temperature)
    return features + other.view_as(features)


class HyperConv(nn.Module):
    """One hypergraph convolution with a residual, a layer norm and SiLU: "mean" (from vertices to hyperedges and back
    by means) or "sym" (HGNN's symmetric normalization, arXiv 1809.09401)."""

    def __init__(self, dim: int, how: str):
        super().__init__()
        self.how = how
        self.theta = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def propagate(self, z: Tensor, edges: Tensor) -> Tensor:
        """`[.., V, d]` from vertices over the hyperedges `[.., E, V]` (rows of zeros and ones) and back."""
        edge_degree = edges.sum(-1).unsqueeze(-1)
        vertex_degree = edges.sum(-2).unsqueeze(-1)
        if self.how == "mean":
            return (edges.mT @ ((edges @ z) / edge_degree)) / vertex_degree
        root = vertex_degree.rsqrt()
        return (edges.mT @ ((edges @ (z * root)) / edge_degree)) * root

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Vertices `[.., V, d]` and hyperedges `[.., E, V]` to new vertices."""
        moved = self.propagate(self.theta(x).to(edges.dtype), edges)
        return F.silu(self.norm(x + moved.to(x.dtype)))


class GSAHF(nn.Module):
    """Search tokens of several blocks and both streams, aligned by Gram matrices and fused by a hypergraph."""

    def __init__(self, dim: int, levels: int, config: SDMoEConfig):
        super().__init__()
        inner = config.hyper_dim
        self.config = config
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in range(levels))
        self.reduce = nn.ModuleList(nn.Linear(dim, inner, bias=False) for _ in range(levels))
        self.conv = nn.ModuleList(HyperConv(inner, config.hyper_conv) for _ in range(config.hyper_layers))
        self.level_weight = nn.Parameter(torch.zeros(levels, 2))
        self.out = nn.Linear(inner, dim, bias=False)
        for linear in (*self.reduce, *(layer.theta for layer in self.conv)):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        # a fresh adapter changes nothing
        nn.init.zeros_(self.out.weight)

    def reduced(self, levels: tuple[Tensor, ...]) -> Tensor:
        """Tokens `[2*B, n, C]` of each level to `[S, 2, B, n, d]`."""
        parts = [
            linear(norm(level).flatten(0, 1)).unflatten(0, (2, -1, level.shape[1]))
            for level, norm, linear in zip(levels, self.norms, self.reduce, strict=True)
        ]
        return torch.stack(parts)

    def aligned(self, features: Tensor) -> Tensor:
        """`[S, 2, B, n, d]` of the same shape, with the other stream's features added."""
        if self.config.gram_mode == "none":
            return features
        if self.config.gram_mode == "token_cross":
            return align(features, self.config.gram_temperature)
        return align(features.mT, self.config.gram_temperature).mT

    @torch.no_grad()
    def hyperedges(self, x: Tensor) -> Tensor:
        """Which vertices of `[.., V, d]` each one's hyperedge joins: zeros and ones `[.., V, V]`.

        Useful graphs join 1 % to 30 % of the vertices, the mean of this matrix: near 1 / V the convolution is a linear
        map of single tokens, near 1 the mean of all; `hyper_epsilon` or the rule "knn" set it right.
        """
        with torch.autocast(x.device.type, enabled=False):
            unit = F.normalize(x.float(), dim=-1)
            cosine = unit @ unit.mT
        # the distance of a vertex from itself is not exactly zero
        itself = torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)
        cosine = cosine.masked_fill_(itself, 2.0)  # exporters know no views of a diagonal
        if self.config.hyperedge_rule == "epsilon":
            return cosine.gt_(1.0 - self.config.hyper_epsilon**2 / 2)
        if self.config.hyper_knn > x.shape[-2]:
            raise ValueError(f"hyper_knn is {self.config.hyper_knn}, but a graph has only {x.shape[-2]} vertices.")
        nearest = cosine.topk(self.config.hyper_knn, dim=-1).indices
        return cosine.zero_().scatter_(-1, nearest, 1.0)

    def convolved(self, x: Tensor) -> Tensor:
        """Vertices `[B, S, 2, n, d]` after the hypergraph's convolutions, which share one graph."""
        vertices = x.flatten(2, 3) if self.config.hyper_scope == "per_level" else x.flatten(1, 3)
        edges = self.hyperedges(vertices)
        for layer in self.conv:
            vertices = layer(vertices, edges)
        return vertices.view_as(x)

    def forward(self, levels: tuple[Tensor, ...]) -> Tensor:
        """Search tokens `[2*B, n, C]` of each level, RGB first, to what is added to the fused features `[B, n, C]`."""
        features = self.aligned(self.reduced(levels))
        vertices = features.permute(2, 0, 1, 3, 4).contiguous()
        if torch.is_grad_enabled():
            # the graph is made again in the backward pass: kept, it would take 85 MB per sample at 384 pixels
            vertices = checkpoint(self.convolved, vertices, use_reentrant=False)
        else:
            vertices = self.convolved(vertices)
        weight = self.level_weight.flatten().softmax(0).view_as(self.level_weight)
        mixed = (vertices * weight[:, :, None, None]).sum((1, 2))
        return self.out(mixed.flatten(0, 1)).view(*mixed.shape[:2], -1)
