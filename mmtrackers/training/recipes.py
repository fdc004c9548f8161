"""How trackers are trained: the published recipes as typed presets."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from .frame_samplers import CausalSampler, FrameSampler, IntervalSampler, OrderedSampler

RGB_SETS = ["lasot/train", "got10k/train_vot", "coco/train2017", "trackingnet/train"]


def option(default: Any, text: str, **more: Any) -> Any:
    """A dataclass field with a help text for the command line."""
    return field(default=default, metadata={"help": text.replace("%", "%%"), **more})


def listed(text: str) -> Any:
    """A field that is a list, empty by default."""
    return field(default_factory=list, metadata={"help": text})


@dataclass
class Recipe:
    """What decides the result of a training run, besides data, start weights and the model's loss; the defaults are
    OSTrack's. Every field is an option of `examples/finetune.py`; `--preset` chooses one of `RECIPES`.

    Example:
        >>> RECIPES["seatrack-rgbe"].lr, RECIPES["lorat"].make_frame_sampler()
        (6e-05, IntervalSampler(max_gap=100))
    """

    system: Literal["none", "lorat", "spmtrack", "seatrack", "patrack", "sdmoea"] = option(
        "none", "Adapter to put on the base."
    )
    modality: Literal["rgb", "thermal", "depth", "event", "any"] = option("rgb", "Second modality of the tracker.")
    sets: list[str] = listed("Training sets of the published run, as set/split.")  # noqa: RUF009
    weights: list[float] = listed("Chance of each set; equal if left out.")  # noqa: RUF009
    samples_per_epoch: int = option(60_000, "Pairs or clips per epoch, over all processes.")
    epochs: int = option(60, "Length of the run.")
    batch_size: int = option(32, "Pairs or clips per optimizer step, over all processes.")

    frame_sampler: Literal["causal", "interval", "ordered"] = option("causal", "Rule by which frames are drawn.")
    balanced: bool = option(False, "Each sequence as evenly often in an epoch as possible, not drawn at random.")
    templates: int = option(1, "Templates of a sample.")
    searches: int = option(1, "Search frames of a sample; with more than one the state is carried through the clip.")
    max_gap: int = option(200, "Frames between templates, and from template to search frame.")
    search_gap: int = option(400, "Frame sampler 'ordered': frames from the references to the search frames.")
    center_jitter: float = option(3.0, "Search crop: shift, in mean sides of the box.")
    size_jitter: float = option(0.25, "Search crop: standard deviation of the logarithm of the sides.")
    lost_crops: float = option(0.0, "Share of search crops that are 1.5 to 2.5 times too large or small besides.")
    absent: float = option(0.0, "Composed scenes: share of samples whose search crops do not show the target.")
    augmentation: Literal["ostrack", "deit"] = option("ostrack", "Changes of color and mirror images.")

    lr: float = option(4e-4, "Full learning rate.")
    trunk_lr_factor: float = option(1.0, "Of the trunk, where all weights are trained.")
    weight_decay: float = option(1e-4, "AdamW's.")
    decay: Literal["all", "matrices", "weights"] = option(
        "all", "What decays: all; tensors of two or more dimensions; those but for norms, embeddings and 1 x C maps."
    )
    schedule: Literal["constant", "step", "linear", "cosine", "warm-cosine"] = option("step", "Of the learning rate.")
    lr_drop_epoch: int | None = option(None, "Epoch after which schedule 'step' divides by 10 (default: 80 %).")
    warmup_steps: int = option(0, "Steps of linear growth at the start.")
    warmup_lr: float = option(0.0, "Schedule 'warm-cosine': rate of the first step.")
    final_lr: float = option(0.0, "Schedule 'warm-cosine': rate that the cosine falls to.")
    full_token_epochs: int = option(0, "First epochs in which a base with candidate elimination keeps every token.")
    elimination_warmup: int = option(0, "Epochs after them in which its share falls to the config's.")
    box_warmup_epochs: int = option(0, "First epochs in which an MLP head's GIoU term counts ten times.")
    clip_norm: float = option(0.1, "Largest norm of all gradients together; 0: no clipping.")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "Autocast; weights and losses stay float32.")
    seed: int = option(0, "Of weights, data and dropout.")

    def make_frame_sampler(self) -> FrameSampler:
        """The rule that chooses the frames of a sample; ValueError for numbers of frames that it cannot give."""
        if self.frame_sampler == "causal":
            return CausalSampler(self.templates, self.searches, self.max_gap)
        if self.frame_sampler == "ordered":
            return OrderedSampler(self.templates, self.searches, self.max_gap, self.search_gap)
        if (self.templates, self.searches) != (1, 1):
            raise ValueError(f"frame sampler 'interval' draws one template and one search frame, not {self.templates} "
                             f"and {self.searches}: use 'causal' or 'ordered' for clips")  # fmt: skip
        return IntervalSampler(self.max_gap)

    def values(self) -> dict[str, Any]:
        """All fields of a recipe."""
        return {f.name: getattr(self, f.name) for f in fields(Recipe)}


# github.com/botaoye/OSTrack, experiments/ostrack: MAE start, 4 GPUs x 32 pairs, trunk at a tenth of the rate
_OSTRACK = Recipe(
    sets=[*RGB_SETS[:3], "trackingnet/train_0_3"], epochs=300, lr_drop_epoch=240, batch_size=128, trunk_lr_factor=0.1,
    full_token_epochs=20, elimination_warmup=80,
)  # fmt: skip
# github.com/GXNU-ZhongLab/ODTrack, experiments/odtrack/baseline.yaml; batch 8 on each GPU
_ODTRACK = replace(
    _OSTRACK, samples_per_epoch=30_000, batch_size=8, templates=3, searches=2, max_gap=400, lr=1e-4,
    center_jitter=4.5, size_jitter=0.5, full_token_epochs=0, elimination_warmup=0,
)  # fmt: skip
# github.com/AutoLab-SAI-SJTU/SEATrack, experiments/seatrack: 2 GPUs x 32 pairs
_SEATRACK = Recipe(system="seatrack", batch_size=64, lr_drop_epoch=48)
# github.com/ouha1998/Learning-Progressive-Adaptation-for-Multi-Modal-Tracking, experiments/patrack
_PATRACK = Recipe(system="patrack", batch_size=32, lr_drop_epoch=48)
# No recipe is published for SDMoEA: clips of ODTrack, rate and mixture of github.com/supertyd/XTrack, schedule of ViPT
_SDMOEA = Recipe(
    system="sdmoea", sets=["lasher/train", "visevent/train", "depthtrack/train"], batch_size=16, lr=1e-4,
    templates=3, searches=2, lr_drop_epoch=48,
)  # fmt: skip
# github.com/LitingLin/LoRAT, config/LoRAT/run.yaml
_LORAT = Recipe(
    system="lorat", sets=RGB_SETS, samples_per_epoch=131_072, epochs=170, batch_size=128, frame_sampler="interval",
    balanced=True, max_gap=100, augmentation="deit", lr=1e-4, weight_decay=0.1, decay="weights",
    schedule="warm-cosine", warmup_steps=2_048, warmup_lr=1e-7, final_lr=1e-6, clip_norm=1.0, mixed_precision="fp16",
)  # fmt: skip
# github.com/WenRuiCai/SPMTrack, config/SPMTrack/run.yaml; on one-dimensional tensors and embeddings no decay
_SPMTRACK = replace(
    _LORAT, system="spmtrack", frame_sampler="ordered", balanced=False, templates=3, searches=2, max_gap=200,
    decay="matrices",
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "ostrack-256": _OSTRACK,
    "ostrack-384": replace(_OSTRACK, center_jitter=4.5, size_jitter=0.5),
    "odtrack-384": _ODTRACK,
    "seatrack-rgbt": replace(_SEATRACK, modality="thermal", sets=["lasher/train_882"]),
    "seatrack-rgbd": replace(_SEATRACK, modality="depth", sets=["depthtrack/train_146"], epochs=25),
    "seatrack-rgbe": replace(_SEATRACK, modality="event", sets=["visevent/train"], epochs=45, lr=6e-5),
    "patrack-rgbt": replace(_PATRACK, modality="thermal", sets=["lasher/train"]),
    "patrack-rgbd": replace(_PATRACK, modality="depth", sets=["depthtrack/train_146"]),
    "patrack-rgbe": replace(_PATRACK, modality="event", sets=["visevent/train"]),
    "sdmoea-256": replace(_SDMOEA, modality="any"),
    "sdmoea-384": replace(
        _SDMOEA, modality="any", epochs=85, lr_drop_epoch=78, batch_size=8, max_gap=400, center_jitter=4.5,
        size_jitter=0.5,
    ),
    "lorat": _LORAT,
    "lorat-got10k": replace(_LORAT, sets=["got10k/train"], epochs=100),
    "spmtrack": _SPMTRACK,
    "spmtrack-large": replace(_SPMTRACK, batch_size=64, warmup_steps=4_096, box_warmup_epochs=2),
    "spmtrack-giant": replace(_SPMTRACK, batch_size=32, warmup_steps=8_192),
    "spmtrack-got10k": replace(_SPMTRACK, sets=["got10k/train"], epochs=100),
}
