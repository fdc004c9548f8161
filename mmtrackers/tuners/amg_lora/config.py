"""Configuration of SEATrack's adapter."""

from dataclasses import dataclass, field

from peft import PeftConfig

from mmtrackers.tuners.registration import TrackerPeftType


@dataclass
class AMGLoraConfig(PeftConfig):
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
        target_modules, exclude_modules, modules_to_save: as in peft; targets follow from the fields above.
    """

    r: int = field(default=8, metadata={"help": "Rank of the low-rank maps."})
    lora_targets: list[str] = field(default_factory=lambda: ["k", "v"], metadata={"help": "Projections with one."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout on the low-rank output."})
    use_amg: bool = field(default=True, metadata={"help": "Mix the streams' attention maps."})
    amg_init: float = field(default=1.0, metadata={"help": "Initial mixing weights."})
    use_hmoe: bool = field(default=True, metadata={"help": "Mixtures of experts on the junctions."})
    hmoe_rank: int = field(default=4, metadata={"help": "Rank inside the mixtures."})
    hmoe_heads: int = field(default=2, metadata={"help": "Sub-tokens per token."})
    hmoe_experts_attn: int = field(default=4, metadata={"help": "Experts after attention."})
    hmoe_experts_ffn: int = field(default=8, metadata={"help": "Experts after the MLP."})
    hmoe_dropout: float = field(default=0.1, metadata={"help": "Dropout inside the mixtures."})
    adapter_layers: list[int] | None = field(default=None, metadata={"help": "Layers; None: every second one."})
    target_modules: str | list[str] | None = field(default=None, metadata={"help": "Follows from the other fields."})
    exclude_modules: str | list[str] | None = field(default=None, metadata={"help": "Modules to leave out."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Base modules trained in full."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TrackerPeftType.AMG_LORA
        unknown = set(self.lora_targets) - {"q", "k", "v"}
        if unknown:
            raise ValueError(f"lora_targets {sorted(unknown)} unknown, expected some of 'q', 'k', 'v'.")
        if min(self.r, self.hmoe_rank, self.hmoe_heads, self.hmoe_experts_attn, self.hmoe_experts_ffn) < 1:
            raise ValueError("r, hmoe_rank, hmoe_heads, hmoe_experts_attn and hmoe_experts_ffn must be at least 1.")
        if self.target_modules is None:
            self.target_modules = self._target_pattern()
        elif isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)

    def _target_pattern(self) -> str:
        layers = r"\d*[13579]" if self.adapter_layers is None else "|".join(map(str, self.adapter_layers))
        places = [rf"attention\.{name}_proj" for name in self.lora_targets]
        places += [r"attention\.core"] if self.use_amg else []
        places += ["attention_junction", "mlp_junction"] if self.use_hmoe else []
        if not places:
            raise ValueError("Nothing to train: lora_targets is empty, use_amg and use_hmoe are off.")
        return rf"(?:.*\.)?layers\.(?:{layers})\.(?:{'|'.join(places)})"
