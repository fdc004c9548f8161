"""Configuration of SPMTrack's adapter."""

import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from mmtrackers.tuners.registration import TrackerPeftType

# Every linear map of every layer; SwiGLU trunks have w12 and w3 in place of fc1 and fc2.
LINEAR_MAPS = r"(?:.*\.)?layers\.\d+\.(?:attention\.[qkvo]_proj|mlp\.(?:fc1|fc2|w12|w3))"


@dataclass
class TMoEConfig(PeftConfig):
    """Adapter of SPMTrack (arXiv 2503.18338): a dense mixture of low-rank experts beside frozen linear maps.

    The defaults are the published models'.

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
        exclude_modules, modules_to_save: as in peft.

    Raises:
        ValueError: a field out of range, or both switches of the experts on.

    Example:
        >>> TMoEConfig(r=16, alpha=32, target_modules=["q_proj", "v_proj"]).scaling
        2.0
    """

    r: int = field(default=64, metadata={"help": "Rank of the experts."})
    alpha: float = field(default=64.0, metadata={"help": "Numerator of the mixture's scale."})
    num_experts: int = field(default=4, metadata={"help": "Experts per map."})
    use_rsexpert: bool = field(default=False, metadata={"help": "Divide by the root of the rank."})
    init: str = field(default="bert", metadata={"help": "Initial values: bert, lora or gaussian."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout before the down-projection."})
    shared_low_rank_expert: bool = field(default=False, metadata={"help": "One more expert, without a gate."})
    routed_compression: bool = field(default=False, metadata={"help": "A down-projection per expert."})
    target_modules: str | list[str] | None = field(default=None, metadata={"help": "Linear maps; None: all."})
    exclude_modules: str | list[str] | None = field(default=None, metadata={"help": "Modules to leave out."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Base modules trained in full."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TrackerPeftType.TMOE
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
        if self.target_modules is None:
            self.target_modules = LINEAR_MAPS
        elif isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)

    @property
    def scaling(self) -> float:
        """Factor on the mixture."""
        return self.alpha / (math.sqrt(self.r) if self.use_rsexpert else self.r)


def tmoe_config(**fields: Any) -> TMoEConfig:
    """SPMTrack's adapter: experts beside every linear map of every layer; state token, token types and head in full.

    Args:
        fields: fields of `TMoEConfig`.

    Example:
        >>> sorted(tmoe_config().modules_to_save)
        ['head', 'token_type', 'track_token']
    """
    return TMoEConfig(**({"modules_to_save": ["track_token", "token_type", "head"]} | fields))
