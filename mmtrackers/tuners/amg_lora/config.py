"""Configuration of SEATrack's adapter."""

from dataclasses import dataclass, field

from mmtrackers.tuners.registration import TrackerPeftType, TrackerTunerConfig


@dataclass
class AMGLoraConfig(TrackerTunerConfig):
    """Adapter of SEATrack (arXiv 2604.12502): low-rank k and v, guided attention maps, mixtures of experts.

    The defaults are the published model's; the other values of its ablation tables are reached by these fields.

    Args:
        r (`int`): rank of the low-rank maps.
        lora_targets (`list[str]`): projections with a low-rank map, out of "q", "k", "v" (table 8).
        lora_dropout (`float`): dropout on the low-rank output, in training.
        use_amg (`bool`): mix the streams' attention maps (table 2).
        amg_init (`float`): initial mixing weights (table 3); at 1 each stream starts with the other stream's map.
        use_hmoe (`bool`): mixtures of experts after attention and MLP (table 2).
        hmoe_rank, hmoe_heads, hmoe_experts_attn, hmoe_experts_ffn (`int`): their sizes (tables 4, 5, 7).
        hmoe_dropout (`float`): their dropout, in training.
        adapter_layers (`list[int]` or None): layers with an adapter; None for every second one, from layer 1.
    """

    own_type = TrackerPeftType.AMG_LORA

    r: int = 8
    lora_targets: list[str] = field(default_factory=lambda: ["k", "v"])
    lora_dropout: float = 0.1
    use_amg: bool = True
    amg_init: float = 1.0
    use_hmoe: bool = True
    hmoe_rank: int = 4
    hmoe_heads: int = 2
    hmoe_experts_attn: int = 4
    hmoe_experts_ffn: int = 8
    hmoe_dropout: float = 0.1
    adapter_layers: list[int] | None = None

    def check(self) -> None:
        unknown = set(self.lora_targets) - {"q", "k", "v"}
        if unknown:
            raise ValueError(f"lora_targets {sorted(unknown)} unknown, expected some of 'q', 'k', 'v'.")
        if min(self.r, self.hmoe_rank, self.hmoe_heads, self.hmoe_experts_attn, self.hmoe_experts_ffn) < 1:
            raise ValueError("r, hmoe_rank, hmoe_heads, hmoe_experts_attn and hmoe_experts_ffn must be at least 1.")

    def default_targets(self) -> str:
        layers = r"\d*[13579]" if self.adapter_layers is None else "|".join(map(str, self.adapter_layers))
        places = [rf"attention\.{name}_proj" for name in self.lora_targets]
        places += [r"attention\.core"] if self.use_amg else []
        places += ["attention_junction", "mlp_junction"] if self.use_hmoe else []
        if not places:
            raise ValueError("Nothing to train: lora_targets is empty, use_amg and use_hmoe are off.")
        return rf"(?:.*\.)?layers\.(?:{layers})\.(?:{'|'.join(places)})"
