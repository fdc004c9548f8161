"""The options of a training run."""

from dataclasses import dataclass
from typing import Literal

from .recipes import RECIPES, Recipe, listed, option


@dataclass
class TrainingOptions(Recipe):
    """What to train, on what, and how: a recipe, and what a run needs besides. Every field is an option of `mmtrackers
    finetune`; ValueError for options that contradict each other, or one that lacks."""

    output: str = option("", "Folder for the result, its checkpoints and logs.")
    preset: str = option("", f"A published recipe, whose fields the other options replace: {', '.join(RECIPES)}.")
    model: str | None = option(None, "Repository or folder: a base, or an adapter to go on with; default: our base.")
    search_size: int = option(0, "Side of the search crop on a plain DINOv2; 0: LoRAT 224, SPMTrack 378.")
    train_base: bool = option(False, "Train all weights of --model, without an adapter.")
    adapter: str | None = option(None, "Folder of any adapter's config, as peft writes it, in the place of --system.")

    data: list[str] = listed(  # noqa: RUF009
        "Sets to train on: FOLDER with sequences of any known layout, SET/SPLIT=FOLDER, such as "
        "lasher/train=/data/LasHeR, or hf/SPLIT=PLACE, a Hugging Face dataset: its id, or a folder it was saved in. "
        "--weights says how often each is drawn."
    )
    synthetic: str | None = option(None, "Folder of pictures to compose sequences from.")
    blindness: Literal["drawn", "night", "camouflage", "glare"] = option(
        "drawn", "Composed sequences: what keeps RGB from seeing the target, in all of them."
    )
    workers: int = option(4, "Processes that prepare data, per training process.")
    gradient_accumulation: int = option(1, "Passes that an optimizer step is split into.")
    frozen_dtype: Literal["float32", "bfloat16"] = option("float32", "Precision that frozen weights are held in.")
    checkpointing: bool = option(False, "Compute activations anew in the backward pass: less memory, a third slower.")
    frame_by_frame: bool = option(False, "Backward after each frame of a clip: less memory, the same gradients.")
    ema: float = option(0.0, "Decay of averaged weights, which are then what is saved as the result; 0: off.")

    validate: list[str] = listed(  # noqa: RUF009
        "Sequences to track through as --data gives them; the best result so far is kept in OUTPUT/best."
    )
    validate_epochs: int = option(1, "Epochs between two validations.")
    validate_sequences: int = option(8, "Sequences of each --validate to track through, spread evenly.")

    resume: str | None = option(None, "Go on from the newest checkpoint, or the one given.", nargs="?", const="latest")
    save_steps: int = option(0, "Checkpoint every N optimizer steps; 0: only by time.")
    save_minutes: float = option(10.0, "Checkpoint every N minutes; 0: only by steps.")
    max_steps: int = option(0, "Stop after N optimizer steps of the whole run, with a checkpoint; 0: no limit.")
    max_minutes: float = option(0.0, "Stop N minutes after this start, with a checkpoint; 0: no limit.")
    log_every: int = option(50, "Steps per entry in training_log.json.")
    track_with: Literal["none", "tensorboard", "trackio"] = option("none", "Where to send the curves besides.")
    license: str = option("", "License of the weights for the card, such as apache-2.0; none is claimed by default.")
    push_to_hub: str | None = option(None, "Repository to upload the result to.")
    hub_base: str | None = option(None, "Hub id of the base, for the upload of an adapter trained on a local folder.")

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("Say where the result goes: --output FOLDER.")
        if self.model is None:
            raise ValueError("Say what to train: --model, a base or an adapter.")
        if bool(self.data) == (self.synthetic is not None):
            sets = f" The preset was trained on {', '.join(self.sets)}." if self.sets else ""
            raise ValueError(f"Give either --data (sequences) or --synthetic (a folder of pictures).{sets}")
        if self.blindness != "drawn" and not self.synthetic:
            raise ValueError(f"--blindness {self.blindness} is for composed sequences: give --synthetic.")
        if self.weights and len(self.weights) != len(self.data):
            raise ValueError(f"{len(self.weights)} --weights for {len(self.data)} --data: expected one each.")
        if self.train_base and (self.adapter or self.system != "none"):
            given = "--adapter" if self.adapter else f"--system {self.system}"
            raise ValueError(f"{given} needs a trained, frozen base: drop --train-base.")
        if self.box_warmup_epochs and self.system not in ("lorat", "spmtrack"):
            raise ValueError("--box-warmup-epochs belongs to MLP heads: use it with --system lorat or spmtrack.")
        if self.search_size and self.system not in ("lorat", "spmtrack"):
            raise ValueError("--search-size is for a plain DINOv2: use it with --system lorat or spmtrack.")
        if self.frame_by_frame and self.searches < 2:
            raise ValueError(f"--frame-by-frame is for clips: --searches is {self.searches}, expected 2 or more.")
        if self.system in ("seatrack", "patrack", "sdmoea") and self.modality == "rgb":
            raise ValueError(f"--system {self.system} needs --modality thermal, depth or event.")
        for name in ("samples_per_epoch", "epochs", "batch_size", "gradient_accumulation", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected at least 1.")

    def samples_per_pass(self, processes: int) -> int:
        """Samples of one process and pass. Raises ValueError where a step cannot be split evenly."""
        parts = processes * self.gradient_accumulation
        if self.batch_size % parts:
            raise ValueError(f"--batch-size {self.batch_size} cannot be split over {processes} processes x "
                             f"{self.gradient_accumulation} passes: it counts all samples of an optimizer step.")
        return self.batch_size // parts
