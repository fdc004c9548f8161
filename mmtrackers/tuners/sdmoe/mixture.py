"""SDMoE: a sparse mixture of experts beside a dense-shared one, token by token (SDMoEA, arXiv 2603.13719)."""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from .config import SDMoEConfig


def softmax_gate(h: Tensor, weight: Tensor) -> Tensor:
    """`softmax(h W^T)` in float32, also under autocast: a rounded router changes its choice."""
    with torch.autocast(h.device.type, enabled=False):
        return F.linear(h.float(), weight.float()).softmax(-1)


def activated(inner: Tensor, gate: Tensor | None = None) -> Tensor:
    """What an expert makes of its narrow tokens, by a gate if it has one."""
    return F.silu(inner) if gate is None else F.silu(gate) * inner


def balance_loss(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """`N sum_e f_e P_e` of a router's probabilities `[n, N]` and the experts `[n, K]` that each token uses: 1 for
    uniform probabilities, N where one expert takes every token for certain.

    The form is Switch Transformer's (arXiv 2101.03961, equation 4) and DeepSeekMoE's. With several processes f and P
    are those of all their tokens, and the mean of the processes' gradients is that of one process with all tokens.
    """
    tokens, experts = probabilities.shape
    own = probabilities.sum(0)
    counts = own.new_zeros(experts).scatter_add_(0, chosen.flatten(), own.new_ones(1).expand(chosen.numel()))
    totals = torch.cat([counts, own.detach(), own.new_full((1,), tokens)])
    if distributed.is_available() and distributed.is_initialized():
        processes = distributed.get_world_size()
        distributed.all_reduce(totals)
        others = totals[experts : 2 * experts] - processes * own.detach()
        own = processes * own + others
    share = totals[:experts] / (chosen.shape[1] * totals[-1])
    return experts * (share * (own / totals[-1])).sum()


class SDMoE(nn.Module):
    """Sum of a sparse mixture (each token's best experts) and a dense-shared one (all sub-networks, gated), each kept
    side by side in one weight."""

    def __init__(self, dim: int, config: SDMoEConfig):
        super().__init__()
        rank, experts, subnets = config.rank(dim), config.num_experts, config.num_shared_subnets
        self.config, self.experts = config, experts
        self.norm = nn.LayerNorm(dim, eps=1e-6) if config.adapter_prenorm else nn.Identity()
        self.router = nn.Linear(dim, experts, bias=False)
        if config.expert_gate == "parallel":
            self.gate = nn.Linear(dim, experts * rank, bias=False)
        elif config.expert_gate == "serial":
            self.gate = nn.Parameter(torch.empty(experts, rank, rank))
        self.down = nn.Linear(dim, experts * rank, bias=False)
        self.up = nn.Linear(experts * rank, dim, bias=False)
        if config.dense_gate == "softmax":
            self.shared_router = nn.Linear(dim, subnets, bias=False)
        self.shared_down = nn.Linear(dim, rank, bias=False)
        self.subnets = nn.Linear(rank, subnets * rank, bias=False)
        self.shared_up = nn.Linear(rank, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero for what leads back to the tokens, so that a fresh adapter changes nothing; else normal, 0.02."""
        for name, parameter in self.named_parameters():
            if name in ("up.weight", "shared_up.weight"):
                nn.init.zeros_(parameter)
            elif not name.startswith("norm."):
                nn.init.trunc_normal_(parameter, std=0.02)

    def route(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Normed tokens `[n, C]` to the probabilities `[n, N]` and the chosen experts `[n, K]`, lower index first
        where probabilities are equal."""
        probabilities = softmax_gate(h, self.router.weight)
        if self.config.top_k == 1:
            return probabilities, probabilities.argmax(1, keepdim=True)
        return probabilities, probabilities.sort(dim=1, descending=True, stable=True).indices[:, : self.config.top_k]

    def sparse(self, h: Tensor, probabilities: Tensor, chosen: Tensor) -> Tensor:
        """The chosen experts' answers `[n, C]`, weighted by their probabilities."""
        weights = probabilities.gather(1, chosen)
        if self.config.router_renormalise:
            weights = weights / weights.sum(1, keepdim=True)
        if self.config.gather_experts:
            return self._gathered(h, weights, chosen)
        gates = torch.zeros_like(probabilities).scatter(1, chosen, weights)
        inner = self.down(h).unflatten(1, (self.experts, -1))
        gate = None
        if self.config.expert_gate == "parallel":
            gate = self.gate(h).view_as(inner)
        elif self.config.expert_gate == "serial":
            gate = torch.einsum("ner,esr->nes", inner, self.gate.to(inner.dtype))
        inner = activated(inner, gate)
        return self.up((inner * gates.unsqueeze(2).to(inner.dtype)).flatten(1))

    def _gathered(self, h: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The same with each expert's tokens side by side; shapes do not depend on the choice."""
        order = chosen.flatten().argsort(stable=True)
        tokens = order // self.config.top_k
        counts = chosen.new_zeros(self.experts).scatter_add_(0, chosen.flatten(), torch.ones_like(order))
        ends = counts.cumsum(0).int()
        rows = h[tokens]
        inner = grouped_product(rows, self.down.weight.unflatten(0, (self.experts, -1)), ends)
        gate = None
        if self.config.expert_gate == "parallel":
            gate = grouped_product(rows, self.gate.weight.unflatten(0, (self.experts, -1)), ends)
        elif self.config.expert_gate == "serial":
            gate = grouped_product(inner, self.gate, ends)
        inner = activated(inner, gate)
        inner = inner * weights.flatten()[order].unsqueeze(1).to(inner.dtype)
        answers = grouped_product(inner, self.up.weight.unflatten(1, (self.experts, -1)).transpose(0, 1), ends)
        return torch.zeros_like(h).index_add(0, tokens, answers.to(h.dtype))

    def shared(self, h: Tensor) -> Tensor:
        """The shared sub-networks' answer `[n, C]`."""
        inner = F.silu(self.subnets(self.shared_down(h))).unflatten(1, (self.config.num_shared_subnets, -1))
        if self.config.dense_gate == "softmax":
            inner = inner * softmax_gate(h, self.shared_router.weight).unsqueeze(2).to(inner.dtype)
        return self.shared_up(inner.mean(1) if self.config.dense_gate == "mean" else inner.sum(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens `[B, N, C]` of both streams, stacked on the batch axis, to what is added to them, and in training
        the balance loss."""
        # two-dimensional: a 3-D product without a bias takes another kernel when its weight requires a gradient, and
        # a loaded (frozen) adapter would differ from the trained one in the last bits
        h = self.norm(x).flatten(0, 1)
        probabilities, chosen = self.route(h)
        added = self.sparse(h, probabilities, chosen) + self.shared(h)
        return added.view_as(x), balance_loss(probabilities, chosen) if self.training else None


def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows `[n, i]`, sorted by group, times their group's `weight[g]` `[o, i]`; group g ends before row `ends[g]`."""
    outer = weight.shape[1]
    # the kernel wants rows of whole 16 bytes
    pad_in, pad_out = -weight.shape[2] % 8, -outer % 8
    rows = F.pad(rows, (0, pad_in)) if pad_in else rows
    weight = F.pad(weight, (0, pad_in, 0, pad_out)) if pad_in or pad_out else weight
    return F.grouped_mm(rows, weight.to(rows.dtype).transpose(1, 2), offs=ends)[:, :outer]
