"""
Puts each tuner on one base, trains all on as many composed pairs, and measures before and after.

    python examples/compare_tuners.py --base mmtrackers/pretrained/ostrack-tiny --pictures pictures --output out/tuners

A table (`table.md` in the output folder) says for every tuner the mean overlap on held-out composed sequences: of the
base, which sees RGB alone, and of the base with the adapter. With thermal RGB is blind in all of them, in turn by
night, camouflage and glare. Tuners on RGB alone learn to see at night, where a fiftieth to an eighth of the light is
left and the target is faint: a base that `finetune.py` trained on composed scenes has never seen a night in RGB, and
on the scenes that it was trained on there is nothing left to learn. Only the adapters learn, the head does not.
Training is that of `finetune.py`, with one recipe for all. The same command again goes on with what is missing.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from measure import BLIND, Clip, composed, held, mean_overlap
from peft import LoraConfig, PeftConfig
from tqdm import tqdm

from mmtrackers import SDMoEConfig, TMoEConfig, Tracker, finetune
from mmtrackers.cli.ending import run_script
from mmtrackers.processing.files import write_json
from mmtrackers.training.loop import Trainer

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
RECIPE = ["--lr", "1e-3", "--schedule", "constant", "--warmup-steps", "50", "--clip-norm", "1", "--ema", "0.98"]
RECIPE += ["--batch-size", "16", "--mixed-precision", "bf16", "--epochs", "1000", "--save-minutes", "0"]
# what keeps RGB from seeing: in training, in what is measured, and in the table
SCENES = {"thermal": ("drawn", BLIND, "RGB blind"), "rgb": ("night", ("night",), "night")}


@dataclass(frozen=True)
class Tuner:
    """What is put on the base: a system's own adapter, or the one of a config."""

    name: str
    modality: str
    system: str = "none"
    adapter: PeftConfig | None = None


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=16, target_modules=LAYERS)


def tmoe() -> TMoEConfig:
    # starts at the base's output, and has a rank for bases that are narrower than the published one
    return TMoEConfig(r=16, alpha=16, init="lora")


TUNERS = [
    Tuner("AMG_LORA", "thermal", system="seatrack"),
    Tuner("PROGRESSIVE", "thermal", system="patrack"),
    Tuner("SDMOE", "thermal", adapter=SDMoEConfig()),
    Tuner("TMOE", "thermal", adapter=tmoe()),
    Tuner("LORA", "thermal", adapter=lora()),
    Tuner("TMOE", "rgb", adapter=tmoe()),
    Tuner("LORA", "rgb", adapter=lora()),
]


@dataclass
class Row:
    """One line of the table; `base` and `adapted` are mean overlaps."""

    tuner: str
    streams: str
    scenes: str
    parameters: int
    minutes: float
    pairs: int
    base: float
    adapted: float


def train(tuner: Tuner, base: Path, pictures: Path, steps: int, folder: Path) -> Trainer:
    """The tuner on the base, trained from its beginning; the result is in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    options = ["--model", str(base), "--modality", tuner.modality, "--system", tuner.system]
    if tuner.adapter is not None:
        tuner.adapter.save_pretrained(folder / "start")
        options += ["--adapter", str(folder / "start")]
    options += ["--synthetic", str(pictures), "--blindness", SCENES[tuner.modality][0], "--workers", "1"]
    return finetune.main([*options, *RECIPE, "--max-steps", str(steps), "--output", str(folder)])


@cache
def held_out(pictures: Path, modality: str, count: int, length: int) -> list[Clip]:
    """The sequences to measure on, rendered once."""
    sequences = composed(pictures, modality, count, length, SCENES[modality][1])
    return [held(sequence) for sequence in tqdm(sequences, desc="held-out sequences")]


def overlap(repo: Path, clips: list[Clip]) -> float:
    """Mean over sequences; a tracker for RGB sees their RGB stream only."""
    tracker = Tracker.from_pretrained(str(repo), pack=True)
    return float(
        np.mean([mean_overlap(tracker, clip.rgb_only() if tracker.modality == "rgb" else clip) for clip in clips])
    )


def as_table(rows: list[Row]) -> str:
    """A markdown table."""
    lines = ["| tuner | streams | scenes | parameters | minutes | pairs | base | adapted | difference |"]
    lines.append("|---|---|---|---:|---:|---:|---:|---:|---:|")
    lines += [
        f"| {row.tuner} | {row.streams} | {row.scenes} | {row.parameters:,} | {row.minutes:.1f} | {row.pairs:,} | "
        f"{row.base:.3f} | {row.adapted:.3f} | {row.adapted - row.base:+.3f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def load(path: Path, settings: dict[str, object]) -> dict[str, dict]:
    """What an earlier call left, if it was made with the same settings."""
    if not path.exists():
        return {"settings": settings, "base": {}, "rows": {}}
    found = json.loads(path.read_text())
    if found["settings"] != settings:
        raise typer.BadParameter(
            f"{path.parent} holds results made with {found['settings']}, not {settings}: give the same, or choose "
            "another --output."
        )
    return found


def folder_of(tuner: Tuner) -> str:
    """The name of a tuner's folder and of its row."""
    return f"{tuner.name.lower()}-{tuner.modality}"


def rows_of(found: dict[str, dict]) -> list[Row]:
    """The rows that are there, in the tuners' order."""
    return [Row(**found["rows"][name]) for name in map(folder_of, TUNERS) if name in found["rows"]]


def main(
    base: Annotated[Path, typer.Option(help="Folder of an OSTrack base for RGB.")],
    pictures: Annotated[Path, typer.Option(help="Pictures to compose sequences from.")],
    output: Annotated[Path, typer.Option(help="Folder for adapters, results.json and table.md.")],
    steps: Annotated[int, typer.Option(help="Training steps of each tuner, of 16 pairs.")] = 150,
    count: Annotated[int, typer.Option(help="Held-out sequences to measure on.")] = 24,
    length: Annotated[int, typer.Option(help="Frames of each.")] = 40,
) -> list[Row]:
    """Trains and measures what is missing, prints the table. Returns its rows."""
    cv2.setNumThreads(1)
    output.mkdir(parents=True, exist_ok=True)
    results = output / "results.json"
    found = load(results, {"base": base.name, "steps": steps, "count": count, "length": length})
    for tuner in TUNERS:
        name = folder_of(tuner)
        if name not in found["rows"]:
            clips = held_out(pictures, tuner.modality, count, length)
            if tuner.modality not in found["base"]:
                found["base"][tuner.modality] = overlap(base, clips)
                write_json(results, found)
            trainer = train(tuner, base, pictures, steps, output / name)
            row = Row(
                tuner=tuner.name,
                streams="RGB" if tuner.modality == "rgb" else f"RGB + {tuner.modality}",
                scenes=SCENES[tuner.modality][2],
                parameters=sum(parameter.numel() for parameter in trainer.trained),
                minutes=trainer.facts().minutes or 0.0,
                pairs=trainer.facts().samples or 0,
                base=found["base"][tuner.modality],
                adapted=overlap(output / name, clips),
            )
            found["rows"][name] = asdict(row)
            write_json(results, found)
            (output / "table.md").write_text(as_table(rows_of(found)))
    rows = rows_of(found)
    print(as_table(rows))
    return rows


if __name__ == "__main__":
    run_script(lambda: typer.run(main))
