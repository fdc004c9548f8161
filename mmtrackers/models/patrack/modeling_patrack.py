"""PATrack: a frozen OSTrack for two streams with the PROGRESSIVE adapter (arXiv 2603.21100)."""

from mmtrackers.models.ostrack.modeling_ostrack import OSTrackForTracking
from mmtrackers.tuners.progressive.config import ProgressiveConfig

from .configuration_patrack import PATrackConfig


class PATrackForTracking(OSTrackForTracking):
    """OSTrack's weights, run on RGB and a second modality at once, with PATrack's adapter.

    Without an adapter the two streams' search features are summed. A fresh adapter changes the output, as published:
    none of its maps starts at zero, and the head adapter replaces the features.

    Example:
        >>> model = PATrackForTracking.from_base("org/ostrack-base-256", modality="thermal")  # doctest: +SKIP
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # doctest: +SKIP
        3722904
    """

    config: PATrackConfig
    default_adapter = ProgressiveConfig
