"""What `mmtrackers finetune` does: model, image processor and data from options, and the run."""

import argparse
import sys
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import ProjectConfiguration
from torch import nn
from torch.utils.data import Dataset
from transformers import HfArgumentParser

import mmtrackers
from mmtrackers.data import Sequence, SequenceSet
from mmtrackers.hub.adapters import PeftConfig
from mmtrackers.hub.folders import MODEL_CONFIG, TrackerFiles
from mmtrackers.pretrained import located
from mmtrackers.processing.files import FolderLock
from mmtrackers.register import SYSTEMS
from mmtrackers.training import Augmentation, DeiTAugmentation, TrainingAugmentation
from mmtrackers.training.loop import Trainer
from mmtrackers.training.options import TrainingOptions
from mmtrackers.training.recipes import RECIPES


def parse(arguments: list[str] | None = None) -> TrainingOptions:
    """The command line; a preset's fields are the defaults of the other options.

    Raises:
        ValueError: an unknown preset, or options that contradict each other.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    usage = "%(prog)s --output FOLDER --model REPO (--data SET ... | --synthetic FOLDER) ..."
    description = "Train an adapter on a frozen tracker, or a whole base."
    layout = (
        "Sequences of your own: FOLDER/NAME/rgb/ with pictures, FOLDER/NAME/thermal/ (or depth/, event/) with the "
        "same numbers, FOLDER/NAME/groundtruth.txt with x,y,width,height a line; `mmtrackers data check FOLDER` looks."
    )
    parser = HfArgumentParser(TrainingOptions, usage=usage, description=description, epilog=layout)
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--preset", default="")
    preset = early.parse_known_args(arguments)[0].preset
    if preset and preset not in RECIPES:
        raise ValueError(f"--preset {preset!r} is unknown; there are {', '.join(RECIPES)}.")
    parser.set_defaults(**(RECIPES[preset].values() if preset else {}))
    asked = {argument.partition("=")[0] for argument in arguments}
    if not asked & {"--model", "--help", "-h"} and {"--system", "--adapter", "--preset"} & asked:
        parser.set_defaults(model="ostrack-tiny")
    options = parser.parse_args_into_dataclasses(arguments)[0]
    if options.model:
        options.model = located(options.model)
    return options


def build_model(options: TrainingOptions) -> nn.Module:
    """The tracker to train, with `requires_grad` set: an adapter alone, or everything."""
    if options.train_base:
        return mmtrackers.AutoTracker.from_pretrained(options.model, dtype=torch.float32).requires_grad_(True)
    if options.adapter or options.system != "none":
        adapter = PeftConfig.from_pretrained(options.adapter) if options.adapter else None
        own = options.system != "none"
        kind = getattr(mmtrackers, f"{SYSTEMS[options.system]}ForTracking" if own else "AutoTracker")
        sizes = {"search_size": options.search_size} if options.search_size else {}
        return kind.from_base(options.model, modality=options.modality, adapter_config=adapter, **sizes)
    if TrackerFiles.find(options.model, {}).has(MODEL_CONFIG):
        raise ValueError(
            f"{options.model} is a full model: to train an adapter on it add --system seatrack, or --adapter FOLDER "
            "for one of your own; to train the base itself, --train-base."
        )
    return mmtrackers.AutoTracker.from_pretrained(options.model, is_trainable=True)


def build_processor(model: nn.Module) -> Any:
    """The image processor saved with the model, else what trackers of its sizes are trained with."""
    saved = model.processor_config
    return model.image_processor() if saved is None else mmtrackers.TrackerImageProcessor.from_dict(saved)


def build_dataset(options: TrainingOptions, model: nn.Module, processor: Any, samples: int) -> Dataset:
    """`samples` pairs or clips per epoch, each a function of (seed, epoch, index)."""
    streams, sampler = model.config.streams, options.make_frame_sampler()
    common = {"processor": processor, "streams": streams, "samples_per_epoch": samples, "seed": options.seed}
    common["augment"] = build_augmentation(options, model)
    common["modality"] = model.config.modality if streams == 2 else "rgb"
    if options.synthetic:
        from mmtrackers.synthetic.pairs import PictureLibrary, SyntheticPairs

        frames = {"templates": sampler.templates, "searches": sampler.searches, "longest_gap": options.max_gap}
        blindness = None if options.blindness == "drawn" else options.blindness
        scenes = {"blindness": blindness, "absent": options.absent}
        return SyntheticPairs(PictureLibrary(options.synthetic), **common, **frames, **scenes)
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


def build_augmentation(options: TrainingOptions, model: nn.Module) -> TrainingAugmentation:
    """The recipe's changes of crops and colors."""
    jitter = {"center_jitter": options.center_jitter, "size_jitter": options.size_jitter}
    if options.augmentation == "deit":
        return DeiTAugmentation(**jitter, template_grid=model.config.template_grid)
    return Augmentation(**jitter, lost_crops=options.lost_crops)


def spread(options: TrainingOptions) -> list[Sequence]:
    """The sequences to validate on: some of each set, evenly over its list."""
    chosen = []
    for entry in options.validate:
        sequences = open_data(entry)
        count = min(len(sequences), options.validate_sequences)
        chosen += [sequences[round(i * (len(sequences) - 1) / max(1, count - 1))] for i in range(count)]
    return chosen


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
    with FolderLock(output) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        if options.track_with != "none":
            accelerator.init_trackers("training")
        if options.preset:
            recipe = ", ".join(f"{name} {value}" for name, value in options.values().items())
            accelerator.print(f"recipe {options.preset}: {recipe}")
        same = sorted(set(options.validate) & set(options.data))
        if same:
            accelerator.print(f"warning: {', '.join(same)} is trained on and validated on: the figures say nothing of "
                              "other videos")  # fmt: skip
        trainer = Trainer(
            options,
            accelerator,
            build=partial(build_model, options),
            processor=build_processor,
            dataset=partial(build_dataset, options),
            validation=spread(options),
        )
        trainer.run()
        accelerator.end_training()
    return trainer
