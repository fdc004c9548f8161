"""A set's way over the Hub and back; runs in a process of its own (see `local_hub.LocalHub.run`)."""

import json
from pathlib import Path

import datasets
import numpy as np
from peft_rows import tiny_ostrack

from mmtrackers import TrackerImageProcessor
from mmtrackers.data import from_hf_dataset, open_dataset, to_hf_dataset
from mmtrackers.training.sampling import StreamSamples

NAME = "org/tiny-tracking-set"


def there_and_back(root: Path) -> dict[str, object]:
    """What comes out of the pushed and streamed set, beside what lies on disk."""
    to_hf_dataset(open_dataset(root)).push_to_hub(NAME, split="train", num_shards=2)
    streamed = datasets.load_dataset(NAME, split="train", streaming=True)
    sequences = {sequence.name: sequence for sequence in from_hf_dataset(streamed)}
    same = []
    for sequence in open_dataset(root):
        other = sequences[sequence.name]
        last = len(sequence) - 1
        images = zip(sequence.read(last).values(), other.read(last).values(), strict=True)
        same.append(all(np.array_equal(a, b) for a, b in images)
                    and np.array_equal(sequence.boxes_xywh, other.boxes_xywh, equal_nan=True)
                    and np.array_equal(sequence.present, other.present))
    processor = TrackerImageProcessor(template_size=32, search_size=64)
    shuffled = from_hf_dataset(streamed.shuffle(seed=0, buffer_size=4))
    samples = StreamSamples(shuffled, processor, "any", 2, samples_per_sequence=2)
    shapes = [tuple(sample["search"].shape) for sample in samples]
    paths = [row["path"] for row in next(iter(streamed))["frames"]]
    return {"names": list(sequences), "same": same, "shapes": shapes, "paths": paths[:2]}


def trained(root: Path, output: Path) -> dict[str, list[dict[str, float]]]:
    """Losses of a run on the folder, and on the same set by its id: in one go, and stopped and resumed."""
    from mmtrackers import finetune  # accelerate takes seconds

    to_hf_dataset(open_dataset(root)).push_to_hub(NAME, split="train", num_shards=2)
    tiny_ostrack().save_pretrained(output / "base")
    TrackerImageProcessor(search_size=64, template_size=32).save_pretrained(output / "base")
    options = ["--model", str(output / "base"), "--system", "seatrack", "--modality", "thermal", "--epochs", "1"]
    options += ["--samples-per-epoch", "8", "--batch-size", "4", "--workers", "0", "--log-every", "1"]
    by_id = ["--data", f"hf/train={NAME}", "--validate", f"hf/train={NAME}"]
    finetune.main([*options, "--output", str(output / "folder"), "--data", str(root), "--validate", str(root)])
    finetune.main([*options, "--output", str(output / "id"), *by_id, "--workers", "2"])
    finetune.main([*options, "--output", str(output / "parts"), *by_id, "--max-steps", "1"])
    finetune.main([*options, "--output", str(output / "parts"), *by_id, "--resume"])
    logs = {name: json.loads((output / name / "training_log.json").read_text()) for name in ("folder", "id", "parts")}
    times = ("pairs_per_second", "waiting")
    return {name: [{key: value for key, value in entry.items() if key not in times} for entry in log["history"]]
            for name, log in logs.items()}
