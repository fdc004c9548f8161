"""ODTrack: several templates and a track token carried from frame to frame (Zheng et al., arXiv 2401.01686)."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from mmtrackers.modeling.vit import ViTTrunk
from mmtrackers.models.ostrack.modeling_ostrack import OSTrackForTracking, OSTrackPreTrainedModel
from mmtrackers.tracking.memory import SpreadTemplates, TemplatePolicy

from .configuration_odtrack import ODTrackConfig


class TrackToken(nn.Module):
    """The token that asks for the target: a learned start, what the frame before found, and a position."""

    def __init__(self, width: int):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, state: Tensor | None, rows: int) -> Tensor:
        """The carried token `[rows, 1, C]`, or None on the first frame, to the token of this frame `[rows, 1, C]`."""
        if state is None:
            return (self.start + self.position).expand(rows, -1, -1)
        if tuple(state.shape) != (rows, 1, self.start.shape[2]):
            raise ValueError(
                f"state has shape {list(state.shape)}, expected {[rows, 1, self.start.shape[2]]}: the `state` of the "
                "same targets' frame before, or None at the beginning of a video."
            )
        return self.start + state.to(self.start.dtype) + self.position


def init_track_token(module: nn.Module, std: float) -> None:
    """Initial values of a `TrackToken`, from a truncated normal distribution; other modules are left alone."""
    if isinstance(module, TrackToken):
        init.trunc_normal_(module.start, std=std)
        init.trunc_normal_(module.position, std=std)


class ODTrackPreTrainedModel(OSTrackPreTrainedModel):
    """Weights' initial values of the family."""

    config: ODTrackConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_track_token(module, self.config.initializer_range)


class ODTrackModel(ODTrackPreTrainedModel, ViTTrunk):
    """ODTrack's trunk: OSTrack's with a track token before the templates."""

    def __init__(self, config: ODTrackConfig):
        super().__init__(config)
        self.track_token = TrackToken(config.hidden_size)
        self.post_init()

    def prefix_tokens(self, state: Tensor | None, rows: int) -> Tensor:
        """The track token, `[rows, 1, C]`."""
        return self.track_token(state, rows)


class ODTrackForTracking(ODTrackPreTrainedModel, OSTrackForTracking):
    """ODTrack: its head reads search features that are weighted by their product with the track token.

    The track token of a frame comes back as `output.state` (`[S*B, 1, C]`, normed, detached, one per stream) and goes
    into the next frame's `forward` as `state`; the model itself holds nothing of a video. With `config.streams == 2`
    both streams run through the same weights, and features and tokens are averaged.

    Example:
        >>> config = ODTrackConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_channels=16,
        ...     search_size=64, template_size=32)
        >>> model = ODTrackForTracking(config).eval()
        >>> templates = model.embed_template(torch.zeros(1, 3, 1, 3, 32, 32))
        >>> first = model(torch.zeros(1, 1, 3, 64, 64), templates)
        >>> second = model(torch.zeros(1, 1, 3, 64, 64), templates, state=first.state)
        >>> second.score_map.shape, second.state.shape
        (torch.Size([1, 1, 4, 4]), torch.Size([1, 1, 32]))
    """

    config: ODTrackConfig
    trunk_class = ODTrackModel

    @property
    def template_policy(self) -> TemplatePolicy:
        """ODTrack's memory rule, with the config's `num_templates` and `max_memory`; of one template, the first."""
        if self.config.num_templates == 1:
            return TemplatePolicy()
        return SpreadTemplates(max_memory=self.config.max_memory, templates=self.config.num_templates)
