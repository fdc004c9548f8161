"""The AMG_LORA tuner: SEATrack's adapter on any two-stream base with this package's seams."""

from torch import nn

from mmtrackers.backbones.vit import AttentionCore
from mmtrackers.modeling import ResidualJunction
from mmtrackers.tuners.registration import TrackerTuner

from .config import AMGLoraConfig
from .layer import AMGLoraLayer, GuidedAttentionCore, LowRankLinear, MixtureJunction


class AMGLoraModel(TrackerTuner):
    """Puts low-rank maps on k and v, guidance on the attention core and mixtures on the junctions.

    Args:
        model (`nn.Module`): a tracker with `config.streams == 2`.
        config (`AMGLoraConfig`): what to put where.
        adapter_name (`str`): its name.

    Raises:
        ValueError: the model has one stream.
        TypeError: a target that is neither a linear map nor one of the seams.
    """

    prefix: str = "amg_lora_"
    tuner_layer_cls = AMGLoraLayer
    target_module_mapping: dict[str, list[str]] = {}
    no_merge_reason = "guidance mixes the streams' attention maps and the experts are chosen per token"

    def _create_and_replace(
        self,
        peft_config: AMGLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs,
    ) -> None:
        if isinstance(target, AMGLoraLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self._new_layer(peft_config, adapter_name, target, target_name, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _new_layer(
        self, config: AMGLoraConfig, adapter_name: str, target: nn.Module, target_name: str, current_key: str
    ) -> nn.Module:
        model_config = self.model.config
        if getattr(model_config, "streams", 1) != 2:
            raise ValueError(
                "AMG_LORA mixes two streams, but this model's config has "
                f"streams={getattr(model_config, 'streams', 1)}. Build the base with streams=2, for example by "
                "SEATrackForTracking.from_base(base)."
            )
        beyond = [i for i in config.adapter_layers or () if not 0 <= i < model_config.num_hidden_layers]
        if beyond:
            raise ValueError(
                f"adapter_layers {beyond} do not exist: the base has layers 0 to {model_config.num_hidden_layers - 1}."
            )
        for kind, layer in (
            (nn.Linear, LowRankLinear), (AttentionCore, GuidedAttentionCore), (ResidualJunction, MixtureJunction)
        ):  # fmt: skip
            if isinstance(target, kind):
                return layer(target, adapter_name, config, model_config.hidden_size, target_name)
        raise TypeError(
            f"AMG_LORA cannot adapt {current_key} ({type(target).__name__}): expected a linear map, an attention core "
            "or a residual junction."
        )

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        nested = f".amg_lora_hmoe.{adapter_name}."
        if nested in key:
            return key.replace(nested, ".amg_lora_hmoe.")
        return super()._remove_adapter_name_from_key(key, adapter_name)
