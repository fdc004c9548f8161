"""Published recipes, the training script's options, and the rules that draw frames."""

import re

import numpy as np
import pytest

from mmtrackers import finetune
from mmtrackers.cli.ending import run_script
from mmtrackers.data.layouts import DATASETS
from mmtrackers.training.frame_samplers import CausalSampler, FrameSampler, IntervalSampler, OrderedSampler
from mmtrackers.training.recipes import RECIPES, Recipe

FAMILY = {"epochs": 60, "samples_per_epoch": 60_000, "lr": 4e-4, "weight_decay": 1e-4, "clip_norm": 0.1}


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("ostrack-256", {"epochs": 300, "lr_drop_epoch": 240, "batch_size": 128, "trunk_lr_factor": 0.1}),
        ("ostrack-384", {"center_jitter": 4.5, "size_jitter": 0.5, "full_token_epochs": 20, "elimination_warmup": 80}),
        ("odtrack-384", {"samples_per_epoch": 30_000, "templates": 3, "searches": 2, "max_gap": 400, "lr": 1e-4}),
        ("odtrack-384", {"full_token_epochs": 0, "elimination_warmup": 0}),
        ("seatrack-rgbt", FAMILY | {"batch_size": 64, "lr_drop_epoch": 48}),
        ("seatrack-rgbd", FAMILY | {"epochs": 25}),
        ("seatrack-rgbe", FAMILY | {"epochs": 45, "lr": 6e-5}),
        ("patrack-rgbt", FAMILY | {"batch_size": 32, "lr_drop_epoch": 48}),
        ("sdmoea-384", {"epochs": 85, "lr_drop_epoch": 78, "lr": 1e-4, "templates": 3, "searches": 2}),
        ("lorat", {"balanced": True, "epochs": 170, "samples_per_epoch": 131_072, "weight_decay": 0.1}),
        ("lorat-got10k", {"epochs": 100, "sets": ["got10k/train"]}),
        ("spmtrack-large", {"batch_size": 64, "warmup_steps": 4_096, "box_warmup_epochs": 2, "epochs": 170}),
        ("spmtrack-giant", {"batch_size": 32, "warmup_steps": 8_192, "box_warmup_epochs": 0}),
        ("spmtrack", {"max_gap": 200, "search_gap": 400, "templates": 3, "searches": 2, "clip_norm": 1.0}),
    ],
)
def test_published_numbers(name: str, numbers: dict[str, object]) -> None:
    values = RECIPES[name].values()
    assert {field: values[field] for field in numbers} == numbers


def test_sets_of_recipes_are_known() -> None:
    named = {tuple(one.split("/")) for recipe in RECIPES.values() for one in recipe.sets}
    assert named and all(split in DATASETS[name].splits for name, split in named)


def many(draw: FrameSampler, visible: np.ndarray, length: int) -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(0)
    return [draw(visible, length, rng) for _ in range(300)]


def test_causal_clips_are_in_order_and_near() -> None:
    visible = np.setdiff1d(np.arange(1000), np.arange(300, 500))
    for templates, searches in many(CausalSampler(3, 2, 100), visible, 1000):
        assert templates == sorted(templates) and searches == sorted(searches)
        assert templates[-1] < searches[0] and searches[-1] < templates[-1] + 100 + 205
        assert set(templates + searches) <= set(visible.tolist())


def test_causal_gap_widens_until_a_frame_is_found() -> None:
    assert CausalSampler()(np.array([3, 900]), 1000, np.random.default_rng(0)) == ([3], [900])
    with pytest.raises(ValueError, match="cannot be drawn in order from 2 visible frames of 10"):
        CausalSampler(3, 2)(np.array([8, 9]), 10, np.random.default_rng(0))


def test_interval_takes_both_directions_and_never_the_same_frame() -> None:
    drawn = many(IntervalSampler(100), np.arange(500), 500)
    gaps = np.array([searches[0] - templates[0] for templates, searches in drawn])
    assert np.abs(gaps).min() > 0 and np.abs(gaps).max() <= 100 and 0.4 < (gaps > 0).mean() < 0.6
    assert IntervalSampler(10)(np.array([7]), 30, np.random.default_rng(0)) == ([7], [7])


def test_ordered_clips_run_forward_or_backward() -> None:
    drawn = many(OrderedSampler(), np.arange(2000), 2000)
    for references, searches in drawn:
        frames = references + searches
        assert frames in (sorted(frames), sorted(frames, reverse=True)) and (len(references), len(searches)) == (3, 2)
        assert max(references) - min(references) <= 400
    forward = np.mean([searches[-1] > references[0] for references, searches in drawn])
    assert 0.4 < forward < 0.6
    with pytest.raises(ValueError, match="from 3 visible frames of 9"):
        OrderedSampler()(np.arange(3), 9, np.random.default_rng(0))


def test_an_interval_is_one_pair() -> None:
    with pytest.raises(ValueError, match="one template and one search frame, not 3 and 1"):
        Recipe(frame_sampler="interval", templates=3).make_frame_sampler()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "x"], "Say what to train: --model"),
        (["--model", "x"], "either --data .* or --synthetic"),
        (["--model", "x", "--data", "x", "--system", "seatrack"], "needs --modality thermal, depth or event"),
        (["--model", "x", "--data", "x", "--system", "seatrack", "--train-base"], "needs .*: drop --train-base"),
        (["--model", "x", "--data", "x", "--adapter", "y", "--train-base"], "--adapter needs a trained, frozen base"),
        (["--model", "x", "--data", "x", "--frame-by-frame"], "--searches is 1, expected 2 or more"),
        (["--model", "x", "--data", "x", "--search-size", "378"], "use it with --system lorat or spmtrack"),
        (["--model", "x", "--data", "x", "--blindness", "night"], "is for composed sequences: give --synthetic"),
        (["--model", "x", "--data", "x", "--epochs", "0"], "--epochs is 0; expected at least 1"),
        (["--model", "x", "--data", "x", "--speed", "9"], "not used.*--speed"),
    ],
)
def test_wrong_options(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run_script(lambda: finetune.main(["--output", str(tmp_path), *arguments]))
    said = capsys.readouterr().err
    assert re.search(message, said) and said.startswith("error: ") and said.count("\n") == 1


def test_preset_and_what_replaces_it() -> None:
    common = ["--model", "base", "--data", "folder", "--output", "out"]
    options = finetune.parse([*common, "--preset", "seatrack-rgbe", "--lr", "1e-3"])
    assert (options.system, options.modality, options.epochs, options.lr) == ("seatrack", "event", 45, 1e-3)
    assert options.samples_per_pass(2) == 32
    with pytest.raises(ValueError, match="--batch-size 64 cannot be split over 3 processes x 1 passes"):
        options.samples_per_pass(3)
    with pytest.raises(ValueError, match="--preset 'seatrack' is unknown; there are ostrack-256"):
        finetune.parse([*common, "--preset", "seatrack"])
