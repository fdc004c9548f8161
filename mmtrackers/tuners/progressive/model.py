"""The PROGRESSIVE tuner: PATrack's adapter on any two-stream base with this package's seams."""

from typing import ClassVar

from mmtrackers.modeling.seams import Neck, ResidualJunction
from mmtrackers.tuners.registration import TrackerTuner

from .config import ProgressiveConfig
from .layer import AdaptedNeck, ParallelJunction


class ProgressiveModel(TrackerTuner):
    """Puts MDA or CEA on the junctions and HA on the neck."""

    prefix: str = "progressive_"
    no_merge_reason = "its terms come from both streams and from neighboring tokens"

    layer_classes: ClassVar = {Neck: AdaptedNeck, ResidualJunction: ParallelJunction}
    targets = "a residual junction or the neck"

    def _check_base(self, config: ProgressiveConfig) -> None:
        self._check_two_streams()
        self._check_layers(config, "cea_layers")
        base = self.model.config
        if all(map(config.has_cea, range(base.num_hidden_layers))):
            return
        for name, side in (("template", base.template_grid), ("search", base.search_grid)):
            if side % 2:
                raise ValueError(
                    f"PROGRESSIVE cannot adapt this base: MDA averages over 2x2 cells, but the {name} crop has "
                    f"{side}x{side} of them. Take a base with even grids, such as {name}_size="
                    f"{(side + 1) * base.patch_size} with patches of {base.patch_size} pixels, or name every layer in "
                    "cea_layers."
                )
