"""Configuration of PATrack's adapter."""

from dataclasses import dataclass

from mmtrackers.tuners.registration import TrackerPeftType, TrackerTunerConfig


@dataclass
class ProgressiveConfig(TrackerTunerConfig):
    """Adapter of PATrack (arXiv 2603.21100): modality-dependent, modality-entangled and head adapters.

    Every junction of a layer carries a modality-dependent adapter (MDA) or, in `cea_layers`, a modality-entangled one
    (CEA); the neck carries the head adapter (HA). The defaults are the published code's; where the paper reads
    differently from the code, a field gives the paper's reading.

    Args:
        mda_width (`int`): width inside an MDA, a multiple of 4.
        cea_width (`int`): width inside a CEA.
        cea_layers (`list[int]` or None): layers with CEA; None for every third one: 3, 6, 9, ...
        cea_train_norm (`bool`): give CEA's own layer norm a trained scale and shift; the published recipe leaves it a
            plain normalization.
        head_width (`int`): width inside the HA.
        head_dropout (`float`): its dropout, in training.
        mda_source (`str`): whose tokens a stream's MDA reads: "other" (the code) or "self" (the paper, which calls it
            intra-modal).
        cea_swap_outputs (`bool`): give each stream the attention over the other stream's values and its own residual
            (the paper), not the attention over its own values and the other's residual (the code).
        head_residual (`bool`): add the HA to the features (a form left as a comment in the code), not replace them.
    """

    own_type = TrackerPeftType.PROGRESSIVE

    mda_width: int = 8
    cea_width: int = 192
    cea_layers: list[int] | None = None
    cea_train_norm: bool = False
    head_width: int = 192
    head_dropout: float = 0.1
    mda_source: str = "other"
    cea_swap_outputs: bool = False
    head_residual: bool = False

    def check(self) -> None:
        if self.mda_width < 4 or self.mda_width % 4:
            raise ValueError(f"mda_width is {self.mda_width}, expected a multiple of 4: quarters of it are mixed.")
        if min(self.cea_width, self.head_width) < 1:
            raise ValueError("cea_width and head_width must be at least 1.")
        if self.mda_source not in ("other", "self"):
            raise ValueError(f"mda_source is {self.mda_source!r}, expected 'other' or 'self'.")

    def default_targets(self) -> str:
        return r"(?:.*\.)?(?:layers\.\d+\.(?:attention|mlp)_junction|neck)"

    def has_cea(self, layer: int) -> bool:
        """Whether the junctions of a layer carry CEA instead of MDA."""
        return layer > 0 and layer % 3 == 0 if self.cea_layers is None else layer in self.cea_layers
