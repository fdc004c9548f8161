"""Layers of the SDMOE tuner: mixtures of experts on the MLP junctions, hypergraph fusion on the fusion seam."""

import torch
from torch import Tensor, nn

from mmtrackers.modeling.seams import ResidualJunction, StreamFusion, TokenLayout, add_losses
from mmtrackers.tuners.registration import ModuleTunerLayer

from .config import SDMoEConfig
from .fusion import GSAHF
from .mixture import SDMoE
from .packed import PackedMixtureJunction


class MixtureJunction(ModuleTunerLayer):
    """The MLP's residual junction, and what a sparse-dense mixture makes of its result added to it.

    Every token takes part, of both streams: nothing mixes the two here.
    """

    adapter_layer_names = ("sdmoe_mixture",)
    base_layer: ResidualJunction

    @property
    def needs_all_rows(self) -> bool:
        """In training also the last block computes every token, which the balance loss counts."""
        return self.training and self.active_name is not None

    def new_adapter(self, config: SDMoEConfig) -> SDMoE:
        return SDMoE(self.dim, config)

    def adapted(
        self, name: str, x: Tensor, h: Tensor, y: Tensor, norm: nn.Module, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        x, loss = self.base_layer(x, h, y, norm, layout)
        mixture, config = self.sdmoe_mixture[name], self.configs[name]
        added, balance = mixture(x.to(mixture.router.weight.dtype))
        x = x.add(added.to(x.dtype), alpha=config.adapter_scale)
        return x, loss if balance is None else add_losses(loss, config.balance_loss_coef * balance)

    def packed(self, dtype: torch.dtype) -> nn.Module:
        name = self.active_name
        if name is None or self.configs[name].gather_experts or type(self.base_layer) is not ResidualJunction:
            return self
        return PackedMixtureJunction(self.sdmoe_mixture[name], self.configs[name].adapter_scale, dtype)


class HypergraphFusion(ModuleTunerLayer):
    """The base's fusion of the streams, plus the hypergraph's fusion of both streams' blocks."""

    adapter_layer_names = ("sdmoe_fusion",)
    base_layer: StreamFusion

    @property
    def needs_levels(self) -> bool:
        """Whether the trunk must hand over the search tokens of its blocks."""
        return self.active_name is not None

    def new_adapter(self, config: SDMoEConfig) -> GSAHF:
        return GSAHF(self.dim, len(config.hyper_levels), config)

    def adapted(
        self, name: str, features: Tensor, levels: tuple[Tensor, ...], token: Tensor | None, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        fused, token = self.base_layer(features, levels, token, layout)
        fusion = self.sdmoe_fusion[name]
        chosen = tuple(levels[index].to(fusion.level_weight.dtype) for index in self.configs[name].hyper_levels)
        return fused + fusion(chosen).to(fused.dtype), token
