"""The mixture's junction rewritten for inference: fewer and larger products, the same numbers."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrackers.modeling.packing import PackedLinear
from mmtrackers.modeling.seams import TokenLayout

from .mixture import SDMoE, activated


class PackedMixtureJunction(nn.Module):
    """A residual junction and a masked `SDMoE` behind it, in four products.

    Both routers are one product, in float32 whatever the tokens are; the inputs of all experts are one, in the
    tokens' precision, and their answers, times `scale`, are added to the tokens by the last.
    """

    needs_all_rows = False

    def __init__(self, mixture: SDMoE, scale: float, dtype: torch.dtype):
        super().__init__()
        self.config = config = mixture.config
        self.norm, rank = copy.deepcopy(mixture.norm).float(), mixture.shared_up.in_features

        def joined(*maps: nn.Linear, dim: int = 0) -> Tensor:
            return torch.cat([linear.weight.detach() for linear in maps], dim)

        shared_router = [mixture.shared_router] if config.dense_gate == "softmax" else []
        self.routers = PackedLinear(joined(mixture.router, *shared_router).float(), None)
        gates = [mixture.gate] if config.expert_gate == "parallel" else []
        self.inputs = PackedLinear(joined(*gates, mixture.down, mixture.shared_down).to(dtype), None)
        self.widths = [*([config.num_experts * rank] * (1 + len(gates))), rank]
        serial = mixture.gate.detach().to(dtype) if config.expert_gate == "serial" else None
        self.register_buffer("gate", serial, persistent=False)
        self.subnets = PackedLinear(mixture.subnets.weight.detach().to(dtype), None)
        answers = joined(mixture.up, mixture.shared_up, dim=1)
        if config.dense_gate == "mean":
            answers[:, -rank:] /= config.num_shared_subnets
        self.answers = PackedLinear((scale * answers).to(dtype), None)

    def forward(
        self, x: Tensor, h: Tensor, y: Tensor, norm: nn.Module, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        config, x = self.config, (x + y).flatten(0, 1)
        h = self.norm(x.float())
        logits, shared = self.routers(h).tensor_split((config.num_experts,), 1)
        gates = self._gates(logits.softmax(1)).unsqueeze(2).to(x.dtype)
        *experts, below = self.inputs(h.to(x.dtype)).split(self.widths, 1)
        *gate, inner = (part.unflatten(1, (config.num_experts, -1)) for part in experts)
        if self.gate is not None:
            gate = [torch.einsum("ner,esr->nes", inner, self.gate)]
        inner = activated(inner, *gate)
        dense = F.silu(self.subnets(below)).unflatten(1, (config.num_shared_subnets, -1))
        if config.dense_gate == "softmax":
            dense = dense * shared.softmax(1).unsqueeze(2).to(x.dtype)
        wide = torch.cat([(inner * gates).flatten(1), dense.sum(1)], 1)
        return self.answers(wide, x).view_as(y), None

    def _gates(self, probabilities: Tensor) -> Tensor:
        """The chosen experts' weights at their places, zeros elsewhere."""
        if self.config.top_k == 1:
            weights, chosen = probabilities.max(1, keepdim=True)
        else:
            ordered = probabilities.sort(dim=1, descending=True, stable=True)
            weights, chosen = (part[:, : self.config.top_k] for part in ordered)
            weights = weights / weights.sum(1, keepdim=True) if self.config.router_renormalise else weights
        return torch.zeros_like(probabilities).scatter_(1, chosen, weights)
