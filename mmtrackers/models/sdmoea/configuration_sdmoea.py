"""Configuration of SDMoEA."""

from huggingface_hub.dataclasses import strict

from mmtrackers.models.odtrack.configuration_odtrack import ODTrackConfig


@strict
class SDMoEAConfig(ODTrackConfig):
    """Configuration of SDMoEA (arXiv 2603.13719): ODTrack with two streams, the second of any kind.

    Sizes of the adapter are in `SDMoEConfig`; fields of the base are `ODTrackConfig`'s. Crops of 256 pixels are
    `search_size=256, template_size=128`, with a position table of that size.

    Args:
        modality (`str`): "any", as one adapter serves thermal, depth and event video alike and each video says which
            it is; or one of these three, to refuse the others.
    """

    model_type = "mmt_sdmoea"

    streams: int = 2
    modality: str = "any"
