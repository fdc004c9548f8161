"""The training script: exact resume, what a checkpoint holds, stopping, two processes, messages."""

import json
import math
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from mmtrackers import (
    AMGLoraConfig,
    AutoTracker,
    LoRATForTracking,
    ODTrackConfig,
    ODTrackForTracking,
    OSTrackConfig,
    OSTrackForTracking,
    SDMoEConfig,
    Tracker,
    TrackerImageProcessor,
    finetune,
)
from mmtrackers.data import open_sequence
from mmtrackers.pretrained import default_checkpoint
from mmtrackers.training.loop import StopRequest, Trainer
from mmtrackers.training.state import changing_tensors

SCRIPT = Path(__file__).parents[1] / "examples" / "finetune.py"
TIMES = ("pairs_per_second", "waiting")


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder with two short RGB-T sequences, a tiny base, and two adapters for it: with and without dropout."""
    root = tmp_path_factory.mktemp("finetune")
    rng = np.random.default_rng(0)
    for number in range(2):
        folder, boxes = root / "sequences" / f"s{number}", []
        for stream in ("visible", "infrared"):
            (folder / stream).mkdir(parents=True)
        for i in range(24):
            frame = rng.integers(0, 80, (96, 128, 3), dtype=np.uint8)
            x, y = 20 + 2 * i, 30 + i
            frame[y : y + 20, x : x + 24] = (200, 60 * number, 90)
            cv2.imwrite(str(folder / "visible" / f"{i:06d}.jpg"), frame)
            cv2.imwrite(str(folder / "infrared" / f"{i:06d}.jpg"), frame[..., ::-1])
            boxes.append(f"{x},{y},24,20")
        for name in ("visible.txt", "infrared.txt", "init.txt"):
            (folder / name).write_text("\n".join(boxes))
    torch.manual_seed(0)
    config = OSTrackConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, template_size=32, search_size=128,
        head_channels=16, elimination_layers=[], drop_path_rate=0.3,
    )  # fmt: skip
    OSTrackForTracking(config).save_pretrained(root / "base")
    config.drop_path_rate = 0.0
    OSTrackForTracking(config).save_pretrained(root / "calm")
    for base in ("base", "calm"):
        TrackerImageProcessor(template_size=32, search_size=128).save_pretrained(root / base)
        model = OSTrackForTracking.from_pretrained(root / base)
        dropout = 0.2 if base == "base" else 0.0
        model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout))
        model.save_pretrained(root / f"{base}-lora")
    return root


def short_run(place: Path, output: Path, model: str = "base-lora") -> list[str]:
    """Options of 2 epochs of 8 steps of 2 x 2 pairs."""
    common = ["--model", str(place / model), "--data", str(place / "sequences"), "--output", str(output)]
    common += ["--samples-per-epoch", "32", "--batch-size", "4", "--epochs", "2", "--workers", "0", "--lr", "1e-2"]
    return [*common, "--gradient-accumulation", "2", "--log-every", "3"]


def train(place: Path, output: Path, *arguments: str, model: str = "base-lora"):
    """Runs the script in this process, on a short run's options and others that may replace them."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return finetune.main([*short_run(place, output, model), *arguments])


def history(output: Path) -> list[dict]:
    log = json.loads((output / "training_log.json").read_text())["history"]
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in log]


def weights(output: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model" if (output / "adapter_config.json").exists() else "model"
    return load_file(output / f"{name}.safetensors")


def assert_equal_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


KINDS = {
    "adapter": ("base-lora", []),
    "adapter, averaged": ("base-lora", ["--ema", "0.9", "--schedule", "cosine", "--warmup-steps", "2"]),
    "base": ("base", ["--train-base"]),
    "seatrack": ("base", ["--system", "seatrack", "--modality", "thermal"]),
}


RESUMES = [("adapter", 5), ("adapter", 8), ("adapter", 11), ("adapter, averaged", 11), ("base", 11), ("seatrack", 11)]


@pytest.fixture(scope="module")
def whole(place):
    """Folder of the uninterrupted run of a kind, made once."""
    done = {}

    def run(kind: str = "adapter") -> Path:
        if kind not in done:
            model, options = KINDS[kind]
            done[kind] = place / f"whole-{len(done)}"
            train(place, done[kind], *options, model=model)
        return done[kind]

    return run


@pytest.mark.parametrize("kind, stop_at", RESUMES)
def test_resumed_run_equals_uninterrupted(place, tmp_path, whole, kind, stop_at):
    model, options = KINDS[kind]
    uninterrupted = whole(kind)
    first = train(place, tmp_path / "parts", *options, "--max-steps", str(stop_at), model=model)
    assert (first.state, first.progress.step) == ("stopped at --max-steps", stop_at)
    torch.manual_seed(1234)  # what happened in between must not matter
    second = train(place, tmp_path / "parts", *options, "--resume", model=model)
    assert (second.state, second.progress.step) == ("complete", 16)
    assert history(tmp_path / "parts") == history(uninterrupted)
    assert [entry["step"] for entry in history(uninterrupted)] == [3, 6, 9, 12, 15, 16]
    assert_equal_tensors(weights(tmp_path / "parts"), weights(uninterrupted))


def test_number_of_workers_does_not_matter(place, tmp_path, whole):
    train(place, tmp_path / "workers", "--workers", "2", "--save-steps", "3")
    assert history(tmp_path / "workers") == history(whole())
    assert_equal_tensors(weights(tmp_path / "workers"), weights(whole()))


def test_losses_fall(place, tmp_path):
    arguments = ("--train-base", "--epochs", "6", "--clip-norm", "1", "--lr", "2e-3")
    trainer, losses = train(place, tmp_path, *arguments, model="base"), [entry["loss"] for entry in history(tmp_path)]
    assert losses[-1] < 0.75 * losses[0] and trainer.unwrapped.config._attn_implementation == "sdpa"


def test_adapter_checkpoints_hold_the_adapter_only(place, tmp_path):
    trainer = train(place, tmp_path / "out", "--save-steps", "1")
    folders = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert folders == ["checkpoint-00000015", "checkpoint-00000016"]
    newest = tmp_path / "out" / "checkpoints" / folders[-1]
    files = {path.name for path in newest.iterdir() if path.is_file()}
    assert files == {"trained.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"}
    stored = load_file(newest / "trained.safetensors")
    assert stored and all("lora_" in name for name in stored)
    assert not (newest / "model" / "model.safetensors").exists()
    assert_equal_tensors(weights(newest / "model"), weights(tmp_path / "out"))
    assert_equal_tensors(stored, changing_tensors(trainer.unwrapped))


def test_frozen_base_does_not_change(place, tmp_path):
    trainer = train(place, tmp_path / "out")
    base = OSTrackForTracking.from_pretrained(place / "base").state_dict()
    now = {name.replace(".base_layer", ""): value for name, value in trainer.unwrapped.state_dict().items()}
    changed = [name for name, value in base.items() if not torch.equal(now[name], value)]
    assert changed == []
    assert any("running_mean" in name for name in base)


def test_damaged_newest_checkpoint_is_passed_over(place, tmp_path, whole, capsys):
    uninterrupted = whole()
    train(place, tmp_path / "parts", "--save-steps", "4", "--max-steps", "8")
    (tmp_path / "parts" / "checkpoints" / "checkpoint-00000008" / "trained.safetensors").write_bytes(b"torn")
    train(place, tmp_path / "parts", "--resume")
    printed = capsys.readouterr().out
    assert "checkpoint-00000008 cannot be read and is passed over" in printed
    assert "Going on from checkpoint-00000004" in printed
    assert_equal_tensors(weights(tmp_path / "parts"), weights(uninterrupted))


def test_resume_without_a_checkpoint_starts(place, tmp_path, capsys):
    trainer = train(place, tmp_path / "out", "--resume", "--max-steps", "1")
    assert trainer.progress.step == 1
    assert "No checkpoint yet" in capsys.readouterr().out


def test_finished_run_resumes_to_nothing(place, tmp_path):
    train(place, tmp_path / "out")
    before = weights(tmp_path / "out")
    trainer = train(place, tmp_path / "out", "--resume")
    assert trainer.progress.step == 16
    assert_equal_tensors(weights(tmp_path / "out"), before)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "already holds checkpoint-00000002 of an earlier run: add --resume"),
        (["--resume", "--batch-size", "8"], r"batch_size 4 -> 8.*start a new run"),
        (["--resume", "--seed", "1"], "seed 0 -> 1"),
        (["--resume", "nowhere"], "nowhere is no checkpoint"),
        (["--resume", "--train-base"], "other trained tensors than this model"),
    ],
)
def test_refused_resumes(place, tmp_path, arguments, message):
    train(place, tmp_path / "out", "--max-steps", "2")
    model = "base" if "--train-base" in arguments else "base-lora"
    with pytest.raises((ValueError, OSError), match=message):
        train(place, tmp_path / "out", *arguments, model=model)


@pytest.mark.parametrize("number", [15, 2, *[1] * (signal.getsignal(1) != signal.SIG_IGN)], ids=signal.strsignal)
def test_signal_saves_and_stops(place, tmp_path, monkeypatch, whole, number):
    uninterrupted, plain, handler = whole(), Trainer.train_batch, signal.getsignal(number)

    def interrupted(self, batch):
        plain(self, batch)
        if self.progress.batch == 4:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_batch", interrupted)
    trainer = train(place, tmp_path / "parts")
    assert (trainer.state, trainer.progress.step, *trainer.interrupt.args) == ("stopped by a signal", 3, number)
    assert signal.getsignal(number) == handler
    with pytest.raises(KeyboardInterrupt, match=f"^{number}$"), StopRequest():  # a second one: the exit code's number
        [os.kill(os.getpid(), number) for _ in range(2)]
    monkeypatch.undo()
    train(place, tmp_path / "parts", "--resume")
    assert_equal_tensors(weights(tmp_path / "parts"), weights(uninterrupted))


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint(place, tmp_path, whole):
    command = [sys.executable, str(SCRIPT), *short_run(place, tmp_path / "parts"), "--save-steps", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "parts" / "checkpoints"
    while run.poll() is None and not (list(folder.glob("checkpoint-*")) and list(folder.glob(".writing-*"))):
        time.sleep(0.001)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    second = train(place, tmp_path / "parts", "--resume")
    assert second.state == "complete" and history(tmp_path / "parts") == history(whole())
    assert_equal_tensors(weights(tmp_path / "parts"), weights(whole()))
    assert not list(folder.glob(".writing-*"))


def test_time_limits(place, tmp_path):
    trainer = train(place, tmp_path / "out", "--max-minutes", "1e-6", "--save-minutes", "1e-6")
    assert (trainer.state, trainer.progress.step) == ("stopped at --max-minutes", 1)
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-00000001").is_dir()


def test_nan_stops_before_a_checkpoint(place, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss.* became NaN or infinite .*no checkpoint yet. Lower --lr"):
        train(place, tmp_path / "out", "--train-base", "--lr", "1e30", "--clip-norm", "0", model="base")
    assert not (tmp_path / "out" / "checkpoints").exists()
    told = json.loads((tmp_path / "out" / "bad_batch.json").read_text())
    assert told["epoch"] == 0 and len(told["samples"]) == 2
    assert all(re.fullmatch(r"s[01]: templates \[\d+\], search \[\d+\]", sample) for sample in told["samples"])


def test_frozen_weights_in_bf16_and_activation_checkpointing(place, tmp_path):
    """Both change memory, not what is learned: the frozen weights round, checkpointing changes nothing at all."""
    common = ("--max-steps", "4", "--log-every", "1")
    for name, more in (("plain", ()), ("half", ("--frozen-dtype", "bfloat16")), ("again", ("--checkpointing",))):
        train(place, tmp_path / name, *common, *more, model="calm-lora")
    plain, half, again = ([entry["loss"] for entry in history(tmp_path / n)] for n in ("plain", "half", "again"))
    assert again == pytest.approx(plain, rel=1e-5)
    assert half == pytest.approx(plain, rel=0.1) and half != plain
    assert {tensor.dtype for tensor in weights(tmp_path / "half").values()} == {torch.float32}
    with pytest.raises(ValueError, match="there is nothing frozen to cast"):
        train(place, tmp_path / "all", "--train-base", "--frozen-dtype", "bfloat16", model="base")


def test_an_adapter_goes_on_the_base_of_the_package_unless_another_is_named():
    options = ["--system", "seatrack", "--modality", "thermal", "--data", "mine", "--output", "out"]
    assert finetune.parse(options).model == str(default_checkpoint())
    assert finetune.parse([*options, "--model", "org/base"]).model == "org/base"


def test_best_by_validation_is_kept(place, tmp_path, capsys):
    validated = ("--validate", str(place / "sequences"), "--validate-sequences", "1", "--license", "mit")
    train(place, tmp_path / "out", *validated)
    log = json.loads((tmp_path / "out" / "training_log.json").read_text())["history"]
    overlaps = [entry["validation"] for entry in log if "validation" in entry]
    assert len(overlaps) == 2 and all(0 <= overlap <= 1 for overlap in overlaps)
    kept = json.loads((tmp_path / "out" / "best" / "training_log.json").read_text())["history"]
    assert kept[-1]["validation"] == max(overlaps)
    facts = json.loads((tmp_path / "out" / "best" / "training_facts.json").read_text())
    assert facts["license"] == "mit" and facts["figures"][0]["metric"] == "mean overlap"
    assert facts["figures"][0]["value"] == pytest.approx(max(overlaps), abs=1e-4)
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    assert AutoTracker.from_pretrained(tmp_path / "out" / "best", base_model=place / "base").has_adapter


def test_clips_train_a_base_that_carries_state(place, tmp_path):
    config = ODTrackConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, template_size=32, search_size=64, head_channels=16
    )
    ODTrackForTracking(config).save_pretrained(tmp_path / "base")
    TrackerImageProcessor(template_size=32, search_size=64).save_pretrained(tmp_path / "base")
    AcceleratorState._reset_state(True)
    options = ["--model", str(tmp_path / "base"), "--train-base", "--output", str(tmp_path / "out"), "--workers", "0"]
    options += ["--preset", "odtrack-384", "--data", str(place / "sequences"), "--samples-per-epoch", "8"]
    trainer = finetune.main([*options, "--batch-size", "4", "--max-steps", "2", "--log-every", "1"])
    assert trainer.dataset[0]["search"].shape == (2, 1, 3, 64, 64)
    assert all(math.isfinite(entry["loss"]) for entry in history(tmp_path / "out"))
    facts = json.loads((tmp_path / "out" / "training_facts.json").read_text())["recipe"]
    assert (facts["preset"], facts["templates"], facts["max_gap"]) == ("odtrack-384", 3, 400)


@pytest.fixture(scope="module")
def bases(place, tmp_path_factory) -> dict[str, Path]:
    """A folder for each family: DINOv2 as transformers writes it, OSTrack, ODTrack."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)  # the same weights whichever tests ran before
    dinov2 = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    Dinov2Model(dinov2).save_pretrained(root / "dino")
    BitImageProcessor().save_pretrained(root / "dino")
    giant = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, use_swiglu_ffn=True)
    Dinov2Model(giant).save_pretrained(root / "giant")
    BitImageProcessor().save_pretrained(root / "giant")
    sizes = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2, "head_channels": 16}
    odtrack = ODTrackForTracking(ODTrackConfig(**sizes, template_size=32, search_size=64))
    odtrack.save_pretrained(root / "odtrack")
    TrackerImageProcessor(template_size=32, search_size=64).save_pretrained(root / "odtrack")
    return {name: root / name for name in ("dino", "giant", "odtrack")} | {"ostrack": place / "base"}


def test_a_new_combination_trains_and_tracks(place, bases, tmp_path):
    """README's: SEATrack's adapter on the DINOv2 trunk, from a plain DINOv2 to boxes."""
    new = AMGLoraConfig(modules_to_save=["head", "token_type"])
    model = LoRATForTracking.from_base(bases["dino"], "thermal", new)
    model.save_pretrained(tmp_path / "start")
    model.image_processor().save_pretrained(tmp_path / "start")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    options = ["--model", str(tmp_path / "start"), "--data", str(place / "sequences"), "--workers", "0"]
    options += ["--frame-sampler", "interval", "--augmentation", "deit", "--modality", "thermal"]
    options += ["--samples-per-epoch", "4"]
    finetune.main([*options, "--output", str(tmp_path / "new"), "--batch-size", "2", "--max-steps", "2"])
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("start", "new"))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    tracker, sequence = Tracker.from_pretrained(str(tmp_path / "new")), open_sequence(place / "sequences" / "s0")
    session = tracker.start(sequence.read(0), sequence.boxes_xywh[0])
    assert np.isfinite(session.update(sequence.read(1)).box).all() and session.modality == "thermal"


@pytest.mark.parametrize(
    ("preset", "base", "frames", "prefix"),
    [
        ("lorat", "dino", (1, 1), "lora_"),
        ("spmtrack", "dino", (3, 2), "tmoe_"),
        ("seatrack-rgbt", "ostrack", (1, 1), "amg_lora_"),
        ("patrack-rgbt", "ostrack", (1, 1), "progressive_"),
        ("sdmoea-256", "odtrack", (3, 2), "sdmoe_"),
    ],
)
def test_every_system_trains_by_its_preset(place, bases, tmp_path, preset, base, frames, prefix):
    """One step of each recipe, from its kind of base to an adapter folder that loads again."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    options = ["--preset", preset, "--model", str(bases[base]), "--data", str(place / "sequences"), "--workers", "0"]
    options += ["--output", str(tmp_path), "--samples-per-epoch", "4", "--batch-size", "2", "--mixed-precision", "no"]
    trainer = finetune.main([*options, "--max-steps", "1", "--log-every", "1", "--warmup-steps", "0"])
    item = trainer.dataset[0]
    found = item["search"].shape[0] if item["search"].ndim == 5 else 1
    assert (item["template"].shape[0], found) == frames
    assert math.isfinite(history(tmp_path)[-1]["loss"])
    assert any(prefix in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    assert AutoTracker.from_pretrained(tmp_path).has_adapter
    assert TrackerImageProcessor.from_pretrained(tmp_path).crop_style == ("lorat" if base == "dino" else "ostrack")


@pytest.mark.parametrize(("system", "searched", "template"), [("lorat", "378", 196), ("spmtrack", "224", 112)])
def test_the_search_size_is_chosen_on_a_plain_dinov2(bases, tmp_path, system, searched, template):
    """With the template that was published with it."""
    given = ["--preset", system, "--model", str(bases["dino"]), "--data", "x", "--output", str(tmp_path)]
    model = finetune.build_model(finetune.parse([*given, "--search-size", searched]))
    assert (model.config.search_size, model.config.template_size) == (int(searched), template)
    assert model.image_processor().search_factor == {"378": 5.0, "224": 4.0}[searched]


def test_elimination_sets_in_by_epochs(place, tmp_path, monkeypatch):
    """OSTrack's recipe: every token at first, then ever fewer (epochs count from 1)."""
    config = OSTrackConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, template_size=32, search_size=64, head_channels=16,
        elimination_layers=[1], elimination_keep_rate=0.5,
    )  # fmt: skip
    OSTrackForTracking(config).save_pretrained(tmp_path / "base")
    TrackerImageProcessor(template_size=32, search_size=64).save_pretrained(tmp_path / "base")
    rates, plain = [], OSTrackForTracking.forward

    def forward(self, *args, **kwargs):
        rates.append(kwargs.get("elimination_keep_rate"))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(OSTrackForTracking, "forward", forward)
    options = ["--train-base", "--samples-per-epoch", "4", "--epochs", "5", "--gradient-accumulation", "1"]
    schedule = ["--full-token-epochs", "2", "--elimination-warmup", "2"]
    train(place, tmp_path / "out", *options, *schedule, model=tmp_path / "base")
    assert rates == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])
    rates.clear()
    train(place, tmp_path / "plain", *options, "--max-steps", "1", model=tmp_path / "base")
    assert rates == [None]


def test_any_adapter_on_a_base(place, tmp_path):
    """A config that peft wrote, on two streams of a base that has no adapter of its own."""
    SDMoEConfig(adapter_dim=4, hyper_dim=8).save_pretrained(tmp_path / "start")
    options = ("--adapter", str(tmp_path / "start"), "--modality", "thermal", "--max-steps", "1")
    trainer = train(place, tmp_path / "out", *options, model="base")
    assert trainer.dataset[0]["search"].shape == (2, 3, 128, 128)
    loaded = AutoTracker.from_pretrained(tmp_path / "out", base_model=place / "base")
    assert type(loaded) is OSTrackForTracking and loaded.config.modality == "thermal"
    assert all("sdmoe_" in name for name in weights(tmp_path / "out"))


def test_clips_frame_by_frame_and_box_warmup(place, bases, tmp_path):
    first, trained = {}, {}
    for name, more in {"clip": [], "frames": ["--frame-by-frame"], "warm": ["--box-warmup-epochs", "1"]}.items():
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        options = ["--preset", "spmtrack", "--model", str(bases["dino"]), "--data", str(place / "sequences"), *more]
        options += ["--output", str(tmp_path / name), "--samples-per-epoch", "2", "--batch-size", "2"]
        options += ["--workers", "0", "--mixed-precision", "no", "--log-every", "1", "--warmup-steps", "0"]
        finetune.main([*options, "--max-steps", "1"])
        first[name] = history(tmp_path / name)[0]
        trained[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    assert first["frames"]["loss"] == pytest.approx(first["clip"]["loss"], rel=1e-5)
    for name, tensor in trained["clip"].items():
        assert torch.allclose(trained["frames"][name], tensor, atol=2e-4), name
    # the parts are means over the two frames, the loss is their sum
    more = 9 * 2 * first["clip"]["giou"]
    assert first["warm"]["loss"] == pytest.approx(first["clip"]["loss"] + more, rel=1e-5)


def test_bf16_and_a_whole_base(place, tmp_path):
    common = ["--model", str(place / "base"), "--train-base", "--data", str(place / "sequences"), "--output"]
    common += [str(tmp_path / "out"), "--samples-per-epoch", "8", "--batch-size", "4", "--epochs", "1"]
    trainer = finetune.main([*common, "--workers", "0", "--mixed-precision", "bf16", "--log-every", "1"])
    assert trainer.unwrapped.config._attn_implementation == "eager"  # on a CPU
    assert all(math.isfinite(entry["loss"]) for entry in history(tmp_path / "out"))
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float32, torch.int64}
    assert OSTrackForTracking.from_pretrained(tmp_path / "out").config.hidden_size == 32
    assert TrackerImageProcessor.from_pretrained(tmp_path / "out").search_size == 128


def test_tensorboard(place, tmp_path):
    pytest.importorskip("tensorboard")
    train(place, tmp_path / "out", "--track-with", "tensorboard", "--max-steps", "3")
    assert list((tmp_path / "out" / "logs").rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_trackio(place, tmp_path):
    """It asks for an older Pillow, as the app does, so both live in the environment that `MMTRACKERS_APP` names."""
    python = os.environ.get("MMTRACKERS_APP") or sys.executable
    if subprocess.run([python, "-c", "import trackio"], capture_output=True).returncode:
        pytest.skip("there is no trackio in the environment of MMTRACKERS_APP, nor in this one")
    command = [python, SCRIPT, *short_run(place, tmp_path / "out"), "--track-with", "trackio", "--max-steps", "3"]
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[1])
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "trackio" / "training.db") as database:
        logged = [json.loads(text) for (text,) in database.execute("select metrics from metrics order by step")]
    assert [entry["loss"] for entry in logged] == [entry["loss"] for entry in history(tmp_path / "out")]


def test_push_sends_the_result(place, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr("mmtrackers.training.loop.push", lambda *args, **kwargs: sent.append((args, kwargs)))
    train(place, tmp_path / "out", "--max-steps", "1", "--push-to-hub", "org/mine", "--hub-base", "org/base")
    assert sent == [((tmp_path / "out", "org/mine"), {"base_model": "org/base"})]


def test_no_local_path_in_the_result(place, tmp_path):
    train(place, tmp_path / "out", "--max-steps", "3")
    texts = [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".json", ".md")]
    assert len(texts) >= 6
    assert [p.name for p in texts if str(tmp_path.parent) in p.read_text() or str(place) in p.read_text()] == []


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(*arguments: str, script: Path = SCRIPT, **more: str) -> None:
    """Two gloo processes on this machine's CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    python_path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
    where = arguments.index("--model")
    command += [*arguments[:where], str(script), *arguments[where:]]
    done = subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


# what the documented command for the giant models adds to their recipes
GIANT = ["--samples-per-epoch", "8", "--warmup-steps", "0", "--frozen-dtype", "bfloat16", "--checkpointing"]
GIANT += ["--mixed-precision", "bf16"]
# kind of run -> base, options, whether it is in shards
TWO_PROCESSES = {
    "lora": ("calm-lora", [], False),
    "seatrack": ("calm-seatrack", [], False),
    "lora in shards": ("calm-lora", ["--ema", "0.9"], True),
    "lorat in shards": ("giant", ["--preset", "lorat", *GIANT], True),
    "spmtrack in shards": ("giant", ["--preset", "spmtrack-giant", *GIANT, "--frame-by-frame"], True),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TWO_PROCESSES)
def test_two_processes_equal_one(place, bases, tmp_path, kind):
    """gloo, dropout and drop path 0, the same batch of 4 samples per step, in all 2 epochs; FSDP2 is stopped once."""
    base, more, sharded = TWO_PROCESSES[kind]
    half = base == "giant"
    start = bases["giant"] if half else place / base
    if base == "calm-seatrack":
        seatrack_without_dropout(place)
    options = ["--model", str(start), "--data", str(place / "sequences"), "--samples-per-epoch", "16", "--epochs", "2"]
    options += ["--workers", "0", "--log-every", "1", "--lr", "1e-3", "--batch-size", "4", *more]
    finetune.main([*options, "--output", str(tmp_path / "one")])
    options += ["--output", str(tmp_path / "two")]
    if sharded:
        fsdp = ["--config_file", str(SCRIPT.parent / "accelerate" / "fsdp2.yaml")]
        script = Path(__file__).with_name("fsdp_on_cpu.py")
        launch(*fsdp, *options, "--max-steps", "3", script=script)
        stored = load_file(tmp_path / "two" / "checkpoints" / "checkpoint-00000003" / "trained.safetensors")
        assert stored.keys() == trained_names(tmp_path / "one")
        launch(*fsdp, *options, "--resume", script=script)
    else:
        launch("--multi_gpu", *options)
    facts = json.loads((tmp_path / "two" / "training_facts.json").read_text())
    assert facts["hardware"] == "2 x cpu"
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == len(two) == (4 if half else 8)
    for a, b in zip(one, two, strict=True):
        # losses are float32 also under bf16; the gradients' norm is of numbers with a step of 2 ** -8
        assert b.pop("gradient") == pytest.approx(a.pop("gradient"), rel=4e-3 if half else 1e-5)
        assert b == pytest.approx(a, rel=1e-3 if half else 1e-5, abs=1e-6)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert a.keys() == b.keys()
    apart = torch.cat([(b[name] - a[name]).flatten() for name in a]).abs()
    # bf16 rounds the gradients of each half of the batch apart, and AdamW moves a number whose gradient is nearly zero
    # by a whole step of 1e-3 either way: single numbers say nothing, all together do (2.3e-6 was seen)
    assert apart.mean() < 1e-5 if half else apart.max() < 1e-5
    if not half:
        before = weights(start)
        assert max((a[name] - before[name]).abs().max().item() for name in a) > 1e-3


def trained_names(folder: Path) -> set[str]:
    """Of the tensors in a run's last checkpoint."""
    return load_file(next(folder.glob("checkpoints/*/trained.safetensors"))).keys()


def seatrack_without_dropout(place: Path) -> Path:
    from mmtrackers import AMGLoraConfig, SEATrackForTracking

    folder = place / "calm-seatrack"
    if not folder.exists():
        config = AMGLoraConfig(lora_dropout=0.0, hmoe_dropout=0.0, r=2, hmoe_rank=2)
        SEATrackForTracking.from_base(place / "calm", "thermal", config).save_pretrained(folder)
    return folder


def test_base_without_adapter_says_what_to_add(place, tmp_path):
    with pytest.raises(ValueError, match="is a full model: to train an adapter on it add --system seatrack"):
        train(place, tmp_path / "out", model="base")
