"""The AMG_LORA tuner: SEATrack's adapter on any two-stream base with this package's seams."""

from torch import nn

from mmtrackers.modeling.seams import ResidualJunction
from mmtrackers.modeling.vit import AttentionCore
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
    no_merge_reason = "guidance mixes the streams' attention maps and the experts are chosen per token"

    def _new_layer(
        self, config: AMGLoraConfig, adapter_name: str, target: nn.Module, target_name: str, current_key: str
    ) -> nn.Module:
        model_config = self.model.config
        self._check_two_streams()
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
