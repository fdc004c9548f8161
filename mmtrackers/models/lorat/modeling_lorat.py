"""LoRAT: one-stream tracking with a frozen DINOv2 and low-rank adapters (Lin et al., arXiv 2403.05231)."""

import torch
from torch import Tensor, nn
from transformers.utils.generic import can_return_tuple

from mmtrackers.backbones.dinov2 import Dinov2Trunk, init_dinov2_weights
from mmtrackers.crops import hann_window
from mmtrackers.heads.mlp import MlpHead, decode_cells
from mmtrackers.losses import cell_loss
from mmtrackers.modeling import Neck, TrackerPreTrainedModel, TrackingOutput, forward_clip, weighed

from .configuration_lorat import LoRATConfig


class LoRATPreTrainedModel(TrackerPreTrainedModel):
    """Weights' initial values of the family."""

    config: LoRATConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_dinov2_weights(module, self.config.initializer_range)


class LoRATModel(LoRATPreTrainedModel, Dinov2Trunk):
    """LoRAT's trunk: template and search pixels to fused search features."""


class LoRATForTracking(LoRATPreTrainedModel):
    """LoRAT with its MLP head.

    With `config.streams == 2` both streams run through the same weights, stacked on the batch axis, and their final
    features are fused by their mean or sum; without an adapter that is the plain two-stream baseline.

    Example:
        >>> config = LoRATConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = LoRATForTracking(config).eval()
        >>> mask = torch.ones(1, 1, 8, 8, dtype=torch.long)
        >>> output = model(torch.zeros(1, 1, 3, 224, 224), torch.zeros(1, 1, 1, 3, 112, 112), mask)
        >>> output.score_map.shape, output.boxes.shape
        (torch.Size([1, 1, 16, 16]), torch.Size([1, 4]))
    """

    reads_template_mask = True
    trunk_class: type[Dinov2Trunk] = LoRATModel

    def __init__(self, config: LoRATConfig):
        super().__init__(config)
        self.model = self.trunk_class(config)
        self.neck = Neck()
        self.head = MlpHead(config.hidden_size, config.search_grid)
        self.post_init()

    def embed_template(self, template: Tensor, template_mask: Tensor | None = None) -> Tensor:
        """Template pixels `[B, T, S, 3, h, w]` and their foreground `[B, T, g, g]` (nonzero: the target) to the tokens
        that `forward` takes as `template`."""
        return self.model.embed_template(template, template_mask)

    @can_return_tuple
    def forward(
        self,
        search: Tensor,
        template: Tensor,
        template_mask: Tensor | None = None,
        state: Tensor | None = None,
        labels: Tensor | None = None,
        box_weight: float = 1.0,
        **kwargs,
    ) -> TrackingOutput:
        """Search crops to boxes.

        Args:
            search (`Tensor`, shape `[B, S, 3, H, W]`): normalised search crops of the S streams; or clips
                `[B, F, S, 3, H, W]`, see `forward_clip`.
            template (`Tensor`): normalised template crops `[B, T, S, 3, h, w]`, or the result of `embed_template`.
            template_mask (`Tensor`, shape `[B, T, g, g]`): which cells of a template show the target (nonzero); needed
                with template crops.
            state (`Tensor`): what the frame before returned as `state`, where the model carries one; else unused.
            labels (`Tensor`, shape `[B, 4]`): true boxes xywh as fractions of the search crop; makes the loss. For
                clips `[B, F, 4]`.
            box_weight (`float`): weight of the loss's GIoU term, for schedules.

        Returns:
            `TrackingOutput` with a `box_map`.

        Raises:
            ValueError: shapes that do not fit the config.
        """
        if search.ndim == 6:
            kwargs |= {"template_mask": template_mask, "box_weight": box_weight}
            return forward_clip(self, search, template, state, labels, **kwargs)
        trunk = self.model(search, template, template_mask, state, **kwargs)
        features = self.neck(trunk.last_hidden_state, self.model.layout(0).search_only())
        if trunk.token is not None:
            features = weighed(features, trunk.token)
        logits, box_map = self.head(features)
        score_map = logits.sigmoid()
        boxes, _ = decode_cells(score_map, box_map)
        loss = parts = None
        if labels is not None:
            if labels.shape != boxes.shape:
                raise ValueError(f"labels have shape {list(labels.shape)}, expected {list(boxes.shape)}: xywh each.")
            loss, parts = cell_loss(logits, box_map, labels, box_weight)
            loss = loss if trunk.auxiliary_loss is None else loss + trunk.auxiliary_loss
        return TrackingOutput(
            loss=loss,
            loss_parts=parts,
            boxes=boxes,
            score_map=score_map,
            box_map=box_map,
            state=None if trunk.state is None else trunk.state.detach(),
            auxiliary_loss=trunk.auxiliary_loss,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )

    def window(self) -> Tensor:
        """Weights of places `[g, g]` for `decode`: 0 at the border."""
        return torch.from_numpy(hann_window(self.config.search_grid, zeros=True))

    def decode(self, output: TrackingOutput, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Boxes cxcywh `[B, 4]` (fractions of the crop) and scores `[B]` of an output, under a window `[g, g]`."""
        return decode_cells(output.score_map, output.box_map, window, self.config.window_penalty)
