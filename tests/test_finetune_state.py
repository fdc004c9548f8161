"""The training script's files: what a run goes on with, what it keeps, and what it ends with."""

import os
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from accelerate import Accelerator
from test_finetune import fresh_accelerate_state, place, train, weights  # noqa: F401 (fixtures)

from mmtrackers import finetune
from mmtrackers.processing.files import FolderLock
from mmtrackers.training.state import CheckpointStore, TrainingProgress


def test_resume_with_another_split_of_a_step(place, tmp_path):  # noqa: F811
    """The pairs of a step are the same on any number of processes and passes, so a run may go on with others."""
    train(place, tmp_path / "whole", model="calm-lora")
    train(place, tmp_path / "parts", "--max-steps", "6", model="calm-lora")
    trainer = train(place, tmp_path / "parts", "--resume", "--gradient-accumulation", "1", model="calm-lora")
    assert trainer.progress.step == 16
    expected = weights(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "parts").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_a_step_that_is_saved_again_is_never_missing(tmp_path, monkeypatch):
    """Ended between the two moves of a second save of the same step, a run finds the first one again."""
    model, accelerator, folder = torch.nn.Linear(1, 1), Accelerator(cpu=True), tmp_path / "checkpoints"
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    store, move = CheckpointStore(accelerator, model, folder, optimizer), os.replace
    store.save(TrainingProgress(step=2))

    def killed(source, target):
        if Path(source).name.startswith(".writing-"):
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(TrainingProgress(step=2, seconds=1.0))
    monkeypatch.undo()
    assert store.newest() is None
    store = CheckpointStore(accelerator, model, folder, optimizer)
    assert store.load(store.newest()).seconds == 0.0
    store.save(TrainingProgress(step=2, seconds=1.0))
    assert store.load(store.newest()).seconds == 1.0 and len(list(folder.iterdir())) == 1


def test_a_full_disk_names_the_checkpoint(place, tmp_path, monkeypatch):  # noqa: F811
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmtrackers.training.state.save_file", full)
    message = r"cannot write the checkpoint .*checkpoint-00000002 .*No space left.*make room and --resume"
    with pytest.raises(OSError, match=message):
        train(place, tmp_path / "out", "--max-steps", "2")


def test_one_run_per_folder(place, tmp_path):  # noqa: F811
    with FolderLock(tmp_path / "out"), pytest.raises(OSError, match="out is being written by process"):
        train(place, tmp_path / "out", "--max-steps", "1")


def test_the_end_of_a_run(place, tmp_path, capsys):  # noqa: F811
    data = str(place / "sequences")
    train(place, tmp_path / "out", "--max-steps", "2", "--log-every", "1", "--validate", data)
    said = capsys.readouterr().out
    assert f"warning: {data} is trained on and validated on" in said
    assert f"mmtrackers track VIDEO --box x,y,width,height --model {tmp_path / 'out'}" in said
    assert cv2.imread(str(tmp_path / "out" / "losses.png")).shape[1] == 640


def test_a_run_ends_with_the_list_of_what_could_not_be_used(place, tmp_path, capsys):  # noqa: F811
    shutil.copytree(place / "sequences", tmp_path / "sequences")
    for file in sorted((tmp_path / "sequences" / "s0" / "visible").iterdir())[2:12]:
        file.write_bytes(b"")
    common = ["--model", str(place / "base"), "--train-base", "--data", str(tmp_path / "sequences")]
    common += ["--output", str(tmp_path / "out"), "--samples-per-epoch", "32", "--batch-size", "4"]
    finetune.main([*common, "--epochs", "1", "--workers", "0"])
    said = capsys.readouterr().out
    assert "drawn anew, since something could not be used:" in said and "is empty (0 bytes)" in said


def test_too_few_samples(place, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match=r"--samples-per-epoch 3 is less than one step \(4 pairs\)"):
        train(place, tmp_path / "out", "--samples-per-epoch", "3")
