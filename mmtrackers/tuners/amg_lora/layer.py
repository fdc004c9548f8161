"""Layers of the AMG_LORA tuner: low-rank k and v, guided attention, mixtures of experts on the junctions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmtrackers.modeling.packing import softmax_, without_gaps
from mmtrackers.modeling.seams import ResidualJunction, TokenLayout, drop_path
from mmtrackers.tuners.registration import ModuleTunerLayer, TrackerTunerLayer

from .config import AMGLoraConfig
from .hmoe import HMoE, token_groups


class LowRankLinear(TrackerTunerLayer):
    """`W x + b + B A x` with dropout on the low-rank output and scale 1 (SEATrack, section 3.2)."""

    adapter_layer_names = ("amg_lora_A", "amg_lora_B")

    def make_parameters(self, adapter_name: str, config: AMGLoraConfig) -> None:
        inner, outer = self.base_layer.in_features, self.base_layer.out_features
        down = torch.empty(config.r, inner)
        # the published k and v maps are drawn as one matrix of 2 r rows, and its spread with them
        nn.init.normal_(down, std=math.sqrt(2.0) * math.sqrt(2.0 / (2 * config.r + inner)))
        self.amg_lora_A[adapter_name] = nn.Parameter(down)
        self.amg_lora_B[adapter_name] = nn.Parameter(torch.zeros(outer, config.r))

    def get_delta_weight(self, adapter: str) -> Tensor:
        """`B A` of an adapter, which packing adds to the base's weight."""
        return self.amg_lora_B[adapter] @ self.amg_lora_A[adapter]

    def adapted(self, name: str, x: Tensor) -> Tensor:
        y, down, up = self.base_layer(x), self.amg_lora_A[name], self.amg_lora_B[name]
        delta = F.linear(F.linear(x.to(down.dtype), down), up)
        if self.training and self.configs[name].lora_dropout:
            delta = F.dropout(delta, self.configs[name].lora_dropout)
        return y + delta.to(y.dtype)


class GuidedAttentionCore(TrackerTunerLayer):
    """Attention whose logits take in the other stream's (adaptive mutual guidance, SEATrack, equations 3 and 4).

    `S'_rgb = S_rgb + w_x (S_x - S_rgb)` and `S'_x = S_x + w_rgb (S_rgb - S_x)`, before the softmax; prefix tokens
    attend as without it. The model's attention implementation serves the other layers only.
    """

    adapter_layer_names = ("amg_lora_x_to_rgb", "amg_lora_rgb_to_x")

    def make_parameters(self, adapter_name: str, config: AMGLoraConfig) -> None:
        for name in self.adapter_layer_names:
            getattr(self, name)[adapter_name] = nn.Parameter(torch.full((1,), float(config.amg_init)))

    def adapted(
        self, name: str, query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: TokenLayout, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        query = query if scaling == 1.0 else query * scaling
        factors = self.amg_lora_x_to_rgb[name], self.amg_lora_rgb_to_x[name]
        if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value, *factors)):
            config = getattr(self.base_layer, "config", None)
            if getattr(config, "_attn_implementation", None) == "eager":  # chosen in order to see the weights
                weights = guided_weights(query, key, *factors, layout.prefix).to(value.dtype)
                return (weights @ value).transpose(1, 2), weights
            # maps of all tokens by all tokens are made again for backward: cheaper than keeping three of each layer
            output = checkpoint(guided, query, key, value, *factors, layout.prefix, use_reentrant=False)
            return output.transpose(1, 2), None
        logits = (query @ key.transpose(-1, -2)).float()
        rgb, x = logits.view(2, -1, *logits.shape[1:])[..., layout.prefix :, :]
        difference = x - rgb
        rgb.addcmul_(difference, factors[0])
        x.addcmul_(difference, factors[1], value=-1.0)
        weights = logits.softmax(-1).to(value.dtype)
        return (weights @ value).transpose(1, 2), weights

    def packed(self, dtype: torch.dtype) -> nn.Module:
        """The same for inference; on a CPU head by head."""
        name = self.active_name
        if name is None or self.amg_lora_x_to_rgb[name].device.type != "cpu":
            return self
        return PackedGuidedCore(self.amg_lora_x_to_rgb[name], self.amg_lora_rgb_to_x[name])


def guided_weights(query: Tensor, key: Tensor, into_rgb: Tensor, into_x: Tensor, prefix: int) -> Tensor:
    """Guided attention's weights `[2*B, H, N, N]`, float32, without writing in place."""
    logits = (query @ key.transpose(-1, -2)).float()
    rgb, x = logits.view(2, -1, *logits.shape[1:])[..., prefix:, :]
    difference = x - rgb
    mixed = torch.cat([rgb + into_rgb * difference, x - into_x * difference])
    mixed = mixed if prefix == 0 else torch.cat([logits[:, :, :prefix], mixed], 2)
    return mixed.softmax(-1)


def guided(query: Tensor, key: Tensor, value: Tensor, into_rgb: Tensor, into_x: Tensor, prefix: int) -> Tensor:
    """Guided attention of q, k, v `[2*B, H, N, d]`: `[2*B, H, N, d]`."""
    return guided_weights(query, key, into_rgb, into_x, prefix).to(value.dtype) @ value


# so many heads at a time: their logits stay in the caches
HEADS = 6


class PackedGuidedCore(nn.Module):
    """Guided attention for inference on a CPU, some heads at a time."""

    def __init__(self, into_rgb: Tensor, into_x: Tensor):
        super().__init__()
        self.into_rgb, self.into_x = into_rgb.item(), into_x.item()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: TokenLayout, **kwargs
    ) -> tuple[Tensor, None]:
        tokens, pairs = key.shape[2], key.shape[0] // 2
        query, key, value = without_gaps(query, key, value, scaling)
        output = torch.empty_like(query)
        for rgb, x in zip(range(pairs), range(pairs, 2 * pairs), strict=True):
            for start in range(0, query.shape[1], HEADS):
                heads = slice(start, start + HEADS)
                weights = [torch.bmm(query[i, heads], key[i, heads].mT) for i in (rgb, x)]
                guided_rgb, guided_x = (w[:, layout.prefix :] for w in weights)
                difference = guided_x - guided_rgb
                guided_rgb.add_(difference, alpha=self.into_rgb)
                guided_x.sub_(difference, alpha=self.into_x)
                for i, w in zip((rgb, x), weights, strict=True):
                    torch.bmm(softmax_(w, tokens), value[i, heads], out=output[i, heads])
        return output.transpose(1, 2), None


class MixtureJunction(ModuleTunerLayer):
    """A residual junction followed by a mixture of experts over both streams' tokens, with a residual of its own."""

    adapter_layer_names = ("amg_lora_hmoe",)
    base_layer: ResidualJunction

    def new_adapter(self, config: AMGLoraConfig) -> HMoE:
        experts = config.hmoe_experts_attn if self.place.endswith("attention_junction") else config.hmoe_experts_ffn
        return HMoE(self.dim, experts, config.hmoe_heads, config.hmoe_rank, config.hmoe_dropout)

    def adapted(
        self, name: str, x: Tensor, h: Tensor, y: Tensor, norm: nn.Module, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        x, loss = self.base_layer(x, h, y, norm, layout)
        return self._mixed(name, x, layout), loss

    def adapted_sum(self, total: Tensor, x: Tensor, h: Tensor, norm: nn.Module, layout: TokenLayout) -> Tensor:
        """As `forward` in a packed layer, which has made the residual sum."""
        return total if self.active_name is None else self._mixed(self.active_name, total, layout)

    def _mixed(self, name: str, x: Tensor, layout: TokenLayout) -> Tensor:
        mixture = self.amg_lora_hmoe[name]
        tokens = x.view(layout.streams, -1, *x.shape[1:]).to(mixture.gate.dtype)
        weights, answers = mixture(tokens, token_groups(layout, x.device))
        weights = drop_path(weights.flatten(0, 1), self.base_layer.drop_path_rate, self.training)
        return torch.baddbmm(x, weights.to(x.dtype), answers.repeat(layout.streams, 1, 1).to(x.dtype))
