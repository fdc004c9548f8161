"""The TMOE tuner: SPMTrack's mixture of low-rank experts on any linear map of any model."""

from torch import nn

from mmtrackers.tuners.registration import TrackerTuner

from .config import TMoEConfig
from .layer import TMoELinear


class TMoEModel(TrackerTuner):
    """Puts a mixture of low-rank experts beside linear maps.

    Args:
        model (`nn.Module`): any model.
        config (`TMoEConfig`): what to put where.
        adapter_name (`str`): its name.

    Raises:
        TypeError: a target that is no linear map.
    """

    prefix: str = "tmoe_"
    tuner_layer_cls = TMoELinear
    no_merge_reason = "the experts' gates are another for every token"

    def _new_layer(
        self, config: TMoEConfig, adapter_name: str, target: nn.Module, target_name: str, current_key: str
    ) -> TMoELinear:
        if not isinstance(target, nn.Linear):
            raise TypeError(f"TMOE cannot adapt {current_key} ({type(target).__name__}): expected a linear map.")
        return TMoELinear(target, adapter_name, config, place=target_name)
