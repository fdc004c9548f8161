"""SPMTrack: three references and a state token carried from frame to frame (Cai et al., arXiv 2503.18338)."""

from mmtrackers.modeling.dinov2 import Dinov2Trunk
from mmtrackers.modeling.track_token import TrackTokenMixin
from mmtrackers.models.lorat.modeling_lorat import LoRATForTracking, LoRATPreTrainedModel
from mmtrackers.tracking.memory import QuarterReferences, ThirdReferences
from mmtrackers.tuners.tmoe.config import tmoe_config

from .configuration_spmtrack import SPMTrackConfig


class SPMTrackModel(TrackTokenMixin, LoRATPreTrainedModel, Dinov2Trunk):
    """SPMTrack's trunk: LoRAT's with a state token before the references."""

    config: SPMTrackConfig
    default_adapter = staticmethod(tmoe_config)


class SPMTrackForTracking(LoRATForTracking):
    """SPMTrack: LoRAT's trunk and head, with three references and a state token, carried as ODTrack's track token is.

    The frozen weights are DINOv2's. The published trackers are this base with a TMOE adapter (`tmoe_config`), which
    holds head, token types and state token besides the experts.

    Example:
        >>> import torch
        >>> config = SPMTrackConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = SPMTrackForTracking(config).eval()
        >>> references = model.embed_template(torch.zeros(1, 3, 1, 3, 196, 196), torch.ones(1, 3, 14, 14))
        >>> first = model(torch.zeros(1, 1, 3, 378, 378), references)
        >>> second = model(torch.zeros(1, 1, 3, 378, 378), references, state=first.state)
        >>> second.score_map.shape, second.state.shape
        (torch.Size([1, 1, 27, 27]), torch.Size([1, 1, 32]))
    """

    config: SPMTrackConfig
    trunk_class = SPMTrackModel
    default_adapter = staticmethod(tmoe_config)

    @property
    def template_policy(self) -> QuarterReferences | ThirdReferences:
        """The first frame and two later ones, by the config's `reference_rule` and `max_memory`."""
        rule = QuarterReferences if self.config.reference_rule == "quarters" else ThirdReferences
        return rule(max_memory=self.config.max_memory)
