"""Layers of the SDMOE tuner: mixtures of experts on the MLP junctions, hypergraph fusion on the fusion seam."""

import torch
from torch import Tensor, nn

from mmtrackers.modeling.seams import ResidualJunction, StreamFusion, TokenLayout, add_losses
from mmtrackers.tuners.registration import TrackerTunerLayer

from .config import SDMoEConfig
from .fusion import GSAHF
from .mixture import SDMoE
from .packed import PackedMixtureJunction


class SDMoELayer(TrackerTunerLayer):
    """What both layers share: an adapter is a module."""

    container = nn.ModuleDict


class MixtureJunction(SDMoELayer):
    """The MLP's residual junction, and what a sparse-dense mixture makes of its result added to it.

    Every token takes part, of both streams: nothing mixes the two here.
    """

    adapter_layer_names = ("sdmoe_mixture",)
    other_param_names = ("sdmoe_scale", "sdmoe_balance")
    base_layer: ResidualJunction

    @property
    def needs_all_rows(self) -> bool:
        """In training also the last block computes every token, which the balance loss counts."""
        return self.training and self.active_name is not None

    def make_parameters(self, adapter_name: str, config: SDMoEConfig) -> None:
        self.sdmoe_mixture[adapter_name] = SDMoE(self.dim, config).train(self.training)
        self.sdmoe_scale[adapter_name] = config.adapter_scale
        self.sdmoe_balance[adapter_name] = config.balance_loss_coef

    def forward(
        self, x: Tensor, h: Tensor, y: Tensor, norm: nn.Module, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        x, loss = self.base_layer(x, h, y, norm, layout)
        name = self.active_name
        if name is None:
            return x, loss
        mixture = self.sdmoe_mixture[name]
        added, balance = mixture(x.to(mixture.router.weight.dtype))
        x = x.add(added.to(x.dtype), alpha=self.sdmoe_scale[name])
        return x, loss if balance is None else add_losses(loss, self.sdmoe_balance[name] * balance)

    def packed(self, dtype: torch.dtype) -> nn.Module:
        name = self.active_name
        if name is None or self.sdmoe_mixture[name].gather or type(self.base_layer) is not ResidualJunction:
            return self
        return PackedMixtureJunction(self.sdmoe_mixture[name], self.sdmoe_scale[name], dtype)


class HypergraphFusion(SDMoELayer):
    """The base's fusion of the streams, plus the hypergraph's fusion of both streams' blocks."""

    adapter_layer_names = ("sdmoe_fusion",)
    other_param_names = ("sdmoe_levels",)
    base_layer: StreamFusion

    @property
    def needs_levels(self) -> bool:
        """Whether the trunk must hand over the search tokens of its blocks."""
        return self.active_name is not None

    def make_parameters(self, adapter_name: str, config: SDMoEConfig) -> None:
        self.sdmoe_fusion[adapter_name] = GSAHF(self.dim, len(config.hyper_levels), config).train(self.training)
        self.sdmoe_levels[adapter_name] = list(config.hyper_levels)

    def forward(
        self, features: Tensor, levels: tuple[Tensor, ...] | None, token: Tensor | None, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        name = self.active_name
        fused, token = self.base_layer(features, levels, token, layout)
        if name is None:
            return fused, token
        fusion = self.sdmoe_fusion[name]
        chosen = tuple(levels[index].to(fusion.level_weight.dtype) for index in self.sdmoe_levels[name])
        return fused + fusion(chosen).to(fused.dtype), token
