"""OSTrack: one-stream tracking with a plain ViT (Ye et al., arXiv 2203.11991)."""

import torch
from torch import nn

from mmtrackers.modeling.base import TrackerPreTrainedModel
from mmtrackers.modeling.center_head import CenterHead
from mmtrackers.modeling.for_tracking import ModelForTracking
from mmtrackers.modeling.vit import ViTTrunk, init_vit_weights

from .configuration_ostrack import OSTrackConfig


class OSTrackPreTrainedModel(TrackerPreTrainedModel):
    """Weights' initial values of the family."""

    config: OSTrackConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_vit_weights(module, self.config.initializer_range)


class OSTrackModel(OSTrackPreTrainedModel, ViTTrunk):
    """OSTrack's trunk: template and search pixels to fused search features."""


class OSTrackForTracking(OSTrackPreTrainedModel, ModelForTracking):
    """OSTrack with its center head.

    Example:
        >>> config = OSTrackConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_channels=16,
        ...     elimination_layers=[])
        >>> model = OSTrackForTracking(config).eval()
        >>> output = model(torch.zeros(1, 1, 3, 256, 256), torch.zeros(1, 1, 1, 3, 128, 128))
        >>> output.score_map.shape, output.boxes.shape
        (torch.Size([1, 1, 16, 16]), torch.Size([1, 4]))
    """

    trunk_class = OSTrackModel

    def new_head(self) -> CenterHead:
        """The center head."""
        return CenterHead(self.config.hidden_size, self.config.head_channels)
