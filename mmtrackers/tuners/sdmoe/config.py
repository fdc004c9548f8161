"""Configuration of SDMoEA's adapter."""

import math
from dataclasses import dataclass
from typing import ClassVar

from mmtrackers.tuners.registration import TrackerPeftType, TrackerTunerConfig

_CHOICES = {
    "expert_gate": ("parallel", "serial", "none"),
    "dense_gate": ("softmax", "mean", "sum"),
    "gram_mode": ("token_cross", "channel_cross", "none"),
    "hyperedge_rule": ("epsilon", "knn"),
    "hyper_scope": ("joint", "per_level"),
    "hyper_conv": ("mean", "sym"),
}
_COUNTS = ("num_experts", "top_k", "adapter_reduction", "num_shared_subnets", "hyper_dim", "hyper_knn", "hyper_layers")


@dataclass
class SDMoEConfig(TrackerTunerConfig):
    """Adapter of SDMoEA (arXiv 2603.13719): sparse and dense-shared experts in every block, hypergraph fusion.

    An unofficial reconstruction: no code of the authors is public. From the paper are the parts themselves, one set
    of parameters for all modalities, four experts of which one is chosen per token, a width of a twelfth, four shared
    sub-networks and a balance loss; every other default was inferred, and is a field so that it can be corrected.

    Args:
        num_experts (`int`), top_k (`int`): sparse experts, and how many of them a token uses.
        adapter_reduction (`int`): width inside the experts, as a divisor of the token width.
        adapter_dim (`int` or None): the width itself, in place of `adapter_reduction`.
        expert_gate (`str`): "parallel" (`silu(h G) * h D`), "serial" (`silu(u G) * u` with `u = h D`), "none"
            (`silu(h D)`).
        router_renormalise (`bool`): divide the chosen experts' probabilities by their sum; only with `top_k` > 1, as
            with one expert the tracking loss could not reach the router.
        balance_loss_coef (`float`): weight of the balance loss, which is summed over the blocks.
        gather_experts (`bool`): compute only the chosen experts, by sorting tokens; pays with many experts. Otherwise
            all experts are computed at once and masked, with the same result; that form also exports.
        num_shared_subnets (`int`), dense_gate (`str`): shared sub-networks, weighted by a "softmax" gate, by their
            "mean" or their "sum".
        adapter_prenorm (`bool`): whether a layer norm of its own stands before router and experts.
        adapter_scale (`float`): factor on what the mixture adds to a token.
        use_gsahf (`bool`): fuse the streams by Gram matrices and a hypergraph; needs two streams.
        hyper_levels (`list[int]` or None): blocks whose search tokens are fused; None for the ends of the quarters.
        hyper_dim (`int`): width inside the fusion.
        gram_mode (`str`), gram_temperature (`float`): alignment of the streams by a "token_cross" or "channel_cross"
            Gram matrix, or "none"; temperature of its softmax.
        hyperedge_rule (`str`), hyper_epsilon (`float`), hyper_knn (`int`): which vertices a hyperedge joins: those
            nearer than `hyper_epsilon` to its center (on unit-length features), or the `hyper_knn` nearest.
        hyper_scope (`str`): one graph over all levels ("joint") or one for each ("per_level").
        hyper_conv (`str`), hyper_layers (`int`): two-step "mean" or symmetric normalization; number of layers.
        modules_to_save (`list[str]`): `["head"]`, should the published tracker's head prove to be trained.
    """

    own_type = TrackerPeftType.SDMOE
    inferred: ClassVar[tuple[str, ...]] = (
        "the form of the experts' gate (`expert_gate`), the weights of the shared sub-networks (`dense_gate`) and "
        "their activation",
        "a layer norm before router and experts (`adapter_prenorm`), no biases, the scale, the initial values",
        "chosen experts weighted by their raw probabilities, without noise and without a limit of tokens per expert",
        "form and weight of the balance loss (`balance_loss_coef`), summed over the blocks",
        "the blocks that are fused (`hyper_levels`), the width inside (`hyper_dim`), search tokens only",
        "form and temperature of the Gram alignment (`gram_mode`, `gram_temperature`)",
        "rule and reach of the hyperedges, one graph over levels and streams, the form of its convolution and of the "
        "weights of the levels (`hyperedge_rule`, `hyper_epsilon`, `hyper_scope`, `hyper_conv`, `hyper_layers`)",
        "how the streams meet: the mean of their features and of their track tokens, plus the fusion; each stream "
        "carries its own track token; the head stays frozen",
        "the crop sizes, the mix of training data and the recipe",
    )

    num_experts: int = 4
    top_k: int = 1
    adapter_reduction: int = 12
    adapter_dim: int | None = None
    expert_gate: str = "parallel"
    router_renormalise: bool = False
    balance_loss_coef: float = 0.01
    gather_experts: bool = False
    num_shared_subnets: int = 4
    dense_gate: str = "softmax"
    adapter_prenorm: bool = True
    adapter_scale: float = 1.0
    use_gsahf: bool = True
    hyper_levels: list[int] | None = None
    hyper_dim: int = 64
    gram_mode: str = "token_cross"
    gram_temperature: float = 0.1
    hyperedge_rule: str = "epsilon"
    hyper_epsilon: float = 0.8
    hyper_knn: int = 16
    hyper_scope: str = "joint"
    hyper_conv: str = "mean"
    hyper_layers: int = 1

    def check(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}.")
        small = [name for name in _COUNTS if getattr(self, name) < 1]
        if small or (self.adapter_dim is not None and self.adapter_dim < 1):
            raise ValueError(f"{', '.join(small) or 'adapter_dim'} must be at least 1.")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, but there are only {self.num_experts} experts (num_experts).")
        if self.router_renormalise and self.top_k == 1:
            raise ValueError(
                "router_renormalise with top_k=1 would make every chosen weight 1, and the tracking loss could not "
                "reach the router: use top_k > 1 or leave it off."
            )
        if self.gram_temperature <= 0 or not 0 < self.hyper_epsilon < 2:
            raise ValueError(
                f"gram_temperature is {self.gram_temperature} and hyper_epsilon {self.hyper_epsilon}; expected a "
                "positive number and a distance of unit vectors between 0 and 2."
            )

    def default_targets(self) -> str:
        return rf"(?:.*\.)?(?:layers\.\d+\.mlp_junction{'|fusion' if self.use_gsahf else ''})"

    def rank(self, dim: int) -> int:
        """Width inside the experts for tokens of width `dim`."""
        rank = self.adapter_dim or dim // self.adapter_reduction
        if rank < 1:
            raise ValueError(
                f"adapter_reduction={self.adapter_reduction} leaves nothing of the token width {dim}: lower it, or "
                "set adapter_dim."
            )
        return rank

    def levels(self, depth: int) -> list[int]:
        """The blocks whose tokens are fused, in a trunk of `depth` blocks."""
        if self.hyper_levels is None:
            return sorted({math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4)})
        levels = list(self.hyper_levels)
        if not levels or levels != sorted(set(levels)) or levels[0] < 0 or levels[-1] >= depth:
            raise ValueError(f"hyper_levels is {levels}, expected increasing numbers of blocks from 0 to {depth - 1}.")
        return levels
