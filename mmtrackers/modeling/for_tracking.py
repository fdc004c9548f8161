"""A trunk, a neck and a head: what every tracker of this package is."""

from torch import Tensor, nn
from transformers.utils import can_return_tuple

from mmtrackers.processing.image_processing import TrackerImageProcessor

from .base import TrackerPreTrainedModel, TrackingOutput
from .clips import forward_clip
from .seams import Neck, scale_by_token
from .vit import ViTTrunk


class ModelForTracking(TrackerPreTrainedModel):
    """Search crops to boxes. A subclass names its trunk and makes its head.

    A head maps search features `[B, g * g, C]` to a dictionary of maps, finds boxes in them (`decode`) and has the
    loss that they are trained with (`loss`). With `config.streams == 2` both streams run through the same weights,
    stacked on the batch axis, and their final features are fused by their sum or mean.
    """

    trunk_class: type[ViTTrunk]
    crop_style = "ostrack"

    def __init__(self, config):
        super().__init__(config)
        self.model = self.trunk_class(config)
        self.neck = Neck()
        self.head = self.new_head()
        self.post_init()

    def new_head(self) -> nn.Module:
        """The head that belongs to the config."""
        raise NotImplementedError

    def image_processor(self) -> TrackerImageProcessor:
        """The crops that the published trackers of these sizes were trained with."""
        sizes = {name: getattr(self.config, name) for name in ("template_size", "search_size", "search_factor")}
        return TrackerImageProcessor(crop_style=self.crop_style, **sizes)

    def embed_template(self, template: Tensor, template_mask: Tensor | None = None) -> Tensor:
        """Template pixels `[B, T, S, 3, h, w]`, and for models that read it their foreground `[B, T, g, g]` (nonzero:
        the target), to the tokens that `forward` takes as `template`."""
        return self.model.embed_template(template, template_mask)

    @can_return_tuple
    def forward(
        self, search: Tensor, template: Tensor, template_mask: Tensor | None = None, state: Tensor | None = None,
        labels: Tensor | None = None, box_weight: float = 1.0, **kwargs,
    ) -> TrackingOutput:
        """Search crops to boxes; ValueError for shapes that do not fit the config.

        Args:
            search (`Tensor`, shape `[B, S, 3, H, W]`): normalized search crops of the S streams; or clips
                `[B, F, S, 3, H, W]`, see `forward_clip`.
            template (`Tensor`): normalized template crops `[B, T, S, 3, h, w]`, or the result of `embed_template`.
            template_mask (`Tensor`, shape `[B, T, g, g]`): which cells of a template show the target (nonzero); needed
                with template crops where `reads_template_mask` is true, else unused.
            state (`Tensor`): what the frame before returned as `state`, where the model carries one; else unused.
            labels (`Tensor`, shape `[B, 4]`): true boxes xywh as fractions of the search crop; makes the loss. For
                clips `[B, F, 4]`.
            box_weight (`float`): factor on the terms of the loss that compare boxes, for schedules.
            elimination_keep_rate (`float`, keyword): replaces the config's rate, for base training's schedule.
        """
        if search.ndim == 6:
            kwargs |= {"template_mask": template_mask, "box_weight": box_weight}
            return forward_clip(self, search, template, state, labels, **kwargs)
        trunk = self.model(search, template, template_mask, state, **kwargs)
        features = self.neck(trunk.last_hidden_state, self.model.layout(0).search_only())
        if trunk.token is not None:
            features = scale_by_token(features, trunk.token)
        maps = self.head(features)
        boxes, _ = self.head.decode(maps)
        loss = parts = None
        if labels is not None:
            if labels.shape != boxes.shape:
                raise ValueError(f"labels have shape {list(labels.shape)}, expected {list(boxes.shape)}: xywh each.")
            loss, parts = self.head.loss(maps, boxes, labels, box_weight)
            loss = loss if trunk.auxiliary_loss is None else loss + trunk.auxiliary_loss
        state = None if trunk.state is None else trunk.state.detach()
        return TrackingOutput(
            loss=loss, loss_parts=parts, boxes=boxes, **maps, state=state, auxiliary_loss=trunk.auxiliary_loss,
            hidden_states=trunk.hidden_states, attentions=trunk.attentions,
        )  # fmt: skip

    def decode(self, output: TrackingOutput, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Boxes cxcywh `[B, 4]` (fractions of the crop) and scores `[B]` of an output, under a window `[g, g]`."""
        return self.head.decode(output, window)
