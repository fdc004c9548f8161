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
        self.norm, self.experts, self.top_k = copy.deepcopy(mixture.norm).float(), mixture.experts, mixture.top_k
        self.renormalize, self.expert_gate = mixture.renormalize, mixture.expert_gate
        self.dense_gate = mixture.dense_gate
        self.subnet_count, rank = mixture.subnet_count, mixture.shared_up.in_features

        def joined(*maps: nn.Linear, dim: int = 0) -> Tensor:
            return torch.cat([linear.weight.detach() for linear in maps], dim)

        shared_router = [mixture.shared_router] if mixture.dense_gate == "softmax" else []
        self.routers = PackedLinear(joined(mixture.router, *shared_router).float(), None)
        gates = [mixture.gate] if mixture.expert_gate == "parallel" else []
        self.inputs = PackedLinear(joined(*gates, mixture.down, mixture.shared_down).to(dtype), None)
        self.widths = [*([self.experts * rank] * (1 + len(gates))), rank]
        self.register_buffer(
            "gate", mixture.gate.detach().to(dtype) if mixture.expert_gate == "serial" else None, persistent=False
        )
        self.subnets = PackedLinear(mixture.subnets.weight.detach().to(dtype), None)
        answers = joined(mixture.up, mixture.shared_up, dim=1)
        if mixture.dense_gate == "mean":
            answers[:, -rank:] /= self.subnet_count
        self.answers = PackedLinear((scale * answers).to(dtype), None)

    def forward(
        self, x: Tensor, h: Tensor, y: Tensor, norm: nn.Module, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        x = (x + y).flatten(0, 1)
        h = self.norm(x.float())
        logits, shared = self.routers(h).tensor_split((self.experts,), 1)
        gates = self._gates(logits.softmax(1)).unsqueeze(2).to(x.dtype)
        *experts, below = self.inputs(h.to(x.dtype)).split(self.widths, 1)
        inner = experts[-1].unflatten(1, (self.experts, -1))
        gate = None
        if self.expert_gate == "parallel":
            gate = experts[0].unflatten(1, (self.experts, -1))
        elif self.expert_gate == "serial":
            gate = torch.einsum("ner,esr->nes", inner, self.gate)
        inner = activated(inner, gate)
        dense = F.silu(self.subnets(below)).unflatten(1, (self.subnet_count, -1))
        if self.dense_gate == "softmax":
            dense = dense * shared.softmax(1).unsqueeze(2).to(x.dtype)
        wide = torch.cat([(inner * gates).flatten(1), dense.sum(1)], 1)
        return self.answers(wide, x).view_as(y), None

    def _gates(self, probabilities: Tensor) -> Tensor:
        """The chosen experts' weights at their places, zeros elsewhere."""
        if self.top_k == 1:
            weights, chosen = probabilities.max(1, keepdim=True)
        else:
            ordered = probabilities.sort(dim=1, descending=True, stable=True)
            weights, chosen = (part[:, : self.top_k] for part in ordered)
            weights = weights / weights.sum(1, keepdim=True) if self.renormalize else weights
        return torch.zeros_like(probabilities).scatter_(1, chosen, weights)
