"""Configuration of ODTrack."""

from huggingface_hub.dataclasses import strict

from mmtrackers.models.ostrack.configuration_ostrack import OSTrackConfig
from mmtrackers.tracking.memory import SpreadTemplates


@strict
class ODTrackConfig(OSTrackConfig):
    """Configuration of an ODTrack base tracker (arXiv 2401.01686); the defaults are ViT-B at 384 pixels.

    Fields that are not named here are `OSTrackConfig`'s.

    Args:
        num_templates (`int`): templates of a training sample; while tracking up to one more serves, see
            `SpreadTemplates`.
        max_memory (`int` or None): past frames whose template crops a session keeps at most; None for all that the
            published rule can ask for.
        fusion (`str`): how two streams' features and track tokens are fused. The head reads the product of both, so
            "sum" would make its input eight times as large as one stream's.
    """

    model_type = "mmt_odtrack"

    template_size: int = 192
    search_size: int = 384
    elimination_layers: list[int] | tuple[int, ...] = ()
    fusion: str = "mean"
    num_templates: int = 3
    max_memory: int | None = 1024

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.num_templates < 1:
            raise ValueError(f"num_templates is {self.num_templates}, expected at least 1.")
        if self.num_templates > 1:
            SpreadTemplates(self.max_memory, self.num_templates)  # which says what max_memory may be
