"""SEATrack: a frozen OSTrack for two streams with the AMG_LORA adapter (arXiv 2604.12502)."""

from mmtrackers.models.ostrack.modeling_ostrack import OSTrackForTracking
from mmtrackers.tuners.amg_lora.config import AMGLoraConfig

from .configuration_seatrack import SEATrackConfig


class SEATrackForTracking(OSTrackForTracking):
    """OSTrack's weights, run on RGB and a second modality at once, with SEATrack's adapter.

    Without an adapter it is the two-stream OSTrack whose search features are summed.

    Example:
        >>> model = SEATrackForTracking.from_base("org/ostrack-base-256", modality="thermal")  # doctest: +SKIP
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # doctest: +SKIP
        636324
    """

    config: SEATrackConfig
    default_adapter = AMGLoraConfig
