"""ODTrack: several templates and a track token carried from frame to frame (Zheng et al., arXiv 2401.01686)."""

from mmtrackers.modeling.track_token import TrackTokenMixin
from mmtrackers.modeling.vit import ViTTrunk
from mmtrackers.models.ostrack.modeling_ostrack import OSTrackForTracking, OSTrackPreTrainedModel
from mmtrackers.tracking.memory import SpreadTemplates, TemplatePolicy

from .configuration_odtrack import ODTrackConfig


class ODTrackModel(TrackTokenMixin, OSTrackPreTrainedModel, ViTTrunk):
    """ODTrack's trunk: OSTrack's with a track token before the templates."""

    config: ODTrackConfig


class ODTrackForTracking(OSTrackForTracking):
    """ODTrack: its head reads search features that are weighted by their product with the track token.

    The track token of a frame comes back as `output.state` (`[S*B, 1, C]`, normed, detached, one per stream) and goes
    into the next frame's `forward` as `state`; the model itself holds nothing of a video.

    Example:
        >>> import torch
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
