"""The state of a training run: what it changes in a model, averages of that, and checkpoints to go on from."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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

from mmtrackers.hub.adapters import is_sharded
from mmtrackers.processing.files import write_json


def changing_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes in a model, by name and as live tensors: trained parameters, and the statistics of
    BatchNorms that are trained. Of a tracker with an adapter this is the adapter alone."""
    found = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        trained = any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and trained:
            found |= {f"{prefix}.{name}".lstrip("."): b for name, b in module.named_buffers(recurse=False)}
    return found


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor; where processes hold shards of it all of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As [`gathered`], by name, and on the CPU for files."""
    return {name: gathered(tensor).cpu().contiguous() for name, tensor in tensors.items()}


@dataclass
class TrainingProgress:
    """Where a run stands. Written as JSON beside the tensors of a checkpoint.

    Args:
        epoch, batch (`int`): the epoch under way (from 0) and the batches of it that are done, per process.
        step (`int`), seconds (`float`): optimizer steps done, and the time that they took, over all parts of the run.
        history (`list[dict]`): one entry per `log_every` steps: step, epoch, rate, losses.
        meter (`dict`): the unread part of the losses, so that the entry after a resume equals the uninterrupted one.
        fixed (`dict`): options that decide which pair comes when; a resumed run must have the same.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    meter: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


class WeightAverage:
    """Exponential moving average of what training changes; `swap` lends the averaged weights to the model. Of the old
    average `decay` is kept per step, in the first steps less: min(decay, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; expected a number between 0 and 1, for example 0.999.")
        self.decay = decay
        self.steps = 0
        self.tensors = {name: tensor.clone() for name, tensor in changing_tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Call after each optimizer step."""
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
    """The newest two checkpoints of a run under `folder`: `checkpoint-00000100`, ...; of the prepared accelerator
    and optimizer and the tracker without wrappers. Only what training changes is stored, never a frozen base. Each is
    written beside its place and moved there, so a crash leaves the previous one whole."""

    TENSORS, AVERAGE, OPTIMIZER = "trained.safetensors", "average.safetensors", "optimizer.bin"
    PROGRESS = "progress.json"

    def __init__(self, accelerator: Accelerator, model: nn.Module, folder: Path, optimizer: torch.optim.Optimizer,
                 average: WeightAverage | None = None) -> None:  # fmt: skip
        self.accelerator, self.model, self.folder = accelerator, model, Path(folder)
        self.optimizer, self.average = optimizer, average
        if accelerator.is_main_process:
            # left half done when a run was killed between the two moves of `save`
            for replaced in self.folder.glob(".replaced-*"):
                final = self.folder / replaced.name.removeprefix(".replaced-")
                if final.exists():
                    shutil.rmtree(replaced)
                else:
                    os.replace(replaced, final)
        accelerator.wait_for_everyone()

    def _state_of_accelerator(self) -> dict[str, Any]:
        """What accelerate's two state functions take: the optimizer, if it is whole, and the scaler."""
        own = {"optimizers": [] if is_sharded(self.model) else [self.optimizer], "schedulers": [], "dataloaders": []}
        return own | {"process_index": self.accelerator.process_index, "scaler": self.accelerator.scaler}

    def _write(self, folder: Path) -> None:
        """All but the progress. accelerate's `save_state` would store frozen weights too, where they are sharded."""
        accelerator, sharded = self.accelerator, is_sharded(self.model)
        tensors = gathered_tensors(changing_tensors(self.model))
        average = gathered_tensors(self.average.tensors) if self.average else None
        if sharded:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=options)
        if accelerator.is_main_process:
            save_file(tensors, folder / self.TENSORS)
            if average:
                save_file(average, folder / self.AVERAGE, metadata={"steps": str(self.average.steps)})
            if sharded:
                torch.save(optimizer, folder / self.OPTIMIZER)
        save_accelerator_state(
            output_dir=folder, model_states=[], step=accelerator.step, **self._state_of_accelerator()
        )

    @torch.no_grad()
    def _copy(self, source: Path, target: dict[str, torch.Tensor]) -> None:
        """Fills tensors from a file of a checkpoint."""
        folder, source = source.parent, load_file(source)
        shapes = {name: tuple(t.shape) for name, t in source.items()}
        wanted = {name: tuple(t.shape) for name, t in target.items()}
        if shapes != wanted:
            differing = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
            raise ValueError(f"The checkpoint {folder.name} holds other trained tensors than this model "
                             f"({len(differing)} differ, first {differing[0]}): resume with the options it was "
                             "started with, or without --resume into another --output.")  # fmt: skip
        for name, tensor in target.items():
            whole = source[name]
            if isinstance(tensor, DTensor):
                whole = distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)
            tensor.copy_(whole)

    def save(self, progress: TrainingProgress, export: Callable[[Path], None] | None = None) -> Path:
        """Writes a checkpoint (all processes call) and removes the oldest ones; `export` writes the model for use into
        the folder it gets."""
        final = self.folder / f"checkpoint-{progress.step:08d}"
        staging = self.folder / f".writing-{final.name}"
        if self.accelerator.is_main_process:
            for unfinished in self.folder.glob(".writing-*"):  # of a run that was killed
                shutil.rmtree(unfinished)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            self._write(staging)
            if export is not None:
                export(staging / "model")
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and "writ" not in str(error):  # torch's word for a full disk
                raise
            raise OSError(f"cannot write the checkpoint {final} ({error}); earlier ones are as they were: make room "
                          "and --resume") from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(staging / self.PROGRESS, asdict(progress))
            replaced = self.folder / f".replaced-{final.name}"
            if final.exists():  # a run that went back: the old one is gone when the new one is there, and not before
                os.replace(final, replaced)
            os.replace(staging, final)
            shutil.rmtree(replaced, ignore_errors=True)
            for old in self._listed()[:-2]:
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
                if (folder / self.OPTIMIZER).stat().st_size:
                    return folder
            except (OSError, ValueError, SafetensorError):
                self.accelerator.print(f"{folder.name} cannot be read and is passed over.")
        return None

    def load(self, folder: Path) -> TrainingProgress:
        """Restores tensors, optimizer and random states; returns where the run stood."""
        if not (folder / self.PROGRESS).is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint: it has no {self.PROGRESS}.")
        progress = TrainingProgress(**json.loads((folder / self.PROGRESS).read_text()))
        self._copy(folder / self.TENSORS, changing_tensors(self.model))
        stored = folder / self.AVERAGE
        if self.average is not None and stored.exists():
            self._copy(stored, self.average.tensors)
            with safe_open(stored, framework="pt") as file:
                self.average.steps = int(file.metadata()["steps"])
        if is_sharded(self.model):
            optimizer = torch.load(folder / self.OPTIMIZER, weights_only=True)
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.model, self.optimizer, optimizer, options=options)
        own = load_accelerator_state(input_dir=folder, models=[], **self._state_of_accelerator())
        self.accelerator.step = own.get("step", 0)
        return progress
