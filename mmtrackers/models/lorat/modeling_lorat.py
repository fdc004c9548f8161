"""LoRAT: one-stream tracking with a frozen DINOv2 and low-rank adapters (Lin et al., arXiv 2403.05231)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from mmtrackers.hub.adapters import PeftConfig
from mmtrackers.hub.folders import TrackerFiles, shorten
from mmtrackers.modeling.base import TrackerPreTrainedModel, own_fields
from mmtrackers.modeling.dinov2 import Dinov2Trunk, init_dinov2_weights
from mmtrackers.modeling.dinov2_weights import dinov2_fields, find_dinov2_config, trunk_from_dinov2
from mmtrackers.modeling.for_tracking import ModelForTracking
from mmtrackers.modeling.mlp_head import MlpHead
from mmtrackers.processing.crops import hann_window
from mmtrackers.tuners.lora import lora_config, start_lora, starts_as_lorat

from .configuration_lorat import SIZES, TEMPLATE_SIZES, LoRATConfig

logger = logging.get_logger(__name__)


class LoRATPreTrainedModel(TrackerPreTrainedModel):
    """Weights' initial values of the family."""

    config: LoRATConfig
    default_adapter = staticmethod(lora_config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_dinov2_weights(module, self.config.initializer_range)

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """As for every tracker; a LoRA with `init_lora_weights=False` starts as LoRAT's does: `start_lora`."""
        super().add_adapter(adapter_config, adapter_name)
        if starts_as_lorat(adapter_config):
            start_lora(self, adapter_name or "default")

    @classmethod
    def _load(cls, files: TrackerFiles | None, options: dict[str, Any]) -> Any:
        if files is None or find_dinov2_config(files) is None:
            return super()._load(files, options)
        config = options.pop("config", None)
        if config is None:
            own = own_fields(cls.config_class)
            config = cls._config_on(files, None, {name: options.pop(name) for name in own & set(options)})
        with_info = options.pop("output_loading_info", False)
        options |= {"state_dict": trunk_from_dinov2(files, config.search_grid), "output_loading_info": True}
        model, info = cls._load_checked(files, config, options, may_miss=_no_part_of_dinov2)
        model.processor_config = None  # an image model's
        if with_info:
            return model, info
        names = shorten(sorted(model.uninitialized_keys), 20)
        logger.warning(f"{files.name} fills the trunk of {cls.__name__}; new and to be trained: {names}")
        return model

    @classmethod
    def _fields_of(cls, base: TrackerFiles, overrides: dict[str, Any]) -> dict[str, Any]:
        found = find_dinov2_config(base)
        if found is None:
            return super()._fields_of(base, overrides)
        published = {sizes[:2]: sizes[-1] for sizes in SIZES.values()}
        rate = published.get((found.hidden_size, found.num_hidden_layers), 0.0)
        template = TEMPLATE_SIZES.get(overrides.get("search_size"))
        return dinov2_fields(found) | {"drop_path_rate": rate} | ({"template_size": template} if template else {})


def _no_part_of_dinov2(name: str) -> bool:
    return not name.removeprefix("model.").startswith(("embeddings.", "layers.", "norm.")) or ".token_type." in name


class LoRATModel(LoRATPreTrainedModel, Dinov2Trunk):
    """LoRAT's trunk: template and search pixels to fused search features."""


class LoRATForTracking(LoRATPreTrainedModel, ModelForTracking):
    """LoRAT with its MLP head.

    `from_pretrained` also takes a plain DINOv2, as `"facebook/dinov2-base", search_size=378`, which fills the trunk.
    Head and token types are new then: a warning names them, or, with `output_loading_info=True`, the model's
    `uninitialized_keys` does. A published `search_size` (224, 378) brings its `template_size`.

    Example:
        >>> config = LoRATConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = LoRATForTracking(config).eval()
        >>> mask = torch.ones(1, 1, 8, 8, dtype=torch.long)
        >>> output = model(torch.zeros(1, 1, 3, 224, 224), torch.zeros(1, 1, 1, 3, 112, 112), mask)
        >>> output.score_map.shape, output.boxes.shape
        (torch.Size([1, 1, 16, 16]), torch.Size([1, 4]))
    """

    reads_template_mask = True
    crop_style = "lorat"
    trunk_class = LoRATModel

    def new_head(self) -> MlpHead:
        """The MLP head."""
        return MlpHead(self.config.hidden_size, self.config.search_grid, self.config.window_penalty)

    def window(self) -> Tensor:
        """Weights of places `[g, g]` for `decode`: 0 at the border."""
        return torch.from_numpy(hann_window(self.config.search_grid, zeros=True))
