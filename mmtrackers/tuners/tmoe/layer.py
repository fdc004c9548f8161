"""The layer of the TMOE tuner: a dense mixture of low-rank experts beside a frozen linear map."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrackers.modeling.packing import LinearMap, gated
from mmtrackers.tuners.registration import TrackerTunerLayer

from .config import TMoEConfig


class TMoELinear(TrackerTunerLayer):
    """`W x + b + s * sum_e g_e U_e D x` with gates `g = softmax(R x)` per token (arXiv 2503.18338).

    All experts are one product: the gates weigh `D x`, and `[U_0 | ... | U_E]` multiplies the gated vectors laid side
    by side, so that no expert's full-width answer exists. `D` and `R` are one product too.

    Parameters of an adapter: `tmoe_down` `[r + E, in]`, the rows of `D` (a block of `r` per expert with
    `routed_compression`) and under them those of `R`; `tmoe_up` `[out, E * r]`, and a last block of `r` columns for
    the expert without a gate.
    """

    adapter_layer_names = ("tmoe_down", "tmoe_up")

    def make_parameters(self, adapter_name: str, config: TMoEConfig) -> None:
        inner, outer = self.base_layer.in_features, self.base_layer.out_features
        r, experts = config.r, config.num_experts
        down = torch.empty(r * experts if config.routed_compression else r, inner)
        up = torch.zeros(outer, r * (experts + config.shared_low_rank_expert))
        if config.init == "bert":
            nn.init.trunc_normal_(down, std=0.02)
            nn.init.trunc_normal_(up, std=0.02)
        elif config.init == "lora":
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        else:
            nn.init.normal_(down, std=1 / r)
        router = torch.empty(experts, inner).uniform_(-1 / math.sqrt(inner), 1 / math.sqrt(inner))
        self.tmoe_down[adapter_name] = nn.Parameter(torch.cat([down, router]))
        self.tmoe_up[adapter_name] = nn.Parameter(up)

    def adapted(self, name: str, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        y = self.base_layer(x)
        down, up, config = self.tmoe_down[name], self.tmoe_up[name], self.configs[name]
        experts = config.num_experts
        # two-dimensional: torch takes another kernel for a 3-D product when the parameter requires a gradient
        rows = x.reshape(-1, x.shape[-1])
        if not torch.is_autocast_enabled(x.device.type):
            rows = rows.to(down.dtype)
        if self.training and config.dropout:
            hidden = F.linear(F.dropout(rows, config.dropout), down[:-experts])
            logits = F.linear(rows, down[-experts:])
        else:
            hidden, logits = F.linear(rows, down).tensor_split((-experts,), 1)
        wide = gated(logits.softmax(-1), hidden, config.r, up.shape[1])
        mixed = torch.addmm(y.reshape(-1, y.shape[-1]).to(wide.dtype), wide, up.T, alpha=config.scaling)
        return mixed.view(y.shape).to(y.dtype)

    def linear_map(self) -> LinearMap:
        """The map and its active experts, for packing; the router stays in float32."""
        name, base = self.active_name, LinearMap.of(self.base_layer)
        if name is None:
            return base
        config, dtype = self.configs[name], base.weight.dtype
        down, router = self.tmoe_down[name].detach().tensor_split((-config.num_experts,))
        up = self.tmoe_up[name].detach() * config.scaling
        return replace(base, down=down.to(dtype), router=router.float(), up=up.to(dtype), r=config.r)
