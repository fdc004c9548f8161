"""Pieces of the training loop in `examples/finetune.py`: exact checkpoints, learning rates, meters, stopping."""

import json
import math
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from .recipes import Recipe

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """
    The learning rate of one optimiser step, from the step's number alone.

    Args:
        recipe (`Recipe`): its schedule, one of
            "constant"; "step" (x 0.1 from `lr_drop_epoch` on, 80 % of the epochs if that is None); "linear" or
            "cosine" (down to 0 at the end of the last epoch), all of them after `warmup_steps` of linear growth;
            "warm-cosine" (LoRAT's: from `warmup_lr` up to `lr`, and only then a cosine as long as the run, to
            `final_lr`, which therefore is not reached; the rate lags one step behind).
        step (`int`): optimiser steps done before this one.
        steps_per_epoch (`int`): their number in an epoch.

    Returns:
        `float`. There is no state, hence nothing to save, and a resumed run follows the options it was started with.

    Example:
        >>> learning_rate(Recipe(lr=4e-4, epochs=10), step=80, steps_per_epoch=10)
        4e-05
    """
    whole, base = steps_per_epoch * recipe.epochs, recipe.lr
    if recipe.schedule == "warm-cosine":
        update = max(0, step - 1)
        if update < recipe.warmup_steps:
            return recipe.warmup_lr + (base - recipe.warmup_lr) * update / recipe.warmup_steps
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, (update - recipe.warmup_steps) / max(1, whole))))
        return recipe.final_lr + (base - recipe.final_lr) * fall
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    done = min(1.0, step / max(1, whole))
    if recipe.schedule == "step":
        drop = round(0.8 * recipe.epochs) if recipe.lr_drop_epoch is None else recipe.lr_drop_epoch
        return base * warm / (10 if step // steps_per_epoch >= drop else 1)
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return base * warm * shape[recipe.schedule]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """
    The trained parameters, apart by learning rate and decay.

    Args:
        model (`nn.Module`): the tracker, without wrappers.
        recipe (`Recipe`): `trunk_lr_factor` is for the trunk (`model.*`); `decay` says what decays: "all";
            "matrices" (tensors of two or more dimensions, without embeddings and positions, as SPMTrack); "weights"
            (the same after axes of length 1 are dropped, and nothing of a normalisation, as LoRAT).

    Returns:
        `list[dict]`: groups for an optimiser, each with `factor` (of the learning rate) and `decays`.

    Example:
        >>> groups = parameter_groups(nn.Linear(4, 1), Recipe(decay="weights"))
        >>> [(group["decays"], len(group["params"])) for group in groups]
        [(False, 2)]
    """
    norms = {
        f"{name}.{part}" if name else part
        for name, module in model.named_modules()
        if isinstance(module, NORMS)
        for part, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            axes = sum(size > 1 for size in parameter.shape) if recipe.decay == "weights" else parameter.ndim
            table = re.search("embed|position", name) is not None
            decays = recipe.decay == "all" or (
                axes > 1 and not table and (recipe.decay == "matrices" or name not in norms)
            )
            factor = recipe.trunk_lr_factor if name.startswith("model.") else 1.0
            groups.setdefault((factor, decays), []).append(parameter)
    return [
        {"params": params, "factor": factor, "decays": decays, "lr": recipe.lr * factor,
         "weight_decay": recipe.weight_decay * decays}
        for (factor, decays), params in groups.items()
    ]  # fmt: skip


def changing_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """
    What training changes in a model: trained parameters, and the statistics of BatchNorms that are trained.

    Args:
        model (`nn.Module`): the tracker, without wrappers.

    Returns:
        `dict[str, torch.Tensor]`: name to the live tensor (detached, same memory). Of a tracker with an adapter this
        is the adapter alone.

    Example:
        >>> sorted(changing_tensors(nn.BatchNorm2d(4)))
        ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    found = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        trained = any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and trained:
            found |= {f"{prefix}.{name}".lstrip("."): b for name, b in module.named_buffers(recurse=False)}
    return found


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be sharded over processes; then every process must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """`changing_tensors` whole and on the CPU, for files; every process must call."""
    return {name: gathered(tensor).cpu().contiguous() for name, tensor in changing_tensors(model).items()}


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the parameters only (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@dataclass
class TrainingProgress:
    """
    Where a run stands. Written as JSON beside the tensors of a checkpoint.

    Args:
        epoch (`int`), batch (`int`): the epoch under way (from 0) and the batches of it that are done, per process.
        step (`int`): optimiser steps done.
        seconds (`float`): time in the training loop, over all parts of the run.
        history (`list[dict]`): one entry per `log_every` steps: step, epoch, rate, losses.
        meter (`dict`): the unread part of the losses, so that the entry after a resume equals the uninterrupted one.
        fixed (`dict`): options that decide which pair comes when; a resumed run must have the same.

    Example:
        >>> TrainingProgress(step=3).step
        3
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    meter: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


class LossMeter:
    """
    Sums of named scalars that stay on the device until they are read: no host-device synchronisation per step.

    Example:
        >>> meter = LossMeter()
        >>> meter.add({"loss": torch.tensor(1.0)})
        >>> meter.add({"loss": torch.tensor(2.0)})
        >>> meter.mean()
        {'loss': 1.5}
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.sums: dict[str, torch.Tensor | float] = dict(state.get("sums", {}))
        self.counts: dict[str, int] = dict(state.get("counts", {}))
        self._first_bad: torch.Tensor | None = None

    def add(self, values: dict[str, torch.Tensor], moment: int = 0) -> None:
        """Adds one scalar tensor per name; `moment` is a number by which the caller finds this batch again."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
            here = torch.where(value.isfinite(), -1, moment)
            before = here if self._first_bad is None else self._first_bad
            self._first_bad = torch.where(before >= 0, before, here)

    def first_bad(self) -> int | None:
        """The `moment` of the first value that was not finite since the last `mean`, in this process."""
        bad = -1 if self._first_bad is None else int(self._first_bad)
        return None if bad < 0 else bad

    def state(self, accelerator: Accelerator | None = None) -> dict[str, Any]:
        """Sums and counts as numbers, averaged over the processes (every process must call)."""
        sums = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in self.sums.items()}
        if sums and accelerator is not None:
            together = torch.stack([value.to(accelerator.device) for value in sums.values()])
            sums = dict(zip(sums, accelerator.reduce(together, reduction="mean"), strict=True))
        return {"sums": {name: value.item() for name, value in sums.items()}, "counts": dict(self.counts)}

    def mean(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Means over what was added and over the processes; starts anew. Raises `FloatingPointError` on NaN or inf."""
        state = self.state(accelerator)
        self.check(state)
        self.sums, self.counts, self._first_bad = {}, {}, None
        return {name: value / state["counts"][name] for name, value in state["sums"].items()}

    @staticmethod
    def check(state: dict[str, Any]) -> None:
        """Raises `FloatingPointError` when a sum of `state()` is not finite."""
        bad = [name for name, value in state["sums"].items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"{', '.join(bad)} became NaN or infinite")


class WeightAverage:
    """
    Exponential moving average of what training changes; `swapped` lends the averaged weights to the model.

    Args:
        model (`nn.Module`): the tracker, without wrappers.
        decay (`float`): share of the old average kept per step; lower in the first steps: min(decay, (1+n)/(10+n)).

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> average = WeightAverage(layer, decay=0.9)
        >>> average.update(layer)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; expected a number between 0 and 1, for example 0.999.")
        self.decay = decay
        self.steps = 0
        self.tensors = {name: tensor.clone() for name, tensor in changing_tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Call after each optimiser step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, now in changing_tensors(model).items():
            if now.is_floating_point():
                self.tensors[name].lerp_(now, 1 - decay)
            else:
                self.tensors[name].copy_(now)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the model's tensors and the averages; a second call undoes the first."""
        for name, now in changing_tensors(model).items():
            kept = now.clone()
            now.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


class CheckpointStore:
    """
    Checkpoints of a run under `folder`: `checkpoint-00000100`, ... Only what training changes is stored, never a
    frozen base. Each is written beside its place and moved there, so a crash leaves the previous one whole.

    Args:
        accelerator (`Accelerator`): after `prepare`.
        model (`nn.Module`): the tracker, without wrappers.
        folder (`Path`): created on the first save.
        optimizer (`torch.optim.Optimizer`, *optional*): the prepared one; needed where FSDP2 shards the model.
        average (`WeightAverage`, *optional*): saved along.
        limit (`int`): checkpoints kept.

    Example:
        >>> store = CheckpointStore(Accelerator(cpu=True), nn.Linear(1, 1), Path("out/checkpoints"))
        >>> store.newest() is None
        True
    """

    TENSORS, AVERAGE, PROGRESS = "trained.safetensors", "average.safetensors", "progress.json"

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        folder: Path,
        optimizer: torch.optim.Optimizer | None = None,
        average: WeightAverage | None = None,
        limit: int = 2,
    ) -> None:
        self.accelerator, self.model, self.folder = accelerator, model, Path(folder)
        self.optimizer, self.average, self.limit = optimizer, average, limit
        accelerator.register_save_state_pre_hook(self._save_tensors)
        accelerator.register_load_state_pre_hook(self._load_tensors)

    def _save_tensors(self, models: list[nn.Module], weights: list[dict], folder: str) -> None:
        weights.clear()
        tensors = gathered_tensors(self.model)
        average = self.average and {name: gathered(t).cpu().contiguous() for name, t in self.average.tensors.items()}
        if self.accelerator.is_main_process:
            save_file(tensors, Path(folder) / self.TENSORS)
            if average:
                save_file(average, Path(folder) / self.AVERAGE, metadata={"steps": str(self.average.steps)})

    def _save_shards(self, folder: str) -> None:
        """What `save_state` would, without the frozen weights, which accelerate saves with every sharded model."""
        accelerator, options = self.accelerator, StateDictOptions(full_state_dict=True, cpu_offload=True)
        self._save_tensors([], [], folder)
        optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=options)
        if accelerator.is_main_process:
            torch.save(optimizer, Path(folder) / "optimizer.bin")
        save_accelerator_state(
            folder, [], [], [], [], accelerator.process_index, accelerator.step, scaler=accelerator.scaler
        )

    def _load_shards(self, folder: str) -> None:
        accelerator = self.accelerator
        self._load_tensors([], folder)
        optimizer = torch.load(Path(folder) / "optimizer.bin", weights_only=True)
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optimizer, optimizer, options=options)
        own = load_accelerator_state(folder, [], [], [], [], accelerator.process_index, scaler=accelerator.scaler)
        accelerator.step = own.get("step", 0)

    @torch.no_grad()
    def _load_tensors(self, models: list[nn.Module], folder: str) -> None:
        models.clear()
        self._copy(load_file(Path(folder) / self.TENSORS), changing_tensors(self.model), folder)
        stored = Path(folder) / self.AVERAGE
        if self.average is not None and stored.exists():
            self._copy(load_file(stored), self.average.tensors, folder)
            with safe_open(stored, framework="pt") as file:
                self.average.steps = int(file.metadata()["steps"])

    @staticmethod
    def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor], folder: str) -> None:
        shapes = {name: tuple(t.shape) for name, t in source.items()}
        wanted = {name: tuple(t.shape) for name, t in target.items()}
        if shapes != wanted:
            differing = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
            raise ValueError(
                f"The checkpoint {Path(folder).name} holds other trained tensors than this model ({len(differing)} "
                f"differ, first {differing[0]}): resume with the options it was started with, or without --resume "
                "into another --output."
            )
        for name, tensor in target.items():
            whole = source[name]
            if isinstance(tensor, DTensor):
                whole = distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)
            tensor.copy_(whole)

    def save(self, progress: TrainingProgress, export: Callable[[Path], None] | None = None) -> Path:
        """
        Writes a checkpoint (all processes call) and removes the oldest ones.

        Args:
            progress (`TrainingProgress`): where the run stands.
            export (`Callable`, *optional*): writes the model for use into the folder it gets (`model`); every process
                calls it.

        Returns:
            `Path`: the checkpoint.
        """
        final = self.folder / f"checkpoint-{progress.step:08d}"
        draft = self.folder / f".writing-{final.name}"
        if self.accelerator.is_main_process:
            for unfinished in self.folder.glob(".writing-*"):  # of a run that was killed
                shutil.rmtree(unfinished)
            draft.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if is_sharded(self.model):
            self._save_shards(str(draft))
        else:
            self.accelerator.save_state(str(draft))
        if export is not None:
            export(draft / "model")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(draft / self.PROGRESS, asdict(progress))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(draft, final)
            for old in self._listed()[: -self.limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return final

    def _listed(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*"))

    def newest(self) -> Path | None:
        """The newest checkpoint that can be read, or None. Damaged ones are passed over."""
        for folder in reversed(self._listed()):
            try:
                json.loads((folder / self.PROGRESS).read_text())
                with safe_open(folder / self.TENSORS, framework="pt") as file:
                    file.keys()
                if (folder / "optimizer.bin").stat().st_size:
                    return folder
            except (OSError, ValueError, SafetensorError):
                self.accelerator.print(f"{folder.name} cannot be read and is passed over.")
        return None

    def load(self, folder: Path) -> TrainingProgress:
        """Restores tensors, optimiser and random states; returns where the run stood."""
        if not (Path(folder) / self.PROGRESS).is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint: it has no {self.PROGRESS}.")
        progress = TrainingProgress(**json.loads((Path(folder) / self.PROGRESS).read_text()))
        if is_sharded(self.model):
            self._load_shards(str(folder))
        else:
            self.accelerator.load_state(str(folder))
        return progress


def hold_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """
    Holds what is not trained in another precision: half the memory, and no copies of it for the backward pass.

    Args:
        model (`nn.Module`): the tracker; its trained parameters stay as they are.
        dtype (`torch.dtype`): such as `torch.bfloat16`.

    Raises:
        ValueError: everything is trained.

    Example:
        >>> model = nn.ModuleList([nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)])
        >>> hold_frozen(model, torch.bfloat16)
        >>> [layer.weight.dtype for layer in model]
        [torch.bfloat16, torch.float32]
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    if not frozen:
        raise ValueError("All weights are trained: there is nothing frozen to hold in another precision.")
    for parameter in frozen:
        parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    setattr(module, name, buffer.to(dtype))


@torch.no_grad()
def validation_overlap(model: nn.Module, processor: Any, sequences: Iterable[Any]) -> float:
    """
    Mean overlap of tracking through sequences, each begun once with its first box.

    Args:
        model (`TrackerPreTrainedModel`): is back in its mode afterwards.
        processor (`TrackerImageProcessor`): its image processor.
        sequences: of [`Sequence`]; the mean is over sequences, of the mean over frames in which the target is present.

    Returns:
        `float`: 0 to 1.
    """
    from mmtrackers.processing.boxes import iou_xywh
    from mmtrackers.tracking.tracker import Tracker

    was_training = model.training
    tracker, means = Tracker(model.eval(), processor), []
    for sequence in sequences:
        frames = (sequence.read(index) for index in range(len(sequence)))
        found = np.stack([prediction.box for prediction in tracker.track(frames, sequence.boxes_xywh[0])])
        counted = np.flatnonzero(sequence.present[1:]) + 1
        means.append(float(iou_xywh(found[counted], sequence.boxes_xywh[counted]).mean()))
    model.train(was_training)
    return float(np.mean(means))


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON to `path` so that a reader sees the old file or the new one, never a part."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(json.dumps(content, indent=1))
    os.replace(draft, path)


class StopRequest:
    """
    Turns SIGINT and SIGTERM into a flag that the loop reads after a step; a second signal acts at once.

    Example:
        >>> with StopRequest() as stop:
        ...     stop.wanted
        False
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}

    def _receive(self, number: int, frame: Any) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def quiet_worker(_: int) -> None:
    """`worker_init_fn` for loaders: one OpenCV thread per worker; Ctrl-C is the main process's affair."""
    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class TimedBatches:
    """
    Passes a loader's batches on and adds up the seconds spent waiting for them in `waited`.

    Example:
        >>> list(TimedBatches([1, 2]))
        [1, 2]
    """

    def __init__(self, batches: Iterable) -> None:
        self.batches = batches
        self.waited = 0.0

    def __iter__(self) -> Iterator:
        batches = iter(self.batches)
        while True:
            start = perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += perf_counter() - start
            yield batch
