"""The SDMOE tuner: SDMoEA's adapter on any base with this package's seams."""

from typing import Any, ClassVar

from mmtrackers.modeling.seams import ResidualJunction, StreamFusion
from mmtrackers.tuners.registration import TrackerTuner

from .config import SDMoEConfig
from .layer import HypergraphFusion, MixtureJunction


class SDMoEModel(TrackerTuner):
    """Puts a sparse-dense mixture of experts behind every MLP, and a hypergraph on the fusion of the streams.

    One stream is enough with `use_gsahf=False`.
    """

    prefix: str = "sdmoe_"
    layer_classes: ClassVar = {ResidualJunction: MixtureJunction, StreamFusion: HypergraphFusion}
    targets = "a residual junction or the fusion of the streams"
    no_merge_reason = "experts are chosen per token and the hypergraph is another for every frame"

    def _prepare_adapter_config(self, peft_config: SDMoEConfig, model_config: dict[str, Any]) -> SDMoEConfig:
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        if peft_config.use_gsahf:
            self._check_two_streams()
            # the file records the blocks themselves
            peft_config.hyper_levels = peft_config.levels(model_config["num_hidden_layers"])
        return peft_config
