"""One-stream ViT of the OSTrack family: joint attention over template and search tokens, with the adapters' seams."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, can_return_tuple

from mmtrackers.hub.adapters import merged

from .base import TrackerPreTrainedModel
from .packing import LinearMap, PackedConv, PackedMaps, packed_map, packed_patches, softmax_, without_gaps
from .seams import ResidualJunction, StreamFusion, TokenLayout, add_losses

# above so many keys the logits of all heads leave the caches: then one head at a time is faster
WHOLE_UP_TO = 400


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float,
    dropout: float = 0.0, **kwargs,
) -> tuple[Tensor, Tensor]:
    """Plain attention on `[B, H, N, d]`; returns `[B, N, H, d]` and the weights."""
    weights = ((query * scaling) @ key.transpose(-1, -2)).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


class ConvStem(nn.Module):
    """Convolutional patch embedding: 3x3 convolutions of stride 2 with batch norm, then a 1x1 projection ("Early
    convolutions help transformers see better", arXiv 2106.14881). `stride` must be a power of two."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        steps = int(math.log2(stride))
        widths = [3] + [max(width // 2 ** (steps - 1 - i), 16) for i in range(steps)]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.projection = nn.Conv2d(widths[-1], width, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        for stage in self.stages:
            pixels = stage(pixels)
        return self.projection(pixels)

    def packed(self, dtype: torch.dtype) -> "ConvStem":
        """This stem with its batch norms folded into its convolutions."""
        self.stages = nn.ModuleList(PackedConv.folded((conv, norm)) for conv, norm, _ in self.stages)
        self.projection = PackedConv(merged(self.projection), relu=False)
        return self


class Embeddings(nn.Module):
    """Patch embedding, the same for template and search, and a position table for each."""

    def __init__(self, config):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch = ConvStem(width, patch) if config.stem == "conv" else nn.Conv2d(3, width, patch, stride=patch)
        self.template_position = nn.Parameter(torch.zeros(1, config.template_grid**2, width))
        self.search_position = nn.Parameter(torch.zeros(1, config.search_grid**2, width))

    def packed(self, dtype: torch.dtype) -> "Embeddings":
        """These with the patch embedding as one product."""
        self.patch = packed_patches(self.patch)
        return self

    def _tokens(self, pixels: Tensor, position: Tensor) -> Tensor:
        return self.patch(pixels).flatten(2).transpose(1, 2) + position

    def template(self, template: Tensor) -> Tensor:
        """`[B, T, S, 3, h, w]` to stream-major tokens `[S*B, T*Nz, C]`."""
        batch, _, streams = template.shape[:3]
        pixels = template.permute(2, 0, 1, 3, 4, 5).flatten(0, 2)
        tokens = self._tokens(pixels, self.template_position)
        return tokens.reshape(streams * batch, -1, tokens.shape[-1])

    def search(self, search: Tensor) -> Tensor:
        """`[B, S, 3, H, W]` to stream-major tokens `[S*B, Nx, C]`."""
        return self._tokens(search.transpose(0, 1).flatten(0, 1), self.search_position)


class AttentionCore(nn.Module):
    """Seam: from the queries, keys and values of all streams to the attended values."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.is_causal = False

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: TokenLayout, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """q, k, v `[S*B, H, N, d]`; returns `[S*B, N, H, d]` and the weights where the implementation gives them."""
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        return attend(self, query, key, value, None, scaling=scaling, dropout=0.0, **kwargs)

    def packed(self, dtype: torch.dtype) -> "AttentionCore":
        """This core, or attention written out where that is faster: in bfloat16 on a CPU."""
        fused = self.config._attn_implementation == "sdpa"
        return WrittenOutAttention(self.config) if fused and dtype == torch.bfloat16 else self


class WrittenOutAttention(AttentionCore):
    """Attention for bfloat16 on a CPU, from which torch's fused kernel gains nothing: two products, and the softmax in
    the place of the logits."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: TokenLayout, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        if query.device.type != "cpu":
            return super().forward(query, key, value, scaling, layout, **kwargs)
        batch, heads, tokens, _ = key.shape
        query, key, value = (part.flatten(0, 1) for part in without_gaps(query, key, value, scaling))
        together = heads if tokens <= WHOLE_UP_TO else 1
        weights, output = query.new_empty(together, query.shape[1], key.shape[1]), torch.empty_like(query)
        for first in range(0, batch * heads, together):
            some = slice(first, first + together)
            torch.bmm(query[some], key[some].mT, out=weights)
            torch.bmm(softmax_(weights, tokens), value[some], out=output[some])
        return output.unflatten(0, (batch, heads)).transpose(1, 2), None


class Attention(nn.Module):
    """Multi-head self-attention over all tokens; the last layer asks for some query rows only."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=config.qkv_bias) for _ in range(3))
        self.o_proj = nn.Linear(width, width)
        self.core = AttentionCore(config)
        self.scale = nn.Identity()  # DINOv2 has a layer scale here

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def attend(
        self, h: Tensor, query_tokens: Tensor, layout: TokenLayout, **kwargs
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Tokens `h` `[S*B, N, C]`, and those of them that ask, to what these attend to, the weights or None, the
        queries and the keys."""
        query = self._heads(self.q_proj(query_tokens))
        key, value = self._heads(self.k_proj(h)), self._heads(self.v_proj(h))
        output, weights = self.core(query, key, value, self.scaling, layout, **kwargs)
        return output.flatten(2), weights, query, key

    def project(self, attended: Tensor) -> Tensor:
        """The sub-layer's output."""
        return self.scale(self.o_proj(attended))


class Mlp(nn.Module):
    """Two linear maps with the exact GELU between."""

    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.scale = nn.Identity()

    def inner(self, h: Tensor) -> Tensor:
        """What lies between the two maps."""
        return F.gelu(self.fc1(h))

    def project(self, inner: Tensor) -> Tensor:
        """The sub-layer's output."""
        return self.scale(self.fc2(inner))


class CandidateElimination(nn.Module):
    """Keeps the search tokens that the template's center attends to most (OSTrack, section 3.2 of arXiv 2203.11991);
    of each template the tokens `template_rows` vote, None for all of them."""

    def __init__(self, template_rows: list[int] | None):
        super().__init__()
        self.template_rows = template_rows

    def forward(
        self, x: Tensor, kept: Tensor | None, query: Tensor, key: Tensor, scaling: float, layout: TokenLayout,
        keep_rate: float,
    ) -> tuple[Tensor, Tensor | None, TokenLayout]:
        """Tokens and the original places `[B, n]` of their search tokens (None: all, in order) to the kept ones,
        which come in the order of their scores."""
        count = math.ceil(keep_rate * layout.search_tokens)
        if count == layout.search_tokens:
            return x, kept, layout
        voters = query[:, :, layout.template]
        if self.template_rows is not None:
            rows, columns = layout.template_grid
            voters = voters.unflatten(2, (-1, rows * columns))[:, :, :, self.template_rows].flatten(2, 3)
        scores = ((voters * scaling) @ key.transpose(-1, -2)).float().softmax(-1)[..., layout.search].mean((1, 2))
        best = scores.topk(count, dim=1, sorted=True).indices
        search = x[:, layout.search].gather(1, best.unsqueeze(2).expand(-1, -1, x.shape[2]))
        kept = best if kept is None else kept.gather(1, best)
        return torch.cat([x[:, : layout.search.start], search], 1), kept, replace(layout, search_tokens=count)


class ViTLayer(GradientCheckpointingLayer):
    """Pre-norm block whose two residual sums are seams; may drop search tokens between them.

    The last layer computes only the rows that are read, unless the adapter at its MLP must see all of them.
    """

    def __init__(self, config, index: int):
        super().__init__()
        self.is_last = index == config.num_hidden_layers - 1
        rate = config.drop_path_rate * index / max(config.num_hidden_layers - 1, 1)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.attention_junction = ResidualJunction(rate)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = self.new_mlp(config)
        self.mlp_junction = ResidualJunction(rate)
        eliminates = index in getattr(config, "elimination_layers", ())
        self.elimination = CandidateElimination(config.elimination_template_rows) if eliminates else None

    @staticmethod
    def new_mlp(config) -> nn.Module:
        """The MLP of a layer."""
        return Mlp(config)

    @property
    def drops_template(self) -> bool:
        """Whether the template's rows end before this layer's attention junction."""
        return self.is_last and not self.mlp_junction.needs_all_rows

    def packed(self, dtype: torch.dtype) -> "PackedLayer":
        """This layer for inference."""
        return PackedLayer(self)

    def forward(
        self, x: Tensor, kept: Tensor | None, layout: TokenLayout, keep_rate: float = 1.0, **kwargs
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, TokenLayout]:
        """Tokens `[S*B, N, C]` and the places of their search tokens (None: all) to the new tokens, attention
        weights, places, an auxiliary loss and the new layout."""
        last = self.drops_template
        h = self.norm1(x)
        query_tokens = layout.drop_template(h) if last else h
        attended, weights, query, key = self.attention.attend(h, query_tokens, layout, **kwargs)
        if last:
            x, h, layout = layout.drop_template(x), query_tokens, layout.without_template()
        x, loss1 = self.join(self.attention_junction, self.attention, attended, x, h, self.norm1, layout)
        if self.elimination is not None and keep_rate < 1.0 and not last:
            x, kept, layout = self.elimination(x, kept, query, key, self.attention.scaling, layout, keep_rate)
        h = self.norm2(x)
        x, loss2 = self.join(self.mlp_junction, self.mlp, self.mlp.inner(h), x, h, self.norm2, layout)
        return x, weights, kept, add_losses(loss1, loss2), layout

    def join(
        self, junction: nn.Module, sublayer: nn.Module, inner: Tensor, x: Tensor, h: Tensor, norm: nn.Module,
        layout: TokenLayout,
    ) -> tuple[Tensor, Tensor | None]:
        """What a sub-layer has found, before its last map, to the new tokens and an auxiliary loss."""
        return junction(x, h, sublayer.project(inner), norm, layout)


def _last_map(linear: nn.Module, scale: nn.Module) -> nn.Module:
    """The last map of a sub-layer for inference, with the sub-layer's scale in it, if there is one."""
    found = LinearMap.of(linear)
    return packed_map(found if isinstance(scale, nn.Identity) else found.scaled(scale.gamma.detach()))


class PackedAttention(nn.Module):
    """An `Attention` for inference: one product for queries, keys and values, with the scale of the logits in it."""

    scaling = 1.0
    _heads = Attention._heads

    def __init__(self, attention: Attention, is_last: bool):
        super().__init__()
        self.head_dim, self.core = attention.head_dim, attention.core
        query, key, value = (LinearMap.of(m) for m in (attention.q_proj, attention.k_proj, attention.v_proj))
        query = query.scaled(attention.scaling)
        # the last layer asks for the queries of some rows only, so its queries are a product of their own
        self.q = packed_map(query) if is_last else None
        self.kv = PackedMaps([key, value] if is_last else [query, key, value])
        self.project = _last_map(attention.o_proj, attention.scale)

    def attend(
        self, h: Tensor, query_tokens: Tensor, layout: TokenLayout, **kwargs
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        first = [] if self.q is None else [self.q(query_tokens)]
        query, key, value = map(self._heads, [*first, *self.kv(h)])
        output, weights = self.core(query, key, value, 1.0, layout, **kwargs)
        return output.flatten(2), weights, query, key


class PackedMlp(nn.Module):
    """An `Mlp` or a gated one for inference."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.gated = hasattr(mlp, "w12")
        first, last = (mlp.w12, mlp.w3) if self.gated else (mlp.fc1, mlp.fc2)
        self.first, self.project = packed_map(LinearMap.of(first), gelu=not self.gated), _last_map(last, mlp.scale)

    def inner(self, h: Tensor) -> Tensor:
        inner = self.first(h)
        if self.gated:
            gate, inner = inner.chunk(2, -1)
            inner = F.silu(gate).mul_(inner)
        return inner


class PackedLayer(ViTLayer):
    """A `ViTLayer` for inference: the same seams, fewer and larger products, residuals added by the last of them."""

    def __init__(self, layer: ViTLayer):
        nn.Module.__init__(self)
        self.is_last = layer.is_last
        self.attention, self.mlp = PackedAttention(layer.attention, layer.is_last), PackedMlp(layer.mlp)
        self.norm1, self.norm2, self.elimination = layer.norm1, layer.norm2, layer.elimination
        self.attention_junction, self.mlp_junction = layer.attention_junction, layer.mlp_junction

    def join(
        self, junction: nn.Module, sublayer: nn.Module, inner: Tensor, x: Tensor, h: Tensor, norm: nn.Module,
        layout: TokenLayout,
    ) -> tuple[Tensor, Tensor | None]:
        if type(junction) is ResidualJunction:
            return sublayer.project(inner, x), None
        if hasattr(junction, "adapted_sum"):
            return junction.adapted_sum(sublayer.project(inner, x), x, h, norm, layout), None
        return super().join(junction, sublayer, inner, x, h, norm, layout)


@dataclass
class TrunkOutput(ModelOutput):
    """What a trunk returns: fused search features `[B, Nx, C]`, the auxiliary loss, the prefix tokens of all streams
    fused `[B, P, C]` and apart `[S*B, P, C]` (the state); on request the tokens before the first layer and after each,
    and the layers' attention weights, None where an implementation gives none."""

    last_hidden_state: Tensor | None = None
    auxiliary_loss: Tensor | None = None
    token: Tensor | None = None
    state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ViTTrunk(TrackerPreTrainedModel):
    """Template and search pixels to fused search features: embeddings, layers, final norm and the fusion seam."""

    embeddings_class: type[nn.Module] = Embeddings
    layer_class: type[ViTLayer] = ViTLayer

    parts_left_out = ("head.", "neck.")
    _no_split_modules = ["ViTLayer"]

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = self.embeddings_class(config)
        self.layers = nn.ModuleList(self.layer_class(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fusion = StreamFusion(config.fusion)
        self.post_init()

    def layout(self, template_tokens: int, prefix: int = 0) -> TokenLayout:
        """The layout of a full sequence with so many template and prefix tokens."""
        config = self.config
        z, x = config.template_grid, config.search_grid
        return TokenLayout(config.streams, prefix, template_tokens, x * x, (z, z), (x, x))

    def embed_template(self, template: Tensor, template_mask: Tensor | None = None) -> Tensor:
        """Template pixels `[B, T, S, 3, h, w]` to tokens `[S*B, T*Nz, C]`, once per template; no mask is read."""
        check_pixels("template", template, 6, self.config.streams, self.config.template_size)
        return self.embeddings.template(template)

    @can_return_tuple
    def forward(
        self, search: Tensor, template: Tensor, template_mask: Tensor | None = None, state: Tensor | None = None,
        elimination_keep_rate: float | None = None, **kwargs,
    ) -> TrunkOutput:
        """See `ModelForTracking.forward`."""
        check_pixels("search", search, 5, self.config.streams, self.config.search_size)
        tokens = template if template.ndim == 3 else self.embed_template(template, template_mask)
        rows, cells = self.config.streams * search.shape[0], self.config.template_grid**2
        width = self.config.hidden_size
        if tokens.shape[0] != rows or tokens.shape[1] % cells or tokens.shape[2] != width:
            raise ValueError(
                f"template has {list(tokens.shape)} tokens, expected [{rows}, T * {cells}, {width}]: one template per "
                f"search crop ({search.shape[0]}) and stream."
            )
        parts = [tokens, self.embeddings.search(search)]
        prefix = self.prefix_tokens(state, rows)
        x = torch.cat(parts if prefix is None else [prefix.to(tokens.dtype), *parts], 1)
        layout = self.layout(tokens.shape[1], 0 if prefix is None else prefix.shape[1])
        if elimination_keep_rate is None:
            elimination_keep_rate = getattr(self.config, "elimination_keep_rate", 1.0)
        return self.encode(x, layout, elimination_keep_rate, **kwargs)

    def prefix_tokens(self, state: Tensor | None, rows: int) -> Tensor | None:
        """What stands before the template, `[rows, P, C]` with `rows` = S*B: nothing, where no model says more."""
        return None

    def encode(
        self, x: Tensor, layout: TokenLayout, keep_rate: float = 1.0, output_hidden_states: bool | None = None,
        output_attentions: bool | None = None, **kwargs,
    ) -> TrunkOutput:
        """All tokens `[S*B, N, C]` through the layers, the final norm and the fusion of streams."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        states, attentions, levels = [x], [], []
        full, kept, loss = layout, None, None
        for layer in self.layers:
            x, weights, kept, layer_loss, layout = layer(x, kept, layout, keep_rate, **kwargs)
            loss = add_losses(loss, layer_loss)
            if output_hidden_states:
                states.append(x)
            if output_attentions:
                attentions.append(weights)
            if self.fusion.needs_levels:
                levels.append(x[:, layout.search])
        features = self.norm(layout.drop_template(x))
        state = features[:, : layout.prefix] if layout.prefix else None
        features = features[:, layout.prefix :]
        if kept is not None:
            places = kept.unsqueeze(2).expand_as(features)
            features = features.new_zeros(x.shape[0], full.search_tokens, x.shape[2]).scatter(1, places, features)
        fused, token = self.fusion(features, tuple(levels) or None, state, full.search_only())
        return TrunkOutput(
            last_hidden_state=fused, auxiliary_loss=loss, token=token, state=state,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )  # fmt: skip


def check_pixels(name: str, pixels: Tensor, ndim: int, streams: int, side: int) -> None:
    """Raises ValueError unless `pixels` has `ndim` axes that end in `[streams, 3, side, side]`."""
    expected = f"[{'B, T' if ndim == 6 else 'B'}, {streams}, 3, {side}, {side}]"
    if pixels.ndim != ndim or tuple(pixels.shape[-4:]) != (streams, 3, side, side):
        raise ValueError(
            f"{name} has shape {list(pixels.shape)}, expected {expected}: {streams} stream(s) of {side} px crops. "
            "The image processor's sizes and the number of streams must be those of the model's config."
        )


@torch.no_grad()
def init_vit_weights(module: nn.Module, std: float) -> None:
    """Initial values of the family: truncated normal linear maps and position tables, Xavier convolutions."""
    if isinstance(module, nn.Linear):
        init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        init.xavier_uniform_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, Embeddings):
        init.trunc_normal_(module.template_position, std=std)
        init.trunc_normal_(module.search_position, std=std)
