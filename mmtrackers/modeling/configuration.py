"""What the configurations of all trackers share."""

from mmtrackers.processing.frames import ANY, MODALITIES

# far beyond every published model; a file that names more is broken, or meant to fill the memory
LARGEST = {
    "hidden_size": 16_384,
    "num_hidden_layers": 256,
    "num_attention_heads": 1_024,
    "patch_size": 256,
    "template_size": 4_096,
    "search_size": 4_096,
    "mlp_ratio": 64,
}
LARGEST_GRID = 128
LARGEST_TRUNK = 20_000_000_000


class CropConfigMixin:
    """Grids of the crops and checks of the fields that every tracker's configuration has."""

    @property
    def template_grid(self) -> int:
        """Cells along a side of the template crop."""
        return self.template_size // self.patch_size

    @property
    def search_grid(self) -> int:
        """Cells along a side of the search crop, and of the head's maps."""
        return self.search_size // self.patch_size

    @property
    def search_factor(self) -> float:
        """Side of the search crop over the target's, as the published trackers of these sizes have it."""
        return 5.0 if self.search_size in (378, 384) else 4.0

    def check_sizes(self) -> None:
        """Raises ValueError where a size is none that a model can have, or where widths or crops do not divide."""
        for name, most in LARGEST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 to {most}.")
        weights = self.num_hidden_layers * self.hidden_size**2 * (4 + 2 * self.mlp_ratio)
        if weights > LARGEST_TRUNK:
            raise ValueError(
                f"{self.num_hidden_layers} layers of width {self.hidden_size} and mlp_ratio {self.mlp_ratio} make "
                f"{weights:,.0f} weights, expected at most {LARGEST_TRUNK:,}."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads.")
        for name in ("template_size", "search_size"):
            if getattr(self, name) % self.patch_size:
                raise ValueError(f"{name} {getattr(self, name)} is no multiple of patch_size {self.patch_size}.")
            if getattr(self, name) > LARGEST_GRID * self.patch_size:
                raise ValueError(
                    f"{name} {getattr(self, name)} makes more than {LARGEST_GRID} x {LARGEST_GRID} patches of "
                    f"{self.patch_size} pixels."
                )

    def check_choices(self, **choices: tuple) -> None:
        """Raises ValueError where `streams`, `modality`, `fusion` or a field of `choices` has a value not allowed."""
        shared = {"streams": (1, 2), "modality": (*MODALITIES, ANY), "fusion": ("sum", "mean")}
        for name, allowed in (shared | choices).items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}.")
