"""Configuration of LoRAT and of its LoRA adapter."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from mmtrackers.modeling.configuration import CropConfigMixin

# width, depth, heads, SwiGLU, stochastic depth of the published trackers
SIZES = {
    "small": (384, 12, 6, False, 0.0),
    "base": (768, 12, 12, False, 0.0),
    "large": (1024, 24, 16, False, 0.1),
    "giant": (1536, 40, 24, True, 0.4),
}
TEMPLATE_SIZES = {224: 112, 378: 196}


@strict
class LoRATConfig(CropConfigMixin, PreTrainedConfig):
    """Configuration of a LoRAT tracker (arXiv 2403.05231); the defaults are ViT-B at 224 pixels.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, mlp_ratio, qkv_bias, layer_norm_eps: DINOv2's.
        use_swiglu_ffn (`bool`): SwiGLU in place of the MLP, as in DINOv2's giant model.
        patch_size, template_size, search_size, streams, modality, fusion: as in [`OSTrackConfig`].
        drop_path_rate (`float`): stochastic depth, the same in every layer; above 0.1 a part of the batch is drawn
            before each sub-layer.
        window_penalty (`float`): weight of the window where the best cell is chosen.

    Example:
        >>> LoRATConfig.published("large", 378).search_grid
        27
    """

    model_type = "mmt_lorat"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int | float = 4
    use_swiglu_ffn: bool = False
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    patch_size: int = 14
    template_size: int = 112
    search_size: int = 224
    streams: int = 1
    modality: str = "rgb"
    fusion: str = "mean"
    drop_path_rate: int | float = 0.0
    window_penalty: int | float = 0.45
    initializer_range: float = 0.02

    @classmethod
    def published(cls, size: str, search_size: int | None = None, **fields: Any) -> "LoRATConfig":
        """The configuration of a published tracker: "small", "base", "large" or "giant", at 224 or 378 pixels (by
        default the class's); `fields` say what shall be otherwise."""
        search_size = search_size or cls().search_size
        if size not in SIZES or search_size not in TEMPLATE_SIZES:
            raise ValueError(
                f"no LoRAT of size {size!r} at {search_size} pixels; published: {', '.join(SIZES)} at "
                f"{' and '.join(map(str, TEMPLATE_SIZES))}. Other trackers are made by the config's own fields."
            )
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "use_swiglu_ffn", "drop_path_rate")
        sizes = {"search_size": search_size, "template_size": TEMPLATE_SIZES[search_size]}
        return cls(**(dict(zip(names, SIZES[size], strict=True)) | sizes | fields))

    @property
    def intermediate_size(self) -> int:
        """Width inside the MLP; of SwiGLU two thirds of it, in steps of 8."""
        width = int(self.hidden_size * self.mlp_ratio)
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width

    def validate_architecture(self) -> None:
        """Checks fields against each other; called by the strict dataclass."""
        self.check_sizes()
        self.check_choices()
        if self.template_size > self.search_size:
            raise ValueError(
                f"template_size {self.template_size} is above search_size {self.search_size}, but the template's "
                "positions are a corner of the search crop's."
            )
        for name in ("drop_path_rate", "window_penalty"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected in [0, 1).")
