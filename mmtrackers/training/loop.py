"""The training loop: accelerate's parts put together, steps, validation, checkpoints, and the result."""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmtrackers.data.sequence import Sequence as Video
from mmtrackers.hub.card import is_own_text
from mmtrackers.hub.publish import TrainingFacts, push, write_card
from mmtrackers.modeling.clips import forward_clip
from mmtrackers.processing.files import write_json
from mmtrackers.tracking.tracker import Tracker

from .monitor import LossMeter, StopRequest, draw_losses, quiet_worker, validation_overlap
from .optimization import cast_frozen, elimination_keep_rate, learning_rate, parameter_groups
from .options import TrainingOptions
from .state import (
    CheckpointStore,
    TrainingProgress,
    WeightAverage,
    changing_tensors,
    gathered,
    gathered_tensors,
    is_sharded,
)

STARVED = 0.3


class Trainer:
    """One run: everything that accelerate prepared, and the loop.

    Args:
        options ([`TrainingOptions`]), accelerator (`Accelerator`): what was asked for; not yet prepared.
        build (`Callable`): makes the tracker, with `requires_grad` set; called again where processes hold shards of
            it, for a whole copy.
        processor (`Callable`): model -> its image processor.
        dataset (`Callable`): (model, processor, samples per epoch) -> a data set with `set_epoch` and `describe`.
        validation (list of [`Sequence`]): to track through.
    """

    def __init__(
        self, options: TrainingOptions, accelerator: Accelerator, build: Callable[[], nn.Module],
        processor: Callable[[nn.Module], Any], dataset: Callable[[nn.Module, Any, int], Dataset],
        validation: Sequence[Video] = (),
    ) -> None:
        self.options, self.accelerator, self.build, self.validation = options, accelerator, build, validation
        self.steps_per_epoch = options.samples_per_epoch // options.batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(f"--samples-per-epoch {options.samples_per_epoch} is less than one step "
                             f"({options.batch_size} pairs).")  # fmt: skip
        self.batches_per_epoch = self.steps_per_epoch * options.gradient_accumulation
        self.all_steps = self.steps_per_epoch * options.epochs
        self.total_steps = min(self.all_steps, options.max_steps or sys.maxsize)
        set_seed(options.seed)
        model = build()
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
            # the backward pass of torch's fused attention took three times as long there; in float32 it is the faster
            # one, and keeps less
            model.set_attn_implementation("eager")
        self.processor = processor(model)
        self.dataset = dataset(model, self.processor, self.steps_per_epoch * options.batch_size)
        set_seed(options.seed, device_specific=True)  # from here on dropout, which must differ between processes
        self.unwrapped, self.eliminates = model, bool(getattr(model.config, "elimination_layers", ()))
        self.output = Path(options.output)
        if options.frozen_dtype != "float32":
            cast_frozen(model, getattr(torch, options.frozen_dtype))
        if options.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        # The command line rules the rate and the decay: both are written into the optimizer anew, step by step.
        optimizer = torch.optim.AdamW(parameter_groups(model, options))
        loader = DataLoader(
            self.dataset, options.samples_per_pass(accelerator.num_processes), drop_last=True,
            num_workers=options.workers, worker_init_fn=quiet_worker, prefetch_factor=4 if options.workers else None,
            pin_memory=accelerator.device.type == "cuda",
            # Without its own generator a loader draws from the global one, and dropout after a resume would differ.
            generator=torch.Generator().manual_seed(options.seed),
        )  # fmt: skip
        if accelerator.is_fsdp2:
            # Autocast as everywhere else. FSDP's own policy would cast all of a layer, labels and losses too.
            accelerator.state.fsdp_plugin.mixed_precision_policy = None
            model.forward = accelerator.autocast()(model.forward)
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, loader)
        # FSDP has put shards in the place of the parameters
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.rebuilt: nn.Module | None = None
        self.average = WeightAverage(model, options.ema) if options.ema else None
        self.store = CheckpointStore(accelerator, model, self.output / "checkpoints", self.optimizer, self.average)
        self.progress = TrainingProgress(fixed=self.fixed_options())
        self.meter = LossMeter()
        self.started = self.last_save = time.monotonic()
        self.state, self.warned = "running", False
        self.interrupt: KeyboardInterrupt | None = None  # what ended the run, if a signal did

    def fixed_options(self) -> dict[str, Any]:
        """Options that decide which pair comes in which step; a resumed run must keep them."""
        return {name: getattr(self.options, name) for name in ("seed", "samples_per_epoch", "batch_size")}

    def resume(self) -> None:
        """Goes back to a checkpoint, if the options ask for it and there is one."""
        wanted, newest = self.options.resume, self.store.newest()
        if wanted is None:
            if newest is not None:
                raise ValueError(f"{self.output.name} already holds {newest.name} of an earlier run: add --resume to "
                                 "go on with it, or choose another --output.")  # fmt: skip
            return
        folder = newest if wanted == "latest" else Path(wanted)
        if folder is None:
            self.accelerator.print("No checkpoint yet: starting from the beginning.")
            return
        self.progress = self.store.load(folder)
        before, now = self.progress.fixed, self.fixed_options()
        changed = [f"{name} {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
        if changed:
            raise ValueError(f"{folder.name} cannot go on with other pairs per step ({', '.join(changed)}). Keep "
                             "these options, or start a new run in another --output with --model pointing at this "
                             "result.")  # fmt: skip
        # the batches of a step may be others: its pairs are the same on any number of processes and passes
        done = self.progress.step - self.progress.epoch * self.steps_per_epoch
        self.progress.batch = done * self.options.gradient_accumulation
        self.meter = LossMeter(self.progress.meter)
        self.accelerator.print(f"Going on from {folder.name}.")

    def run(self) -> None:
        """The whole run: from a checkpoint, if that is asked for, to the result."""
        self.resume()
        try:
            self.train()
        except FloatingPointError as error:
            newest, batch = self.store.newest(), self.name_bad_batch()
            back = f"{newest.name} is from before" if newest else "there is no checkpoint yet"
            raise FloatingPointError(
                f"{error} in the {self.options.log_every} steps up to {self.progress.step} (learning rate "
                f"{self.rate():.2g}); {batch}; {back}. Lower --lr or raise --warmup-steps, and --resume."
            ) from error
        self.finish()
        # the wrapped model is let go: if it outlives the process group, a process can hang at its end
        self.model = self.unwrapped
        self.accelerator.free_memory()

    def train(self) -> None:
        """Runs until the end of the last epoch, a limit, a signal, or a loss that is not a number."""
        self.model.train()
        before = self.progress.step
        finished = before >= self.total_steps
        # rare lines where nobody watches
        look = {"disable": not self.accelerator.is_main_process, "mininterval": 0.5 if sys.stderr.isatty() else 30.0}
        bar = tqdm(total=self.total_steps, initial=before, unit="step", **look)
        with StopRequest() as stop, bar:
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
        clock = logged = idle_since = time.monotonic()
        waited, logged_step = 0.0, progress.step
        for batch in loader:
            waited += time.monotonic() - idle_since
            self.train_batch(batch)
            progress.batch += 1
            if accelerator.sync_gradients:
                progress.step += 1
                now = time.monotonic()
                progress.seconds += now - clock
                clock = now
                bar.update()
                if progress.step % self.options.log_every == 0 or progress.step == self.all_steps:
                    self.log(bar, (progress.step - logged_step) / (now - logged), waited / (now - logged))
                    logged, logged_step, waited = time.monotonic(), progress.step, 0.0
                if progress.batch == self.batches_per_epoch:
                    progress.epoch, progress.batch = progress.epoch + 1, 0
                    if self.validation and progress.epoch % self.options.validate_epochs == 0:
                        self.validate()
                if self.pause(stop):
                    return True
            idle_since = time.monotonic()
        return False

    def train_batch(self, batch: dict[str, torch.Tensor]) -> None:
        """Forward, backward and, at the end of an accumulation, the optimizer step."""
        accelerator, options = self.accelerator, self.options
        with accelerator.accumulate(self.model):
            pixels = {name: self.processor.normalize(batch[name]) for name in ("search", "template")}
            inputs = batch | {name: value.to(self.unwrapped.dtype) for name, value in pixels.items()}
            if self.progress.epoch < options.box_warmup_epochs:
                inputs["box_weight"] = 10.0
            if (options.full_token_epochs or options.elimination_warmup) and self.eliminates:
                inputs["elimination_keep_rate"] = elimination_keep_rate(
                    self.progress.epoch + 1, options.full_token_epochs, options.elimination_warmup,
                    self.unwrapped.config.elimination_keep_rate,
                )  # fmt: skip
            if options.frame_by_frame:
                output = forward_clip(self.model, **inputs, backward=accelerator.backward)
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
            self.interrupt = KeyboardInterrupt(stop.number) if stopped else None
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
            success = validation_overlap(Tracker(model, self.processor), self.validation)
            best = self.best()
            self.progress.history.append({"step": self.progress.step, "validation": success})
            tqdm.write(f"epoch {self.progress.epoch}: mean overlap {success:.3f} on {len(self.validation)} sequences")
            if best is None or success > best["validation"]:
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
            trained = gathered_tensors(changing_tensors(self.unwrapped))
            if self.accelerator.is_main_process:
                if self.rebuilt is None:
                    with torch.random.fork_rng():
                        self.rebuilt = self.build()
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
        pairs_per_second = round(steps_per_second * self.options.batch_size, 2)
        speed = {"pairs_per_second": pairs_per_second, "waiting": round(waiting, 3)}
        entry = {"step": self.progress.step, "epoch": self.progress.epoch, "lr": self.rate()}
        self.progress.history.append(entry | means | speed)
        if waiting > STARVED and not self.warned:
            self.warned = True
            tqdm.write(f"{waiting:.0%} of the time goes into waiting for data: raise --workers (now "
                       f"{self.options.workers}), or put the images on a faster disk")  # fmt: skip
        shown = {name: f"{means[name]:.3f}" for name in ("loss", "iou") if name in means}
        bar.set_postfix(shown | {"pairs/s": f"{pairs_per_second:.1f}", "waiting": f"{waiting:.0%}"})
        self.accelerator.log({**means, "lr": entry["lr"], **speed}, step=self.progress.step)
        if self.accelerator.is_main_process:
            self.write_log(self.output)

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
        figures = []
        if best := self.best():
            validated = [name or Path(place).name for name, _, place in (v.rpartition("=") for v in o.validate)]
            note = f"validation on {len(self.validation)} sequences, at step {best['step']}"
            figures = [{"dataset": ", ".join(validated), "metric": "mean overlap",
                        "value": round(best["validation"], 4), "note": note}]  # fmt: skip
        hardware = f"{self.accelerator.num_processes} x {self.accelerator.device.type}"
        steps, minutes = self.progress.step, round(self.progress.seconds / 60, 1)
        return TrainingFacts(
            data, on_hub, steps * o.batch_size, steps, minutes, hardware, recipe, figures, license=o.license
        )

    def best(self) -> dict[str, Any] | None:
        """The entry of the best validation so far."""
        found = [entry for entry in self.progress.history if "validation" in entry]
        return max(found, key=lambda entry: entry["validation"], default=None)

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
        draw_losses(self.progress.history, self.output / "losses.png")
        print(f"{self.state} after {self.progress.step} steps; result in {self.output}, losses in losses.png")
        print(f"try it: mmtrackers track VIDEO --box x,y,width,height --model {self.output}")
        if self.options.push_to_hub:  # checkpoints and logs are sub-folders, which stay here
            push(self.output, self.options.push_to_hub, base_model=self.options.hub_base)
