"""AutoTracker: which class, which base, and what it says when something is wrong."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft_rows import ROWS, TINY, inputs, maps, tiny_ostrack, with_adapter
from safetensors.torch import load_file, save_file
from transformers import ViTConfig

from mmtrackers import AutoTracker, OSTrackConfig, OSTrackForTracking, SEATrackConfig, SEATrackForTracking

AMG = next(row for row in ROWS if row.peft_type == "AMG_LORA")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter that names it as "../base"."""
    folder = tmp_path_factory.mktemp("auto")
    tiny_ostrack().save_pretrained(folder / "base")
    with_adapter(AMG, folder / "base").save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def repos(originals: Path, tmp_path: Path) -> Path:
    """Copies of both, to spoil."""
    shutil.copytree(originals, tmp_path / "repos")
    return tmp_path / "repos"


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def nudge(folder: Path, by: float = 0.3) -> None:
    """Another base of the same shape."""
    weights = load_file(folder / "model.safetensors")
    save_file({key: value + by for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_registered_trackers() -> None:
    known = AutoTracker.registered()
    assert known["mmt_ostrack"] == (OSTrackConfig, OSTrackForTracking)
    assert known["mmt_seatrack"] == (SEATrackConfig, SEATrackForTracking)
    assert not [name for name in known if not name.startswith("mmt_")]
    assert type(AutoTracker.from_config(OSTrackConfig(**TINY))) is OSTrackForTracking
    with pytest.raises(ValueError, match=r"'vit'; known trackers: .*mmt_ostrack"):
        AutoTracker.from_config(ViTConfig())
    with pytest.raises(ValueError, match="'mmt_ostrack' is OSTrackForTracking already"):
        AutoTracker.register(OSTrackConfig, SEATrackForTracking)
    with pytest.raises(TypeError, match="no instances"):
        AutoTracker()


def test_full_model(repos: Path) -> None:
    model = AutoTracker.from_pretrained(repos / "base")
    assert type(model) is OSTrackForTracking
    assert not model.training
    assert AutoTracker.from_pretrained(repos / "base", dtype="bfloat16").dtype == torch.bfloat16
    assert AutoTracker.from_pretrained(repos / "base", fusion="mean").config.fusion == "mean"
    same, info = AutoTracker.from_pretrained(repos / "base", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(maps(model, inputs(model)), maps(same, inputs(model)))


def test_adapter_brings_its_base_and_its_config(repos: Path) -> None:
    model = AutoTracker.from_pretrained(repos / "adapter")
    assert type(model) is SEATrackForTracking
    assert (model.config.streams, model.config.modality, model.config.hidden_size) == (2, "thermal", 32)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert AutoTracker.from_pretrained(repos / "adapter", modality="depth").config.modality == "depth"
    assert AutoTracker.from_pretrained(repos / "adapter", attn_implementation="eager")


def test_relative_base_does_not_depend_on_the_working_folder(
    repos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repos)
    assert AutoTracker.from_pretrained("adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert AutoTracker.from_pretrained(repos / "adapter")


@pytest.mark.parametrize("form", ["folder", "model", "model of the tracker's class"])
def test_base_model_replaces_the_recorded_base(repos: Path, form: str) -> None:
    expected = AutoTracker.from_pretrained(repos / "adapter")
    feed = inputs(expected)
    (repos / "base").rename(repos / "moved")
    base: object = repos / "moved"
    if form == "model":
        base = AutoTracker.from_pretrained(repos / "moved")
    elif form != "folder":
        base = SEATrackForTracking.from_pretrained(repos / "moved", config=SEATrackConfig(**TINY))
    before = {name: p.data_ptr() for name, p in base.named_parameters()} if form != "folder" else {}
    model = AutoTracker.from_pretrained(repos / "adapter", base_model=base, is_trainable=True)
    assert torch.equal(maps(model, feed), maps(expected, feed))
    if form == "folder":
        return
    # the loaded model is as it was, and its weights are shared, not copied
    assert not hasattr(base, "peft_config")
    assert all(parameter.requires_grad for parameter in base.parameters())
    now = {name.replace(".base_layer", ""): p.data_ptr() for name, p in model.named_parameters()}
    assert all(now[name] == pointer for name, pointer in before.items())


def test_loaded_tracker_saves_again(repos: Path, tmp_path: Path) -> None:
    model = AutoTracker.from_pretrained(repos / "adapter")
    model.save_pretrained(tmp_path / "deeper" / "again")
    config = json.loads((tmp_path / "deeper" / "again" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../../repos/base"
    again = AutoTracker.from_pretrained(tmp_path / "deeper" / "again")
    assert torch.equal(maps(again, inputs(model)), maps(model, inputs(model)))
    for name in ("adapter_model.safetensors", "tracker_config.json"):
        assert (repos / "adapter" / name).read_bytes() == (tmp_path / "deeper" / "again" / name).read_bytes()


def test_modules_to_save_freeze_and_train_with_the_adapter(repos: Path) -> None:
    model = AutoTracker.from_pretrained(repos / "base")
    model.add_adapter(LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["head"]))
    with torch.no_grad():
        model.head.modules_to_save["default"].score[4].bias.add_(0.5)
    model.save_pretrained(repos / "lora")
    frozen = AutoTracker.from_pretrained(repos / "lora")
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert torch.equal(maps(frozen, inputs(model)), maps(model, inputs(model)))
    trainable = AutoTracker.from_pretrained(repos / "lora", is_trainable=True)
    names = {name for name, parameter in trainable.named_parameters() if parameter.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if "lora_" in name or "modules_to_save" in name}
    assert names


def test_adapter_written_by_peft_alone_uses_the_base_itself(repos: Path) -> None:
    model = AutoTracker.from_pretrained(repos / "base")
    model.add_adapter(LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    model.save_pretrained(repos / "lora")
    (repos / "lora" / "tracker_config.json").unlink()
    loaded = AutoTracker.from_pretrained(repos / "lora")
    assert type(loaded) is OSTrackForTracking
    assert torch.equal(maps(loaded, inputs(model)), maps(model, inputs(model)))


def test_the_same_base_in_bfloat16_is_the_same_base(repos: Path) -> None:
    AutoTracker.from_pretrained(repos / "base", dtype="bfloat16").save_pretrained(repos / "half")
    for dtype in ("bfloat16", "float32", "float16"):
        assert AutoTracker.from_pretrained(repos / "adapter", base_model=repos / "half", dtype=dtype)
        assert AutoTracker.from_pretrained(repos / "adapter", dtype=dtype)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop(repos: Path, folder: str, weights: str, part: str) -> None:
    tensors = load_file(repos / folder / weights)
    kept = {key: value for key, value in tensors.items() if part not in key}
    assert len(kept) < len(tensors)
    save_file(kept, repos / folder / weights, {"format": "pt"})


def other_size(repos: Path) -> None:
    OSTrackForTracking(OSTrackConfig(**TINY | {"hidden_size": 64})).save_pretrained(repos / "base")


WEIGHTS = "adapter_model.safetensors"
# what is spoilt, what is loaded, the error, its words
FAULTS: dict[str, tuple[Callable[[Path], object], str, type[Exception], list[str]]] = {
    "no such folder": (lambda r: None, "nothing/here/at/all", OSError, ["neither an existing folder nor a Hub id"]),
    "empty folder": (lambda r: (r / "empty").mkdir(), "empty", OSError, ["config.json", "adapter_config.json"]),
    "both kinds": (
        lambda r: shutil.copy(r / "base/config.json", r / "adapter"), "adapter", ValueError, ["Remove config.json"]
    ),
    "unknown model type": (
        lambda r: edit(r / "base/config.json", model_type="vit"), "base", ValueError, ["'vit'", "mmt_ostrack"]
    ),
    "truncated full model": (
        lambda r: truncate(r / "base/model.safetensors"), "base", OSError, ["corrupt or truncated"]
    ),
    "incomplete full model": (
        lambda r: drop(r, "base", "model.safetensors", "layers.2.mlp.fc1.weight"), "base", ValueError,
        ["1 missing", "model.layers.2.mlp.fc1.weight"],
    ),
    "config that does not fit": (
        lambda r: edit(r / "base/config.json", search_size=96), "base", ValueError, ["search_position", "[1, 36, 32]"]
    ),
    "config that is no JSON": (
        lambda r: (r / "adapter/tracker_config.json").write_text("{"), "adapter", OSError,
        ["tracker_config.json is not valid JSON"],
    ),
    "missing weights": (
        lambda r: (r / "adapter" / WEIGHTS).unlink(), "adapter", OSError, [f"{WEIGHTS} is missing"]
    ),
    "truncated weights": (
        lambda r: truncate(r / "adapter" / WEIGHTS), "adapter", OSError, [WEIGHTS, "corrupt or truncated"]
    ),
    "weights that are no safetensors": (
        lambda r: (r / "adapter" / WEIGHTS).write_bytes(b"\x80\x04hello"), "adapter", OSError, ["corrupt or truncated"]
    ),
    "missing experts": (
        lambda r: drop(r, "adapter", WEIGHTS, "layers.1.attention_junction.amg_lora_hmoe.experts"), "adapter",
        ValueError, ["4 missing", "layers.1.attention_junction.amg_lora_hmoe.experts.a", "Nothing was loaded"],
    ),
    "unknown tracker": (
        lambda r: edit(r / "adapter/tracker_config.json", model_type="mmt_future"), "adapter", ValueError,
        ["'mmt_future'", "mmt_seatrack", "Upgrade"],
    ),
    "unknown tuner": (
        lambda r: edit(r / "adapter/adapter_config.json", peft_type="FUTURE"), "adapter", ValueError,
        ["peft_type 'FUTURE'", "Upgrade"],
    ),
    "no base named": (
        lambda r: edit(r / "adapter/adapter_config.json", base_model_name_or_path=None), "adapter", ValueError,
        ["names no base", "base_model="],
    ),
    "relative base that is gone": (
        lambda r: (r / "base").rename(r / "gone"), "adapter", OSError, ["there is no", "base_model="]
    ),
    "absolute base that is gone": (
        lambda r: edit(r / "adapter/adapter_config.json", base_model_name_or_path="/no/where"), "adapter", OSError,
        ["/no/where", "base_model="],
    ),
    "another base": (lambda r: nudge(r / "base"), "adapter", ValueError, ["another base", "the mean", "base_model="]),
    "a base of another size": (other_size, "adapter", ValueError, ["no base for adapter", "mmt_seatrack"]),
    "an adapter as base": (
        lambda r: edit(r / "adapter/adapter_config.json", base_model_name_or_path="../adapter"), "adapter", ValueError,
        ["is itself an adapter"],
    ),
    "another configuration": (
        lambda r: edit(r / "adapter/adapter_config.json", r=5), "adapter", ValueError,
        ["of another shape", "amg_lora_A [2, 32] (expected [5, 32])"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(repos: Path, fault: str) -> None:
    spoil, name, error, words = FAULTS[fault]
    spoil(repos)
    with pytest.raises(error) as caught:
        AutoTracker.from_pretrained(repos / name)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_an_error_stands_without_advice_to_train(repos: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    drop(repos, "base", "model.safetensors", "layers.2.mlp.fc1.weight")
    with pytest.raises(ValueError, match="1 missing"):
        AutoTracker.from_pretrained(repos / "base")
    with pytest.raises(ValueError, match="1 missing"):
        OSTrackForTracking.from_pretrained(repos / "base")
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapter_name": "head"}, "also the name of a module of SEATrackForTracking"),
        ({"adapter_name": "core"}, "also the name of a module"),
        ({"adapter_name": "lora"}, "part of the parameter prefix"),
        ({"adapter_name": "a.b"}, "without dots"),
        ({"trust_remote_code": True}, "never runs code"),
    ],
)
def test_refused_options(repos: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AutoTracker.from_pretrained(repos / "adapter", **options)


def test_options_of_adapters_do_not_apply_to_full_models(repos: Path) -> None:
    with pytest.raises(ValueError, match="full model, not an adapter"):
        AutoTracker.from_pretrained(repos / "base", is_trainable=True)


def test_base_with_an_adapter_in_it_is_refused(repos: Path) -> None:
    with pytest.raises(ValueError, match="with adapters in it"):
        AutoTracker.from_pretrained(repos / "adapter", base_model=AutoTracker.from_pretrained(repos / "adapter"))
