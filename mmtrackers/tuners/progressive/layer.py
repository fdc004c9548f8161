"""Layers of the PROGRESSIVE tuner: an adapter beside a sub-layer, and one before the head."""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrackers.modeling.seams import Neck, ResidualJunction, TokenLayout, drop_path
from mmtrackers.tuners.registration import ModuleTunerLayer

from .adapters import HeadAdapter, ModalityDependentAdapter, ModalityEntangledAdapter
from .config import ProgressiveConfig
from .packed import PackedHeadAdapter, PackedJunction


class ParallelJunction(ModuleTunerLayer):
    """A residual junction whose sum has a third term: an MDA or a CEA of the site's input, beside the sub-layer.

    Both streams' terms come from the values before the site. Prefix tokens pass unchanged.
    """

    adapter_layer_names = ("progressive_adapter",)
    base_layer: ResidualJunction

    def new_adapter(self, config: ProgressiveConfig) -> nn.Module:
        layer = int(re.search(r"(?:^|\.)layers\.(\d+)\.", self.place)[1])
        if config.has_cea(layer):
            return ModalityEntangledAdapter(self.dim, config.cea_width, config.cea_train_norm, config.cea_swap_outputs)
        return ModalityDependentAdapter(self.dim, config.mda_width, config.mda_source)

    def adapted(
        self, name: str, x: Tensor, h: Tensor, y: Tensor, norm: nn.Module, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        result, loss = self.base_layer(x, h, y, norm, layout)
        start, stop = layout.template.start, layout.search.stop
        term = self.progressive_adapter[name](x[:, start:stop], h[:, start:stop], norm, layout).to(result.dtype)
        if (start, stop) != (0, x.shape[1]):
            term = F.pad(term, (0, 0, start, x.shape[1] - stop))
        return result + drop_path(term, self.base_layer.drop_path_rate, self.training), loss

    def packed(self, dtype: torch.dtype) -> nn.Module:
        name = self.active_name
        return self.base_layer if name is None else PackedJunction(self.progressive_adapter[name], dtype)


class AdaptedNeck(ModuleTunerLayer):
    """The neck with a head adapter in it."""

    adapter_layer_names = ("progressive_adapter",)
    base_layer: Neck

    def new_adapter(self, config: ProgressiveConfig) -> nn.Module:
        return HeadAdapter(self.dim, config.head_width, config.head_dropout, config.head_residual)

    def adapted(self, name: str, features: Tensor, layout: TokenLayout) -> Tensor:
        return self.progressive_adapter[name](self.base_layer(features, layout))

    def packed(self, dtype: torch.dtype) -> nn.Module:
        name = self.active_name
        return self.base_layer if name is None else PackedHeadAdapter(self.progressive_adapter[name], dtype)
