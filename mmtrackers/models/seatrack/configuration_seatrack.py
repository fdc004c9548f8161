"""Configuration of SEATrack."""

from huggingface_hub.dataclasses import strict

from mmtrackers.models.ostrack.configuration_ostrack import OSTrackConfig


@strict
class SEATrackConfig(OSTrackConfig):
    """Configuration of SEATrack (arXiv 2604.12502): OSTrack with two streams and without candidate elimination.

    Sizes of the adapter are in `AMGLoraConfig`; fields of the base are `OSTrackConfig`'s.

    Args:
        modality (`str`): the second stream: "thermal", "depth" or "event".
    """

    model_type = "mmt_seatrack"

    streams: int = 2
    modality: str = "thermal"
    elimination_layers: list[int] | tuple[int, ...] = ()
