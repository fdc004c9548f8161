"""OSTrack: one-stream tracking with a plain ViT (Ye et al., arXiv 2203.11991)."""

import math

import torch
from torch import Tensor, nn
from transformers.utils.generic import can_return_tuple

from mmtrackers.modeling.base import TrackerPreTrainedModel, TrackingOutput
from mmtrackers.modeling.center_head import CenterHead, decode_center
from mmtrackers.modeling.clips import forward_clip
from mmtrackers.modeling.losses import center_loss
from mmtrackers.modeling.seams import Neck, scale_by_token
from mmtrackers.modeling.vit import ViTTrunk, init_vit_weights
from mmtrackers.processing.image_processing import TrackerImageProcessor

from .configuration_ostrack import OSTrackConfig


def elimination_keep_rate(epoch: int, start: int = 20, warmup: int = 80, base: float = 0.7) -> float:
    """Share of search tokens kept in an epoch of base training: 1, then a half cosine down to `base`.

    Args:
        epoch (`int`): current epoch.
        start (`int`): last epoch with every token.
        warmup (`int`): epochs of the descent.
        base (`float`): final share.

    Example:
        >>> elimination_keep_rate(0), elimination_keep_rate(100)
        (1, 0.7)
    """
    if epoch < start:
        return 1
    if epoch >= start + warmup:
        return base
    return base + (1 - base) * (math.cos(math.pi * (epoch - start) / warmup) + 1) / 2


class OSTrackPreTrainedModel(TrackerPreTrainedModel):
    """Weights' initial values of the family."""

    config: OSTrackConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_vit_weights(module, self.config.initializer_range)


class OSTrackModel(OSTrackPreTrainedModel, ViTTrunk):
    """OSTrack's trunk: template and search pixels to fused search features."""


class OSTrackForTracking(OSTrackPreTrainedModel):
    """OSTrack with its centre head.

    With `config.streams == 2` both streams run through the same weights, stacked on the batch axis, and their final
    features are summed; without an adapter that is the plain two-stream baseline.

    Example:
        >>> config = OSTrackConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_channels=16,
        ...     elimination_layers=[])
        >>> model = OSTrackForTracking(config).eval()
        >>> output = model(torch.zeros(1, 1, 3, 256, 256), torch.zeros(1, 1, 1, 3, 128, 128))
        >>> output.score_map.shape, output.boxes.shape
        (torch.Size([1, 1, 16, 16]), torch.Size([1, 4]))
    """

    trunk_class: type[ViTTrunk] = OSTrackModel

    def __init__(self, config: OSTrackConfig):
        super().__init__(config)
        self.model = self.trunk_class(config)
        self.neck = Neck()
        self.head = CenterHead(config.hidden_size, config.head_channels)
        self.post_init()

    def embed_template(self, template: Tensor) -> Tensor:
        """Template pixels `[B, T, S, 3, h, w]` to the tokens that `forward` takes as `template`."""
        return self.model.embed_template(template)

    @can_return_tuple
    def forward(
        self,
        search: Tensor,
        template: Tensor,
        template_mask: Tensor | None = None,
        state: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> TrackingOutput:
        """Search crops to boxes.

        Args:
            search (`Tensor`, shape `[B, S, 3, H, W]`): normalised search crops of the S streams; or clips
                `[B, F, S, 3, H, W]`, see `forward_clip`.
            template (`Tensor`): normalised template crops `[B, T, S, 3, h, w]`, or the result of `embed_template`.
            template_mask: not used by this family.
            state (`Tensor`): what the frame before returned as `state`, where the model carries one; else unused.
            labels (`Tensor`, shape `[B, 4]`): true boxes xywh as fractions of the search crop; makes the loss. For
                clips `[B, F, 4]`.
            elimination_keep_rate (`float`, keyword): replaces the config's rate, for base training's schedule.

        Returns:
            `TrackingOutput`

        Raises:
            ValueError: shapes that do not fit the config.
        """
        if search.ndim == 6:
            return forward_clip(self, search, template, state, labels, **kwargs)
        trunk = self.model(search, template, state, **kwargs)
        features = self.neck(trunk.last_hidden_state, self.model.layout(0).search_only())
        if trunk.token is not None:
            features = scale_by_token(features, trunk.token)
        grid = self.config.search_grid
        maps = self.head(features.transpose(1, 2).unflatten(2, (grid, grid)))
        boxes, _ = decode_center(*maps)
        loss = parts = None
        if labels is not None:
            if labels.shape != boxes.shape:
                raise ValueError(f"labels have shape {list(labels.shape)}, expected {list(boxes.shape)}: xywh each.")
            loss, parts = center_loss(maps[0], boxes, labels)
            loss = loss if trunk.auxiliary_loss is None else loss + trunk.auxiliary_loss
        return TrackingOutput(
            loss=loss,
            loss_parts=parts,
            boxes=boxes,
            score_map=maps[0],
            size_map=maps[1],
            offset_map=maps[2],
            state=None if trunk.state is None else trunk.state.detach(),
            auxiliary_loss=trunk.auxiliary_loss,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )

    def image_processor(self) -> TrackerImageProcessor:
        """The crops that the published trackers of these sizes were trained with."""
        sizes = {"template_size": self.config.template_size, "search_size": self.config.search_size}
        return TrackerImageProcessor(**sizes, search_factor=self.config.search_factor)

    def decode(self, output: TrackingOutput, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Boxes cxcywh `[B, 4]` (fractions of the crop) and scores `[B]` of an output, under a window `[g, g]`."""
        return decode_center(output.score_map, output.size_map, output.offset_map, window)
