"""
Trains an adapter on a frozen tracker, or a whole base, with accelerate.

    # adapter for thermal on an OSTrack base, SEATrack's recipe
    accelerate launch examples/finetune.py --preset seatrack-rgbt --model org/ostrack-base-256 --data LasHeR/train \
        --output out/rgbt
    # a base from scratch on composed pictures, one hour in bf16; the same command again goes on where it stopped, and
    # out/tiny/checkpoints/*/model can be tried meanwhile
    python examples/finetune.py --new-base folder-with-config --synthetic pictures --output out/tiny \
        --mixed-precision bf16 --lr 1e-3 --schedule cosine --max-minutes 60 --resume

`--batch-size` counts the pairs of an optimiser step, over all processes and passes. Which pair comes when depends on
seed, epoch and number only: not on workers, and not on how pairs are spread over processes.
Over several processes the loss is the mean over processes; it equals one process's loss on the whole batch as long as
every process has the same number of peaks on its target maps (it divides the focal term): one a pair from 8 cells on.
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import ProjectConfiguration, gather_object, set_seed
from peft import PeftConfig
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import HfArgumentParser

import mmtrackers
from mmtrackers.data import Sequence, SequenceSet
from mmtrackers.hub.card import is_own_text
from mmtrackers.hub.publish import TrainingFacts, push, write_card
from mmtrackers.modeling.clips import backward_clip
from mmtrackers.models.ostrack.modeling_ostrack import elimination_keep_rate
from mmtrackers.processing.files import write_json
from mmtrackers.training import Augmentation, DeiTAugmentation, TrainingAugmentation
from mmtrackers.training.monitor import LossMeter, StopRequest, TimedBatches, quiet_worker, validation_overlap
from mmtrackers.training.optimization import cast_frozen, learning_rate, parameter_groups
from mmtrackers.training.recipes import RECIPES, Recipe, listed, option
from mmtrackers.training.state import (
    CheckpointStore,
    TrainingProgress,
    WeightAverage,
    changing_tensors,
    gathered,
    gathered_tensors,
    is_sharded,
)

STARVED = 0.3
# systems with an adapter of their own
TRACKERS = {
    "lorat": mmtrackers.LoRATForTracking,
    "patrack": mmtrackers.PATrackForTracking,
    "sdmoea": mmtrackers.SDMoEAForTracking,
    "seatrack": mmtrackers.SEATrackForTracking,
    "spmtrack": mmtrackers.SPMTrackForTracking,
}


@dataclass
class Options(Recipe):
    """What to train, on what, and how."""

    output: str = option("", "Folder for the result, its checkpoints and logs.")
    preset: str = option("", f"A published recipe, whose fields the other options replace: {', '.join(RECIPES)}.")
    model: str | None = option(None, "Repository or folder of a base, or of an adapter to go on with.")
    new_base: str | None = option(None, "Folder with the config.json of an OSTrack base to train from random weights.")
    search_size: int = option(0, "Side of the search crop on a plain DINOv2; 0: LoRAT 224, SPMTrack 378.")
    train_base: bool = option(False, "Train all weights of --model, without an adapter.")
    adapter: str | None = option(
        None, "Folder with an adapter_config.json of any kind (peft writes it): put on --model in place of --system's."
    )

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
    gradient_accumulation: int = option(1, "Passes that an optimiser step is split into.")
    frozen_dtype: Literal["float32", "bfloat16"] = option("float32", "Precision that frozen weights are held in.")
    checkpointing: bool = option(False, "Compute activations anew in the backward pass: less memory, a third slower.")
    frame_by_frame: bool = option(False, "Backward after each frame of a clip: less memory, the same gradients.")
    ema: float = option(0.0, "Decay of averaged weights, which are then what is saved as the result; 0: off.")

    validate: list[str] = listed(  # noqa: RUF009
        "Sequences to track through as --data gives them; the best result so far is kept in OUTPUT/best."
    )
    validate_epochs: int = option(1, "Epochs between two validations.")
    validate_sequences: int = option(8, "Sequences of each --validate to track through, spread evenly.")

    resume: str | None = option(
        None, "Go on from the newest checkpoint in --output (if any), or the one given.", nargs="?", const="latest"
    )
    save_steps: int = option(0, "Checkpoint every N optimiser steps; 0: only by time.")
    save_minutes: float = option(10.0, "Checkpoint every N minutes; 0: only by steps.")
    max_steps: int = option(0, "Stop after N optimiser steps of the whole run, with a checkpoint; 0: no limit.")
    max_minutes: float = option(0.0, "Stop N minutes after this start, with a checkpoint; 0: no limit.")
    log_every: int = option(50, "Steps per entry in training_log.json.")
    track_with: Literal["none", "tensorboard"] = option("none", "Where to send the curves besides.")
    push_to_hub: str | None = option(None, "Repository to upload the result to.")
    hub_base: str | None = option(None, "Hub id of the base, for the upload of an adapter trained on a local folder.")

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("Say where the result goes: --output FOLDER.")
        if (self.model is None) == (self.new_base is None):
            raise ValueError("Give either --model (a base or an adapter) or --new-base (a folder with a config.json).")
        if bool(self.data) == (self.synthetic is not None):
            sets = f" The preset was trained on {', '.join(self.sets)}." if self.sets else ""
            raise ValueError(f"Give either --data (sequences) or --synthetic (a folder of pictures).{sets}")
        if self.blindness != "drawn" and not self.synthetic:
            raise ValueError(f"--blindness {self.blindness} is for composed sequences: give --synthetic.")
        if self.weights and len(self.weights) != len(self.data):
            raise ValueError(f"{len(self.weights)} --weights for {len(self.data)} --data: expected one each.")
        if self.system != "none" and (self.train_base or self.new_base):
            raise ValueError(f"--system {self.system} needs a trained, frozen base: drop --train-base or --new-base.")
        if self.box_warmup_epochs and self.system not in ("lorat", "spmtrack"):
            raise ValueError("--box-warmup-epochs belongs to MLP heads: use it with --system lorat or spmtrack.")
        if self.search_size and self.system not in ("lorat", "spmtrack"):
            raise ValueError("--search-size is for a plain DINOv2: use it with --system lorat or spmtrack.")
        if self.adapter and (self.train_base or self.new_base):
            raise ValueError("--adapter needs a trained, frozen base: drop --train-base or --new-base.")
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
            raise ValueError(
                f"--batch-size {self.batch_size} cannot be split over {processes} processes x "
                f"{self.gradient_accumulation} passes: it counts all samples of an optimiser step."
            )
        return self.batch_size // parts


def parse(arguments: list[str] | None = None) -> Options:
    """The command line; a preset's fields are the defaults of the other options."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = HfArgumentParser(Options, description=__doc__.split("\n\n")[0].strip())
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--preset", default="")
    preset = early.parse_known_args(arguments)[0].preset
    try:
        if preset and preset not in RECIPES:
            raise ValueError(f"--preset {preset!r} is unknown; there are {', '.join(RECIPES)}.")
        parser.set_defaults(**(RECIPES[preset].values() if preset else {}))
        return parser.parse_args_into_dataclasses(arguments)[0]
    except ValueError as error:
        parser.error(str(error))


def build_model(options: Options) -> nn.Module:
    """The tracker to train, with `requires_grad` set: an adapter alone, or everything."""
    if options.new_base:
        config = mmtrackers.OSTrackConfig.from_pretrained(options.new_base)
        return mmtrackers.OSTrackForTracking(config).requires_grad_(True)
    if options.train_base:
        return mmtrackers.AutoTracker.from_pretrained(options.model, dtype=torch.float32).requires_grad_(True)
    if options.adapter or options.system != "none":
        adapter = PeftConfig.from_pretrained(options.adapter) if options.adapter else None
        kind = TRACKERS.get(options.system, mmtrackers.AutoTracker)
        sizes = {"search_size": options.search_size} if options.search_size else {}
        return kind.from_base(options.model, modality=options.modality, adapter_config=adapter, **sizes)
    try:
        return mmtrackers.AutoTracker.from_pretrained(options.model, is_trainable=True)
    except ValueError as error:
        if "full model" in str(error):
            error.add_note(
                "To train an adapter on it add --system seatrack, or --adapter FOLDER for one of your own; to train "
                "the base itself, --train-base."
            )
        raise


def build_processor(options: Options, model: nn.Module) -> Any:
    """The image processor saved with the model, else what trackers of its sizes are trained with."""
    kind = mmtrackers.TrackerImageProcessor
    repo = options.model or options.new_base
    try:
        saved = kind.get_image_processor_dict(repo)[0]
    except OSError:
        saved = {}
    # a DINOv2 has a processor of its own, for classification
    own = saved.get("image_processor_type") == kind.__name__
    return kind.from_pretrained(repo) if own else model.image_processor()


def build_dataset(options: Options, model: nn.Module, processor: Any, samples: int) -> Dataset:
    """`samples` pairs or clips per epoch, each a function of (seed, epoch, index)."""
    streams, sampler = model.config.streams, options.make_frame_sampler()
    common = {"processor": processor, "streams": streams, "samples_per_epoch": samples, "seed": options.seed}
    common["augment"] = build_augmentation(options, model)
    common["modality"] = model.config.modality if streams == 2 else "rgb"
    if options.synthetic:
        from mmtrackers.synthetic.pairs import PictureLibrary, SyntheticPairs

        frames = {"templates": sampler.templates, "searches": sampler.searches, "longest_gap": options.max_gap}
        blindness = None if options.blindness == "drawn" else options.blindness
        return SyntheticPairs(PictureLibrary(options.synthetic), **common, **frames, blindness=blindness)
    from mmtrackers.training.sampling import PairDataset, mixture

    sequences, chances = mixture(map(open_data, options.data), options.weights or [1.0] * len(options.data))
    frames = {"frame_sampler": sampler, "chances": chances, "balanced": options.balanced}
    return PairDataset(sequences, **common, **frames, skip_short=True)


def open_data(entry: str) -> SequenceSet:
    """The sequences of one entry of `--data`."""
    from mmtrackers.data import load_hf_dataset, open_dataset

    name, _, place = entry.rpartition("=")
    dataset, _, split = name.partition("/")
    if dataset == "hf":
        return load_hf_dataset(place, split or None)
    return open_dataset(place, dataset=dataset or None, split=split or None)


def build_augmentation(options: Options, model: nn.Module) -> TrainingAugmentation:
    """The recipe's changes of crops and colours."""
    jitter = {"centre_jitter": options.centre_jitter, "size_jitter": options.size_jitter}
    if options.augmentation == "deit":
        return DeiTAugmentation(**jitter, template_grid=model.config.template_grid)
    return Augmentation(**jitter, lost_crops=options.lost_crops)


class Trainer:
    """One run: everything that accelerate prepared, and the loop."""

    def __init__(self, options: Options, accelerator: Accelerator) -> None:
        set_seed(options.seed)
        self.options, self.accelerator = options, accelerator
        self.pairs_per_step = options.batch_size
        self.steps_per_epoch = options.samples_per_epoch // self.pairs_per_step
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"--samples-per-epoch {options.samples_per_epoch} is less than one step ({self.pairs_per_step} pairs)."
            )
        self.batches_per_epoch = self.steps_per_epoch * options.gradient_accumulation
        self.all_steps = self.steps_per_epoch * options.epochs
        self.total_steps = min(self.all_steps, options.max_steps or sys.maxsize)
        model = build_model(options)
        if accelerator.device.type == "cpu":
            # the backward pass of torch's fused attention takes three times as long there
            model.set_attn_implementation("eager")
        self.processor = build_processor(options, model)
        dataset = build_dataset(options, model, self.processor, self.steps_per_epoch * self.pairs_per_step)
        self.dataset = dataset
        set_seed(options.seed, device_specific=True)  # from here on dropout, which must differ between processes
        self.unwrapped, self.eliminates = model, bool(getattr(model.config, "elimination_layers", ()))
        self.output = Path(options.output)
        if options.frozen_dtype != "float32":
            cast_frozen(model, getattr(torch, options.frozen_dtype))
        if options.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        self.validation = [sequence for entry in options.validate for sequence in self.spread(entry)]
        # The command line rules the rate and the decay: both are written into the optimiser anew, step by step.
        optimizer = torch.optim.AdamW(parameter_groups(model, options))
        loader = DataLoader(
            dataset,
            batch_size=options.samples_per_pass(accelerator.num_processes),
            drop_last=True,
            num_workers=options.workers,
            worker_init_fn=quiet_worker,
            prefetch_factor=4 if options.workers else None,
            pin_memory=accelerator.device.type == "cuda",
            # Without its own generator a loader draws from the global one, and dropout after a resume would differ.
            generator=torch.Generator().manual_seed(options.seed),
        )
        if accelerator.is_fsdp2:
            # Autocast as everywhere else. FSDP's own policy would cast all of a layer, labels and losses too.
            accelerator.state.fsdp_plugin.mixed_precision_policy = None
            model.forward = accelerator.autocast()(model.forward)
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, loader)
        # FSDP has put shards in the place of the parameters
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.rebuilt: nn.Module | None = None
        self.average = WeightAverage(model, options.ema) if options.ema else None
        folder = self.output / "checkpoints"
        self.store = CheckpointStore(accelerator, model, folder, self.optimizer, self.average)
        self.progress = TrainingProgress(fixed=self.fixed_options())
        self.meter = LossMeter()
        self.started = self.last_save = time.monotonic()
        self.state, self.warned = "running", False

    def spread(self, entry: str) -> list[Sequence]:
        """Some sequences of a set, evenly over its list."""
        sequences = open_data(entry)
        count = min(len(sequences), self.options.validate_sequences)
        return [sequences[round(i * (len(sequences) - 1) / max(1, count - 1))] for i in range(count)]

    def fixed_options(self) -> dict[str, Any]:
        """Options that decide which pair comes in which step; a resumed run must keep them."""
        names = ("seed", "samples_per_epoch", "batch_size", "gradient_accumulation")
        fixed = {name: getattr(self.options, name) for name in names}
        return fixed | {"processes": self.accelerator.num_processes}

    def resume(self) -> None:
        """Goes back to a checkpoint, if the options ask for it and there is one."""
        wanted, newest = self.options.resume, self.store.newest()
        if wanted is None:
            if newest is not None:
                raise ValueError(
                    f"{self.output.name} already holds {newest.name} of an earlier run: add --resume to go on with "
                    "it, or choose another --output."
                )
            return
        folder = newest if wanted == "latest" else Path(wanted)
        if folder is None:
            self.accelerator.print("No checkpoint yet: starting from the beginning.")
            return
        self.progress = self.store.load(folder)
        fixed = self.fixed_options()
        changed = {n: (self.progress.fixed.get(n), v) for n, v in fixed.items() if self.progress.fixed.get(n) != v}
        if changed:
            text = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
            raise ValueError(
                f"{folder.name} cannot go on with other pairs per step ({text}). Keep these options, or start a new "
                "run in another --output with --model pointing at this result."
            )
        self.meter = LossMeter(self.progress.meter)
        self.accelerator.print(f"Going on from {folder.name}.")

    def train(self) -> None:
        """Runs until the end of the last epoch, a limit, a signal, or a loss that is not a number."""
        self.model.train()
        before = self.progress.step
        finished = before >= self.total_steps
        with StopRequest() as stop, self.bar() as bar:
            while self.progress.epoch < self.options.epochs and not finished:
                finished = self.train_epoch(bar, stop)
        if self.state == "running":
            self.state = "complete" if self.progress.step >= self.all_steps else "stopped at --max-steps"
        if self.progress.step > before:
            self.save()

    def train_epoch(self, bar: tqdm, stop: StopRequest) -> bool:
        """The rest of the epoch under way. Returns whether the run is over."""
        progress, accelerator = self.progress, self.accelerator
        self.dataset.set_epoch(progress.epoch)
        self.loader.set_epoch(progress.epoch)
        loader = accelerator.skip_first_batches(self.loader, progress.batch) if progress.batch else self.loader
        batches = TimedBatches(loader)
        clock, mark = time.monotonic(), (time.monotonic(), 0.0, progress.step)
        for batch in batches:
            self.train_batch(batch)
            progress.batch += 1
            if not accelerator.sync_gradients:
                continue
            progress.step += 1
            now = time.monotonic()
            progress.seconds += now - clock
            clock = now
            bar.update()
            if progress.step % self.options.log_every == 0 or progress.step == self.all_steps:
                passed = now - mark[0]
                self.log(bar, (progress.step - mark[2]) / passed, (batches.waited - mark[1]) / passed)
                mark = (time.monotonic(), batches.waited, progress.step)
            if progress.batch == self.batches_per_epoch:
                progress.epoch, progress.batch = progress.epoch + 1, 0
                if self.validation and progress.epoch % self.options.validate_epochs == 0:
                    self.validate()
            if self.pause(stop):
                return True
        return False

    def train_batch(self, batch: dict[str, torch.Tensor]) -> None:
        """Forward, backward and, at the end of an accumulation, the optimiser step."""
        accelerator, options = self.accelerator, self.options
        with accelerator.accumulate(self.model):
            pixels = {name: self.processor.normalize(batch[name]) for name in ("search", "template")}
            inputs = batch | {name: value.to(self.unwrapped.dtype) for name, value in pixels.items()}
            if self.progress.epoch < options.box_warmup_epochs:
                inputs["box_weight"] = 10.0
            if (options.full_token_epochs or options.elimination_warmup) and self.eliminates:
                inputs["elimination_keep_rate"] = self.keep_rate()
            if options.frame_by_frame:
                output = backward_clip(self.model, **inputs, backward=accelerator.backward)
            else:
                output = self.model(**inputs)
                accelerator.backward(output.loss)
            parts = {"loss": output.loss, **output.loss_parts}
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.trained, options.clip_norm or math.inf)
                parts["gradient"] = gathered(norm)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate() * group["factor"]
                    group["weight_decay"] = options.weight_decay * group["decays"]
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.meter.add(parts, moment=self.progress.epoch * self.batches_per_epoch + self.progress.batch)
        if self.average is not None and accelerator.sync_gradients:
            self.average.update(self.unwrapped)

    def keep_rate(self) -> float:
        """Share of search tokens that candidate elimination keeps in the epoch under way."""
        options, config = self.options, self.unwrapped.config
        shape = {"start": options.full_token_epochs, "warmup": options.elimination_warmup}
        return elimination_keep_rate(self.progress.epoch + 1, **shape, base=config.elimination_keep_rate)

    def rate(self) -> float:
        """The learning rate of the step under way."""
        return learning_rate(self.options, self.progress.step, self.steps_per_epoch)

    def pause(self, stop: StopRequest) -> bool:
        """After a step: checkpoints when due; returns whether to stop."""
        options, now = self.options, time.monotonic()
        over = options.max_minutes > 0 and now - self.started >= 60 * options.max_minutes
        due = options.save_minutes > 0 and now - self.last_save >= 60 * options.save_minutes
        if self.accelerator.num_processes > 1:  # clocks and signals differ: what one process sees holds for all
            seen = torch.tensor([stop.wanted, over, due], dtype=torch.float32, device=self.accelerator.device)
            stopped, over, due = (self.accelerator.reduce(seen) > 0).tolist()
        else:
            stopped = stop.wanted
        if stopped or over:
            self.state = "stopped by a signal" if stopped else "stopped at --max-minutes"
            return True
        if due or (options.save_steps and self.progress.step % options.save_steps == 0):
            self.save()
        return self.progress.step >= self.total_steps

    def validate(self) -> None:
        """Tracks through the validation sequences with what would be saved now; keeps it if it is the best so far."""
        with self.result() as model:
            if not self.accelerator.is_main_process:
                return
            success = validation_overlap(mmtrackers.Tracker(model, self.processor), self.validation)
            best = max((entry["validation"] for entry in self.progress.history if "validation" in entry), default=-1.0)
            self.progress.history.append({"step": self.progress.step, "validation": success})
            tqdm.write(f"epoch {self.progress.epoch}: mean overlap {success:.3f} on {len(self.validation)} sequences")
            if success > best:
                self.write(self.output / "best", model)

    @contextmanager
    def result(self) -> Iterator[nn.Module]:
        """What would be saved now, with averaged weights, where there are any. Every process calls; the main one gets
        it. Where processes hold shards, it is a copy of the tracker with what was trained gathered."""
        if self.average is not None:
            self.average.swap(self.unwrapped)
        try:
            if not is_sharded(self.unwrapped):
                yield self.unwrapped
                return
            trained = gathered_tensors(self.unwrapped)
            if self.accelerator.is_main_process:
                if self.rebuilt is None:
                    with torch.random.fork_rng():
                        self.rebuilt = build_model(self.options)
                for name, tensor in changing_tensors(self.rebuilt).items():
                    tensor.copy_(trained[name])
            yield self.rebuilt
        finally:
            if self.average is not None:
                self.average.swap(self.unwrapped)

    def name_bad_batch(self) -> str:
        """Writes down which samples made a loss that is not finite; returns a sentence on it."""
        bad, per_pass = self.meter.first_bad(), self.options.samples_per_pass(self.accelerator.num_processes)
        if bad is None:
            return "another process met it"
        epoch, batch = divmod(bad, self.batches_per_epoch)
        self.dataset.set_epoch(epoch)
        first = (batch * self.accelerator.num_processes + self.accelerator.process_index) * per_pass
        samples = [self.dataset.describe(index) for index in range(first, first + per_pass)]
        file = self.output / "bad_batch.json"
        write_json(file, {"epoch": epoch, "batch": batch, "samples": samples})
        return f"the samples of batch {batch} of epoch {epoch} are listed in {file.name}"

    def save(self) -> None:
        """A checkpoint; never one with numbers that are not finite."""
        self.progress.meter = self.meter.state(self.accelerator)
        self.meter.check(self.progress.meter)
        self.store.save(self.progress, self.export)
        self.last_save = time.monotonic()

    def log(self, bar: tqdm, steps_per_second: float, waiting: float) -> None:
        """One entry of the history, on the bar, in the log file and in the tracker."""
        means = self.meter.mean(self.accelerator)
        speed = {"pairs_per_second": round(steps_per_second * self.pairs_per_step, 2), "waiting": round(waiting, 3)}
        entry = {"step": self.progress.step, "epoch": self.progress.epoch, "lr": self.rate()}
        self.progress.history.append(entry | means | speed)
        if waiting > STARVED and not self.warned:
            self.warned = True
            tqdm.write(
                f"{waiting:.0%} of the time goes into waiting for data: raise --workers (now {self.options.workers}), "
                "or put the images on a faster disk"
            )
        shown = {name: f"{means[name]:.3f}" for name in ("loss", "iou") if name in means}
        bar.set_postfix(shown | {"pairs/s": f"{speed['pairs_per_second']:.1f}", "waiting": f"{waiting:.0%}"})
        self.accelerator.log({**means, "lr": entry["lr"], **speed}, step=self.progress.step)
        if self.accelerator.is_main_process:
            self.write_log(self.output)

    def bar(self) -> tqdm:
        """Progress on the main process; rare lines where nobody watches."""
        silent, pause = not self.accelerator.is_main_process, 0.5 if sys.stderr.isatty() else 30.0
        return tqdm(total=self.total_steps, initial=self.progress.step, unit="step", disable=silent, mininterval=pause)

    def facts(self) -> TrainingFacts:
        """What the model card says of the training. Folders appear by name only."""
        o = self.options
        recipe = {"optimizer": "AdamW", "preset": o.preset, "ema": o.ema} | o.values()
        # of the preset's run, not of this one
        other = {"sets"} | ({"frame_sampler", "search_gap"} if o.synthetic else set())
        recipe = {name: value for name, value in recipe.items() if value and name not in other}
        places = [entry.rpartition("=") for entry in o.data]
        on_hub = [place for name, _, place in places if name.split("/")[0] == "hf" and not Path(place).is_dir()]
        names = [place if place in on_hub else name or Path(place).name for name, _, place in places]
        data = f"sequences of {', '.join(names)}" if names else "sequences composed from pictures, at random"
        hardware = f"{self.accelerator.num_processes} x {self.accelerator.device.type}"
        steps, minutes = self.progress.step, round(self.progress.seconds / 60, 1)
        return TrainingFacts(data, on_hub, steps * self.pairs_per_step, steps, minutes, hardware, recipe)

    def write_log(self, folder: Path) -> None:
        """`training_log.json`: the course of the losses."""
        log = {"state": self.state, "trained_parameters": sum(p.numel() for p in self.trained)}
        write_json(folder / "training_log.json", log | {"history": self.progress.history})

    def export(self, folder: Path) -> None:
        """Writes the result (every process calls)."""
        with self.result() as model:
            if self.accelerator.is_main_process:
                self.write(folder, model)

    def write(self, folder: Path, model: nn.Module) -> None:
        """A model for use: adapter or base, image processor, card and losses."""
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.write_log(folder)
        if not is_own_text(folder):
            write_card(folder, self.facts())

    def finish(self) -> None:
        """Exports the result and uploads it if asked for."""
        self.accelerator.wait_for_everyone()
        left_out = sum(map(Counter, gather_object([dict(getattr(self.dataset, "unreadable", {}))])), Counter())
        self.export(self.output)
        if not self.accelerator.is_main_process:
            return
        if left_out:
            print("drawn anew, since something could not be used:")
            print("\n".join(f"{count:6d} times: {reason}" for reason, count in left_out.most_common()))
        print(f"{self.state} after {self.progress.step} steps; result in {self.output}")
        if self.options.push_to_hub:  # checkpoints and logs are sub-folders, which stay here
            push(self.output, self.options.push_to_hub, base_model=self.options.hub_base)

    def release(self) -> None:
        """Lets go of the wrapped model: if it outlives the process group, a process can hang at its end."""
        self.model = self.unwrapped
        self.accelerator.free_memory()


def main(arguments: list[str] | None = None) -> Trainer:
    """Parses the command line and runs. Returns the trainer, for tests and notebooks."""
    options = parse(arguments)
    output = Path(options.output)
    accelerator = Accelerator(
        gradient_accumulation_steps=options.gradient_accumulation,
        mixed_precision=options.mixed_precision,
        log_with=None if options.track_with == "none" else options.track_with,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs")),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=options.seed),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # while the main process validates the others wait for it, longer than the usual ten minutes
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),
        ],
        step_scheduler_with_optimizer=False,
    )
    output.mkdir(parents=True, exist_ok=True)
    if options.track_with != "none":
        accelerator.init_trackers("training")
    if options.preset:
        accelerator.print(f"recipe {options.preset}: " + ", ".join(f"{k} {v}" for k, v in options.values().items()))
    trainer = Trainer(options, accelerator)
    trainer.resume()
    try:
        trainer.train()
    except FloatingPointError as error:
        newest, batch = trainer.store.newest(), trainer.name_bad_batch()
        back = f"{newest.name} is from before" if newest else "there is no checkpoint yet"
        raise FloatingPointError(
            f"{error} in the {options.log_every} steps up to {trainer.progress.step} (learning rate "
            f"{trainer.rate():.2g}); {batch}; {back}. Lower --lr or raise --warmup-steps, and --resume."
        ) from error
    trainer.finish()
    trainer.release()
    accelerator.end_training()
    return trainer


if __name__ == "__main__":
    main()
