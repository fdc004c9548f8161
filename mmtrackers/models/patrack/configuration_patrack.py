"""Configuration of PATrack."""

from huggingface_hub.dataclasses import strict

from mmtrackers.models.ostrack.configuration_ostrack import OSTrackConfig


@strict
class PATrackConfig(OSTrackConfig):
    """Configuration of PATrack (arXiv 2603.21100): OSTrack with two streams and without candidate elimination.

    Sizes of the adapter are in `ProgressiveConfig`; fields of the base are `OSTrackConfig`'s. Elimination stays off
    for depth too: the published settings name a rate of 0.7 there, with which the published code cannot run.

    Args:
        modality (`str`): the second stream: "thermal", "depth" or "event".
    """

    model_type = "mmt_patrack"

    streams: int = 2
    modality: str = "thermal"
    elimination_layers: list[int] | tuple[int, ...] = ()
