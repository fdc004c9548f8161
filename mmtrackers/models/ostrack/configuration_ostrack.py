"""Configuration of OSTrack."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from mmtrackers.modeling.configuration import CropConfigMixin

# The template token that stands for the target's center, by grid side (the choice of the published trackers).
_CENTER_CELL = {7: 3, 8: 3, 12: 5, 14: 6}


@strict
class OSTrackConfig(CropConfigMixin, PreTrainedConfig):
    """Configuration of an OSTrack base tracker (arXiv 2203.11991); the defaults are ViT-B at 256 pixels.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, mlp_ratio, qkv_bias, layer_norm_eps: the ViT's.
        patch_size (`int`): side of a patch in pixels.
        template_size, search_size (`int`): sides of the crops in pixels.
        streams (`int`): 1 (RGB) or 2 (RGB and a second modality), stacked on the batch axis.
        modality (`str`): "rgb", or the second stream's "thermal", "depth" or "event"; "any" for one adapter that
            serves all of them, where each video says which it is.
        fusion (`str`): how streams' features are fused, "sum" or "mean".
        stem (`str`): "patch" (one convolution) or "conv" (a small convolutional stem, for tiny models).
        head_channels (`int`): width of the head's first convolution.
        elimination_layers (`list[int]`): layers that drop search tokens; empty for none.
        elimination_keep_rate (`float`): share of search tokens that such a layer keeps.
        elimination_mask (`str`): template tokens that vote: "center" (one token) or "all".
        drop_path_rate (`float`): stochastic depth of the last layer, linear from 0 at the first.
    """

    model_type = "mmt_ostrack"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int | float = 4
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    patch_size: int = 16
    template_size: int = 128
    search_size: int = 256
    streams: int = 1
    modality: str = "rgb"
    fusion: str = "sum"
    stem: str = "patch"
    head_channels: int = 256
    elimination_layers: list[int] | tuple[int, ...] = (3, 6, 9)
    elimination_keep_rate: int | float = 0.7
    elimination_mask: str = "center"
    drop_path_rate: int | float = 0.1
    initializer_range: float = 0.02

    @property
    def intermediate_size(self) -> int:
        """Width inside the MLP."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def elimination_template_rows(self) -> list[int] | None:
        """Indices of the template tokens that vote in candidate elimination; None for all."""
        if self.elimination_mask == "all":
            return None
        side = self.template_grid
        cell = _CENTER_CELL.get(side, (side - 1) // 2)
        return [cell * side + cell]

    def validate_architecture(self) -> None:
        """Checks fields against each other; called by the strict dataclass."""
        self.check_sizes()
        self.check_choices(stem=("patch", "conv"), elimination_mask=("center", "all"))
        if self.stem == "conv" and self.patch_size & (self.patch_size - 1):
            raise ValueError(f"stem='conv' needs a patch_size that is a power of two, got {self.patch_size}.")
        if not 0 < self.elimination_keep_rate <= 1:
            raise ValueError(f"elimination_keep_rate is {self.elimination_keep_rate}, expected in (0, 1].")
        if self.streams == 2 and self.elimination_layers and self.elimination_keep_rate < 1:
            raise ValueError(
                "Candidate elimination works with one stream only (the streams would keep different tokens): "
                "set elimination_layers=[] or elimination_keep_rate=1.0 with streams=2."
            )
