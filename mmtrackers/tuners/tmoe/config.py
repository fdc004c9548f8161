"""Configuration of SPMTrack's adapter."""

import math
from dataclasses import dataclass
from typing import Any

from mmtrackers.tuners.registration import TrackerPeftType, TrackerTunerConfig

# Every linear map of every layer; SwiGLU trunks have w12 and w3 in place of fc1 and fc2.
LINEAR_MAPS = r"(?:.*\.)?layers\.\d+\.(?:attention\.[qkvo]_proj|mlp\.(?:fc1|fc2|w12|w3))"


@dataclass
class TMoEConfig(TrackerTunerConfig):
    """Adapter of SPMTrack (arXiv 2503.18338): a dense mixture of low-rank experts beside frozen linear maps.

    The defaults are the published models'; ValueError for a field out of range, or both switches of the experts on.

    Args:
        r (`int`): rank of the experts.
        alpha (`float`): the mixture is scaled by `alpha / r`, or `alpha / sqrt(r)` with `use_rsexpert`.
        num_experts (`int`): experts per map, all of which see every token.
        use_rsexpert (`bool`): see `alpha`.
        init (`str`): "bert" (all matrices from a truncated normal of 0.02, so that a fresh adapter changes the
            output), "lora" (Kaiming-uniform down, zero up) or "gaussian" (normal of `1 / r` down, zero up).
        dropout (`float`): on the input of the down-projection, in training; the router sees all of it.
        shared_low_rank_expert (`bool`): one more expert, that no gate weighs.
        routed_compression (`bool`): a down-projection per expert in place of one for all.
        target_modules (`str` or `list[str]`): linear maps; every one of every layer by default. Any `nn.Linear` of
            any model can be named.

    Example:
        >>> TMoEConfig(r=16, alpha=32, target_modules=["q_proj", "v_proj"]).scaling
        2.0
    """

    own_type = TrackerPeftType.TMOE

    r: int = 64
    alpha: float = 64.0
    num_experts: int = 4
    use_rsexpert: bool = False
    init: str = "bert"
    dropout: float = 0.0
    shared_low_rank_expert: bool = False
    routed_compression: bool = False

    def check(self) -> None:
        if min(self.r, self.num_experts) < 1:
            raise ValueError(f"r and num_experts must be at least 1, got {self.r} and {self.num_experts}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected in [0, 1).")
        if self.init not in ("bert", "lora", "gaussian"):
            raise ValueError(f"init is {self.init!r}, expected 'bert', 'lora' or 'gaussian'.")
        if self.shared_low_rank_expert and self.routed_compression:
            raise ValueError(
                "shared_low_rank_expert needs the one down-projection of all experts, which routed_compression takes "
                "away: switch one of them off."
            )

    def default_targets(self) -> str:
        return LINEAR_MAPS

    @property
    def scaling(self) -> float:
        """Factor on the mixture."""
        return self.alpha / (math.sqrt(self.r) if self.use_rsexpert else self.r)


def tmoe_config(**fields: Any) -> TMoEConfig:
    """SPMTrack's adapter, with fields of `TMoEConfig`: experts beside every linear map of every layer; state token,
    token types and head in full."""
    return TMoEConfig(**({"modules_to_save": ["track_token", "token_type", "head"]} | fields))
