"""SDMoEA: a frozen ODTrack for two streams with the SDMOE adapter (arXiv 2603.13719); an unofficial reconstruction."""

from mmtrackers.models.odtrack.modeling_odtrack import ODTrackForTracking
from mmtrackers.tuners.sdmoe.config import SDMoEConfig

from .configuration_sdmoea import SDMoEAConfig


class SDMoEAForTracking(ODTrackForTracking):
    """ODTrack's weights, run on RGB and a second stream of any kind at once, with SDMoEA's adapter.

    One adapter serves RGB + thermal, depth and event video. Without an adapter it is ODTrack on both streams, their
    features and track tokens averaged; each stream carries its own track token.

    The authors have published no code. What is known of the paper is followed, the rest was inferred and is a field of
    `SDMoEConfig`; no figure of the paper is claimed.

    Example:
        >>> model = SDMoEAForTracking.from_base("org/odtrack-base-384")  # doctest: +SKIP
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # doctest: +SKIP
        8802504
    """

    config: SDMoEAConfig
    default_adapter = SDMoEConfig
