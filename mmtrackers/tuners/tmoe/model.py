"""The TMOE tuner: SPMTrack's mixture of low-rank experts on any linear map of any model."""

from typing import ClassVar

from torch import nn

from mmtrackers.tuners.registration import TrackerTuner

from .layer import TMoELinear


class TMoEModel(TrackerTuner):
    """Puts a mixture of low-rank experts beside linear maps, of any model."""

    prefix: str = "tmoe_"
    no_merge_reason = "the experts' gates are another for every token"
    layer_classes: ClassVar = {nn.Linear: TMoELinear}
    targets = "a linear map"
