"""The AMG_LORA tuner: SEATrack's adapter on any two-stream base with this package's seams."""

from typing import ClassVar

from torch import nn

from mmtrackers.modeling.seams import ResidualJunction
from mmtrackers.modeling.vit import AttentionCore
from mmtrackers.tuners.registration import TrackerTuner

from .config import AMGLoraConfig
from .layer import GuidedAttentionCore, LowRankLinear, MixtureJunction


class AMGLoraModel(TrackerTuner):
    """Puts low-rank maps on k and v, guidance on the attention core and mixtures on the junctions."""

    prefix: str = "amg_lora_"
    no_merge_reason = "guidance mixes the streams' attention maps and the experts are chosen per token"

    layer_classes: ClassVar = {
        nn.Linear: LowRankLinear,
        AttentionCore: GuidedAttentionCore,
        ResidualJunction: MixtureJunction,
    }
    targets = "a linear map, an attention core or a residual junction"

    def _check_base(self, config: AMGLoraConfig) -> None:
        self._check_two_streams()
        self._check_layers(config, "adapter_layers")
