"""Configuration of SPMTrack."""

from huggingface_hub.dataclasses import strict

from mmtrackers.models.lorat.configuration_lorat import LoRATConfig
from mmtrackers.tracking.memory import QuarterReferences


@strict
class SPMTrackConfig(LoRATConfig):
    """Configuration of an SPMTrack tracker (arXiv 2503.18338); the defaults are SPMTrack-B.

    Sizes of the adapter are in `TMoEConfig`; fields of the trunk are `LoRATConfig`'s.

    Args:
        reference_rule (`str`): which frames the two later references are, "quarters" (about a quarter and three
            quarters of the video so far) or "thirds" (the rule of SPMTrack-B's published LaSOT result).
        max_memory (`int` or None): most frames whose crops a session keeps for it, 0.46 MB each; in longer videos
            references are up to a few frames late, see `GrowingPolicy`. None for the exact rule and memory that grows.
    """

    model_type = "mmt_spmtrack"

    template_size: int = 196
    search_size: int = 378
    reference_rule: str = "quarters"
    max_memory: int | None = 1024

    @property
    def num_templates(self) -> int:
        """References beside a search crop."""
        return 3

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.reference_rule not in ("quarters", "thirds"):
            raise ValueError(f"reference_rule is {self.reference_rule!r}, expected 'quarters' or 'thirds'.")
        QuarterReferences(max_memory=self.max_memory)  # which says what max_memory may be
