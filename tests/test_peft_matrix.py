"""What every tuner must do, one row per tuner and base (`peft_rows.ROWS`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft_rows import ROWS, Row, adapter_parameters, inputs, maps, plain_tracker, scramble, with_adapter
from safetensors.torch import load_file, save_file

from mmtrackers import AutoTracker

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: f"{row.peft_type}-{row.tracker.config_class.model_type}")
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def base(row: Row, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(row.peft_type) / "base"
    row.base().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(row: Row, base: Path) -> Path:
    """An adapter folder beside the base."""
    folder = base.parent / "adapter"
    with_adapter(row, base).save_pretrained(folder)
    return folder


def own_copy(saved: Path, name: str) -> Path:
    """A copy beside the original, so that the relative base is still found."""
    folder = saved.parent / name
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b)


def test_prefix_is_what_peft_computes(row: Row, base: Path) -> None:
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[row.peft_type]
    assert prefix == f"{row.peft_type.lower()}_"
    assert not [name for name, _ in plain_tracker(row, base).named_parameters() if prefix in name]


def test_disabled_is_the_base_bit_for_bit(row: Row, base: Path) -> None:
    plain, model = plain_tracker(row, base), with_adapter(row, base)
    feed = inputs(plain)
    expected, adapted = maps(plain, feed), maps(model, feed)
    assert not same(expected, adapted)
    model.disable_adapters()
    assert same(maps(model, feed), expected)
    model.enable_adapters()
    assert same(maps(model, feed), adapted)
    wrapped = get_peft_model(plain_tracker(row, base), row.config())
    scramble(wrapped, seed=2)
    assert not same(maps(wrapped, feed), expected)
    with wrapped.disable_adapter():
        assert same(maps(wrapped, feed), expected)


def test_fresh_adapter(row: Row, base: Path) -> None:
    plain, model = plain_tracker(row, base), plain_tracker(row, base)
    feed = inputs(plain)
    if row.neutral is not None:
        model.add_adapter(row.neutral())
        assert same(maps(model, feed), maps(plain, feed))
    fresh = with_adapter(row, base, seed=None)
    assert same(maps(fresh, feed), maps(plain, feed)) is not row.fresh_changes


def test_save_and_load_changes_nothing(row: Row, base: Path, saved: Path) -> None:
    model = with_adapter(row, base)
    feed = inputs(model)
    expected = maps(model, feed)
    loaded = AutoTracker.from_pretrained(saved)
    assert type(loaded) is row.tracker
    assert not loaded.training
    mixin = plain_tracker(row, base)
    mixin.load_adapter(str(saved))
    wrapped = PeftModel.from_pretrained(plain_tracker(row, base), saved)
    frugal = PeftModel.from_pretrained(plain_tracker(row, base), saved, low_cpu_mem_usage=True)
    other_name = AutoTracker.from_pretrained(saved, adapter_name="thermal")
    for name, again in {
        "AutoTracker": loaded,
        "mixin": mixin,
        "PeftModel": wrapped,
        "low_cpu_mem_usage": frugal,
        "another name": other_name,
    }.items():
        assert same(maps(again, feed), expected), name


def test_peft_model_saves_the_same_tensors(row: Row, base: Path, saved: Path, tmp_path: Path) -> None:
    wrapped = PeftModel.from_pretrained(plain_tracker(row, base), saved)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=False)
    ours, theirs = load_file(saved / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(same(ours[key], theirs[key]) for key in ours)


def test_two_adapters_switch_and_delete(row: Row, base: Path, saved: Path) -> None:
    model, other = with_adapter(row, base), with_adapter(row, base, "second", seed=3)
    feed = inputs(model)
    first, second = maps(model, feed), maps(other, feed)
    assert not same(first, second)
    other.load_adapter(str(saved), adapter_name="first")
    other.set_adapter("first")
    assert same(maps(other, feed), first)
    other.set_adapter("second")
    assert same(maps(other, feed), second)
    other.delete_adapter("second")
    other.set_adapter("first")
    assert same(maps(other, feed), first)
    assert list(other.peft_config) == ["first"]
    assert not [key for key in other.state_dict() if "second" in key]


def test_unload_is_the_base(row: Row, base: Path, saved: Path) -> None:
    plain = plain_tracker(row, base)
    unloaded = PeftModel.from_pretrained(plain_tracker(row, base), saved).unload()
    feed = inputs(plain)
    trained = tuple(row.config().modules_to_save or ())  # peft leaves these as trained
    expected, found = plain.state_dict(), unloaded.state_dict()
    assert found.keys() == expected.keys()
    changed = {name for name in found if not same(found[name], expected[name])}
    assert all(set(trained) & set(name.split(".")) for name in changed)
    assert same(maps(unloaded, feed), maps(plain, feed)) is not bool(trained)


def test_merge(row: Row, base: Path, saved: Path) -> None:
    wrapped = PeftModel.from_pretrained(plain_tracker(row, base), saved)
    feed = inputs(wrapped)
    if row.merge_error is None:
        torch.testing.assert_close(maps(wrapped.merge_and_unload(), feed), maps(with_adapter(row, base), feed))
        return
    for merge in (wrapped.merge_and_unload, wrapped.merge_adapter):
        with pytest.raises(ValueError, match=row.merge_error):
            merge()
    with pytest.raises(NotImplementedError, match=r".+"):
        wrapped.add_weighted_adapter(["default"], [1.0], "sum")


def test_gradients_reach_the_adapter_and_nothing_else(row: Row, base: Path, saved: Path) -> None:
    fresh = with_adapter(row, base)
    adapter = adapter_parameters(row, fresh)
    loaded = AutoTracker.from_pretrained(saved, is_trainable=True)
    for model in (fresh, loaded):
        assert {name for name, p in model.named_parameters() if p.requires_grad} == adapter
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.train()
        model(**inputs(model)).loss.backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == adapter
        silent = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.abs().sum() > 0]
        assert not silent
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
        assert {name for name, p in model.named_parameters() if not same(p, before[name])} == adapter
    assert not any(p.requires_grad for p in AutoTracker.from_pretrained(saved).parameters())


def test_training_leaves_the_base_statistics_alone(row: Row, base: Path) -> None:
    model = with_adapter(row, base)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    model(**inputs(model)).loss.backward()
    assert [name for name, buffer in model.named_buffers() if not same(buffer, before[name])] == []


def test_checkpointing_gives_the_same_gradients(row: Row, base: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = with_adapter(row, base).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**inputs(model)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, again = gradients
    assert plain.keys() == again.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], again[name], msg=name)


def test_bfloat16_base_keeps_a_float32_adapter(row: Row, base: Path, saved: Path) -> None:
    model = AutoTracker.from_pretrained(saved, dtype="bfloat16", is_trainable=True)
    dtypes = {p.requires_grad: p.dtype for p in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    exact = AutoTracker.from_pretrained(saved)
    feed = inputs(exact)
    low = {name: value.bfloat16() if name != "labels" else value for name, value in feed.items()}
    difference = (maps(model, low).float() - maps(exact, feed)).abs().max()
    assert difference < 0.1
    model.train()
    model(**low).loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_file_holds_exactly_the_adapter(row: Row, base: Path, saved: Path) -> None:
    trained = {name: p for name, p in with_adapter(row, base).named_parameters() if p.requires_grad}
    saved_as = {name: name.replace(".modules_to_save.default", "").replace(".default", "") for name in trained}
    expected = {f"base_model.model.{saved_as[name]}": list(p.shape) for name, p in trained.items()}
    tensors = load_file(saved / WEIGHTS)
    assert {key: list(value.shape) for key, value in tensors.items()} == expected
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    header = int.from_bytes((saved / WEIGHTS).read_bytes()[:8], "little")
    assert (saved / WEIGHTS).stat().st_size == 8 + header + 4 * sum(p.numel() for p in trained.values())
    names = {path.name for path in saved.iterdir()}
    assert names == {"README.md", "adapter_config.json", WEIGHTS, "preprocessor_config.json", "tracker_config.json"}
    assert json.loads((saved / "tracker_config.json").read_text())["model_type"] == row.tracker_config().model_type


def test_missing_unexpected_and_misshapen_tensors_raise(row: Row, saved: Path) -> None:
    folder = own_copy(saved, "broken")
    whole = load_file(saved / WEIGHTS)
    first = sorted(whole)[0]
    for change, message in (
        (lambda t: t.pop(first), "1 missing: "),
        (lambda t: t.update({"base_model.model.head.surprise": torch.zeros(1)}), "1 unexpected: "),
        (lambda t: t.update({first: torch.zeros(3, 5, 7)}), "1 of another shape: "),
    ):
        tensors = dict(whole)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        with pytest.raises(ValueError, match="does not fit the model") as caught:
            AutoTracker.from_pretrained(folder)
        assert message in str(caught.value)
        assert first in str(caught.value) or "head.surprise" in str(caught.value)


def test_types_are_known_once_mmtrackers_is_imported(tmp_path: Path) -> None:
    for row in ROWS:
        row.config().save_pretrained(tmp_path / row.peft_type)
    code = f"""
from pathlib import Path
from peft import PeftConfig
def known():
    for folder in sorted(Path({str(tmp_path)!r}).iterdir()):
        try:
            print(folder.name, PeftConfig.from_pretrained(str(folder)).peft_type.value)
        except KeyError as error:
            print(folder.name, "KeyError", error)
known()
import mmtrackers
known()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    names = sorted({row.peft_type for row in ROWS})
    before = [f"{name} {name}" if name == "LORA" else f"{name} KeyError '{name}'" for name in names]
    assert done.stdout.splitlines() == before + [f"{name} {name}" for name in names]
