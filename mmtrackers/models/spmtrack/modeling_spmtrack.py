"""SPMTrack: three references and a state token carried from frame to frame (Cai et al., arXiv 2503.18338)."""

import torch
from torch import Tensor, nn

from mmtrackers.modeling.dinov2 import Dinov2Trunk
from mmtrackers.models.lorat.modeling_lorat import LoRATForTracking, LoRATPreTrainedModel
from mmtrackers.models.odtrack.modeling_odtrack import TrackToken, init_track_token
from mmtrackers.tracking.memory import QuarterReferences, ThirdReferences
from mmtrackers.tuners.tmoe.config import tmoe_config

from .configuration_spmtrack import SPMTrackConfig


class SPMTrackPreTrainedModel(LoRATPreTrainedModel):
    """Weights' initial values of the family."""

    config: SPMTrackConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_track_token(module, self.config.initializer_range)


class SPMTrackModel(SPMTrackPreTrainedModel, Dinov2Trunk):
    """SPMTrack's trunk: LoRAT's with a state token before the references."""

    def __init__(self, config: SPMTrackConfig):
        super().__init__(config)
        self.track_token = TrackToken(config.hidden_size)
        self.post_init()

    def prefix_tokens(self, state: Tensor | None, rows: int) -> Tensor:
        """The state token, `[rows, 1, C]`."""
        return self.track_token(state, rows)


class SPMTrackForTracking(SPMTrackPreTrainedModel, LoRATForTracking):
    """SPMTrack: LoRAT's trunk and head, with three references and a state (Cai et al., CVPR 2025).

    The head reads search features that are weighted by their product with the state token. What became of that token
    comes back as `output.state` (`[S*B, 1, C]`, normed, detached) and goes into the next frame's `forward`.

    The frozen weights are DINOv2's. The published trackers are this base with a TMOE adapter (`tmoe_config`), which
    holds head, token types and state token besides the experts.

    Example:
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
