"""Loading: every door compares each tensor, the base is recognised, damaged and foreign files are refused."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from peft import BOFTConfig, LoraConfig, PeftModel, get_peft_model
from peft_rows import (
    ROWS,
    TINY_LORAT,
    inputs,
    maps,
    plain_tracker,
    tiny_lorat,
    tiny_odtrack,
    tiny_ostrack,
    with_adapter,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from mmtrackers import (
    AutoTracker,
    LoRATModel,
    ODTrackModel,
    OSTrackForTracking,
    OSTrackModel,
    SEATrackForTracking,
    SPMTrackConfig,
    SPMTrackForTracking,
    SPMTrackModel,
    Tracker,
    TrackerImageProcessor,
)
from mmtrackers.hub import adapters
from mmtrackers.hub.publish import save_adapter

AMG = next(row for row in ROWS if row.peft_type == "AMG_LORA")


def tiny_spmtrack() -> SPMTrackForTracking:
    return SPMTrackForTracking(SPMTrackConfig(**TINY_LORAT))


TRUNKS: list[tuple[Callable[[], PreTrainedModel], type[PreTrainedModel]]] = [
    (tiny_ostrack, OSTrackModel),
    (tiny_odtrack, ODTrackModel),
    (tiny_lorat, LoRATModel),
    (tiny_spmtrack, SPMTrackModel),
]


@pytest.mark.parametrize(("build", "trunk"), TRUNKS, ids=lambda value: value.__name__)
def test_trunks_of_trackers(build: Callable, trunk: type[PreTrainedModel], tmp_path: Path) -> None:
    tracker = build()
    tracker.save_pretrained(tmp_path / "tracker")
    expected = tracker.model.state_dict()
    for load in (AutoModel, trunk):
        loaded = load.from_pretrained(tmp_path / "tracker")
        found = loaded.state_dict()
        assert type(loaded) is trunk and found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    loaded.save_pretrained(tmp_path / "trunk")
    again = trunk.from_pretrained(tmp_path / "trunk").state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match=rf"does not fit {type(tracker).__name__}: \d+ missing: head\."):
        type(tracker).from_pretrained(tmp_path / "trunk")


# ---------------------------------------------------------------------------------------------- which base


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    tiny_ostrack().save_pretrained(folder / "base")
    TrackerImageProcessor(search_size=64, template_size=32, search_factor=9.0).save_pretrained(folder / "base")
    with_adapter(AMG, folder / "base").save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def repos(originals: Path, tmp_path: Path) -> Path:
    """Copies of a base and of an adapter on it, to spoil."""
    shutil.copytree(originals, tmp_path / "repos")
    return tmp_path / "repos"


def change(file: Path, name: str, by: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(file)
    names = [key for key in tensors if name in key]
    assert names
    save_file(tensors | {key: by(tensors[key]) for key in names}, file, {"format": "pt"})


def one_bit(tensor: Tensor) -> Tensor:
    """The highest bit of one number's exponent flipped, as a bad memory cell does."""
    bits = tensor.contiguous().view(torch.int32).clone()
    bits.view(-1)[5] ^= 1 << 30
    return bits.view(torch.float32)


def shuffled(tensor: Tensor) -> Tensor:
    return tensor.flatten()[torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))].view_as(tensor)


OTHER_BASES = {
    "v_proj scaled": ("v_proj.weight", lambda t: t * 1.5),
    "o_proj scaled": ("o_proj.weight", lambda t: t * 1.5),
    "fc2 scaled": ("layers.1.mlp.fc2.weight", lambda t: t * 1.5),
    "bias scaled": ("layers.1.mlp.fc2.bias", lambda t: t + 0.01),
    "one matrix random": ("layers.0.attention.k_proj.weight", lambda t: torch.randn_like(t) * t.std() + t.mean()),
    "one matrix shuffled": ("layers.0.mlp.fc1.weight", shuffled),
    "one bit": ("layers.2.attention.q_proj.weight", one_bit),
    "norm": ("layers.2.norm2.weight", lambda t: t * 1.02),
    "batch norm statistics": ("running_var", lambda t: t * 1.5),
}


@pytest.mark.parametrize("case", OTHER_BASES)
def test_another_base_is_recognised(repos: Path, case: str) -> None:
    name, by = OTHER_BASES[case]
    change(repos / "base" / "model.safetensors", name, by)
    with pytest.raises(ValueError, match=r"was trained on another base than .*: of its .*" + name.split(".")[-1]):
        AutoTracker.from_pretrained(repos / "adapter")
    plain = plain_tracker(AMG, repos / "base")
    with pytest.raises(ValueError, match="was trained on another base"):
        plain.load_adapter(repos / "adapter")
    assert not plain.has_adapter


@pytest.mark.parametrize("trained_on", ["float32", "bfloat16"])
def test_the_same_base_in_another_precision(repos: Path, trained_on: str) -> None:
    AutoTracker.from_pretrained(repos / "base", dtype=trained_on).save_pretrained(repos / "start")
    with_adapter(AMG, repos / "start").save_pretrained(repos / "adapter")
    for kept in ("float32", "bfloat16", "float16"):
        AutoTracker.from_pretrained(repos / "start", dtype=kept).save_pretrained(repos / kept)
        assert AutoTracker.from_pretrained(repos / "adapter", base_model=repos / kept, dtype="float32").has_adapter


def test_an_adapter_file_that_changed_is_refused(repos: Path) -> None:
    change(repos / "adapter" / "adapter_model.safetensors", "k_proj.amg_lora_A", one_bit)
    with pytest.raises(OSError, match=r"adapter_model\.safetensors has changed since it was saved"):
        AutoTracker.from_pretrained(repos / "adapter")


# ---------------------------------------------------------------------------------------------- what is let in


def test_foreign_types_of_adapters_are_refused(repos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BOFT compiles an extension of its own as soon as it stands on a model."""
    BOFTConfig(base_model_name_or_path="../base").save_pretrained(repos / "boft")
    with pytest.raises(ValueError, match=r"peft_type 'BOFT'; loaded are AMG_LORA, LORA, PROGRESSIVE, SDMOE, TMOE"):
        AutoTracker.from_pretrained(repos / "boft")
    with pytest.raises(ValueError, match="'BOFT'"):
        OSTrackForTracking.from_pretrained(repos / "base").load_adapter(repos / "boft")
    monkeypatch.setattr(adapters, "LOADED_TYPES", adapters.LOADED_TYPES | {"BOFT"})
    with pytest.raises(OSError, match=r"adapter_model\.safetensors is missing"):
        AutoTracker.from_pretrained(repos / "boft")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trust_remote_code": True}, "never runs code from a repository: leave trust_remote_code out"),
        ({"use_kernels": True}, "leave use_kernels out"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, "'kernels-community/flash-attn2' is a kernel"),
    ],
)
def test_code_from_repositories_is_refused(repos: Path, options: dict[str, Any], words: str) -> None:
    for load in (AutoTracker, OSTrackForTracking):
        with pytest.raises(ValueError, match=words):
            load.from_pretrained(repos / "base", **options)
    with pytest.raises(ValueError, match=words):
        AutoTracker.from_pretrained(repos / "adapter", **options)


def test_kernels_named_by_a_file_or_later_are_refused(repos: Path) -> None:
    edit(repos / "base" / "config.json", _attn_implementation="someone/kernel")
    with pytest.raises(ValueError, match="'someone/kernel' is a kernel"):
        AutoTracker.from_pretrained(repos / "base")
    with pytest.raises(ValueError, match="'someone/kernel' is a kernel"):
        tiny_ostrack().set_attn_implementation("someone/kernel")


def test_pickled_weights_are_refused(repos: Path) -> None:
    torch.save(load_file(repos / "base" / "model.safetensors"), repos / "base" / "pytorch_model.bin")
    (repos / "base" / "model.safetensors").unlink()
    for load in (AutoTracker, OSTrackForTracking, OSTrackModel, AutoModel):
        with pytest.raises(OSError, match=r"holds no model\.safetensors\. Weights are read in that") as caught:
            load.from_pretrained(repos / "base")
        assert "weights_only" not in str(caught.value)


@contextmanager
def elsewhere(context: Any) -> Iterator[None]:
    """Another thread is in a context."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with context:
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()


def test_loading_while_another_thread_makes_an_empty_model(repos: Path) -> None:
    """torch's way is a thread's own; accelerate's is the whole process's, and nothing else would say so."""
    known = AutoTracker.from_pretrained(repos / "adapter").state_dict()
    with elsewhere(torch.device("meta")):
        found = AutoTracker.from_pretrained(repos / "adapter").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in known.items())
    base = OSTrackForTracking.from_pretrained(repos / "base")
    before = base.state_dict()
    with elsewhere(init_empty_weights()):
        with pytest.raises(RuntimeError, match=r"weights were left without numbers .*acts on all threads"):
            OSTrackForTracking.from_pretrained(repos / "base")
        with pytest.raises(RuntimeError, match=r"Adapter 'default': \d+ weights were left without numbers"):
            base.add_adapter(LoraConfig(target_modules=["q_proj"]))
    assert not base.has_adapter and all(torch.equal(base.state_dict()[n], t) for n, t in before.items())
    base.add_adapter(LoraConfig(target_modules=["q_proj"]))


def test_an_adapter_of_another_class_is_refused(repos: Path) -> None:
    assert type(SEATrackForTracking.from_pretrained(repos / "adapter")) is SEATrackForTracking
    with pytest.raises(ValueError, match="is an adapter for SEATrackForTracking, not for ODTrackModel"):
        ODTrackModel.from_pretrained(repos / "adapter")
    with pytest.raises(ValueError, match=r"is a mmt_ostrack, not for SEATrackForTracking: .*from_base makes"):
        SEATrackForTracking.from_pretrained(repos / "base")
    edit(repos / "adapter" / "adapter_config.json", base_model_name_or_path=str(repos / "base"))
    with pytest.raises(ValueError, match="AMG_LORA adapter for mmt_seatrack; this tracker is a mmt_ostrack"):
        AutoModel.from_pretrained(repos / "adapter")


# ---------------------------------------------------------------------------------------------- damaged folders


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_record(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "adapter" / "tracker_config.json").read_text())
    edit(folder / "adapter" / "tracker_config.json", config=record["config"] | changes)


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
# what is spoilt in an adapter's folder, or in its base's ("base: ..."); file and field that the error names
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "base is a list": (lambda r: edit(r / "adapter/adapter_config.json", base_model_name_or_path=["../base"]),
                       r"adapter/adapter_config\.json: 'base_model_name_or_path' is a list"),
    "revision is a number": (lambda r: edit(r / "adapter/adapter_config.json", revision=3), "'revision' is a int"),
    "type is a list": (lambda r: edit(r / "adapter/adapter_config.json", peft_type=["LORA"]), "'peft_type' is a list"),
    "rank is a text": (lambda r: edit(r / "adapter/adapter_config.json", r="many"), "adapter_config"),
    "config is a list": (lambda r: edit(r / "adapter/tracker_config.json", config=[1]),
                         r"adapter/tracker_config\.json: 'config' is a list"),
    "fingerprint is a list": (lambda r: edit(r / "adapter/tracker_config.json", base_fingerprint=[1]),
                              "'base_fingerprint' is a list"),
    "fingerprint of texts": (lambda r: edit(r / "adapter/tracker_config.json", base_fingerprint={"a": "b"}),
                             "'base_fingerprint' of 'a' is damaged"),
    "fingerprint of an earlier form": (
        lambda r: edit(r / "adapter/tracker_config.json", base_fingerprint={"a": {"shape": [1], "values": [0.5]}}),
        "of an earlier form"),
    "tracker's type is a list": (lambda r: edit(r / "adapter/tracker_config.json", model_type=["mmt_seatrack"]),
                                 "'model_type' is a list"),
    "a field of another type": (lambda r: edit_record(r, hidden_size="wide"),
                                "'config' is no SEATrackConfig.*hidden_size"),
    "no heads": (lambda r: edit_record(r, num_attention_heads=0), "'config' is no SEATrackConfig.*num_attention_h"),
    "base: type is a list": (lambda r: edit(r / "base/config.json", model_type=["mmt_ostrack"]), "model_type"),
    "base: many layers": (lambda r: edit(r / "base/config.json", num_hidden_layers=20_000), "num_hidden_layers is 2"),
    "huge rank": (lambda r: edit(r / "adapter/adapter_config.json", r=300_000), r"adapter_config\.json: 'r' is 3"),
    "base: no patches": (lambda r: edit(r / "base/config.json", patch_size=0), r"config\.json.*patch_size"),
    "deep JSON": (lambda r: (r / "adapter/tracker_config.json").write_text(DEEP), r"tracker_config\.json is not val"),
    "base: deep JSON": (lambda r: (r / "base/config.json").write_text(DEEP), r"config\.json is not valid JSON"),
    "a folder for a file": (lambda r: ((r / "adapter/preprocessor_config.json").unlink(),
                                       (r / "adapter/preprocessor_config.json").mkdir()),
                            r"preprocessor_config\.json cannot be read"),
    "cut crop settings": (lambda r: (r / "adapter/preprocessor_config.json").write_text('{"crop_st'),
                          r"preprocessor_config\.json is not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_folders_are_named(repos: Path, case: str) -> None:
    spoil, words = DAMAGED[case]
    spoil(repos)
    with pytest.raises((OSError, ValueError), match=words):
        Tracker.from_pretrained(str(repos / ("base" if case.startswith("base: ") else "adapter")))


def test_what_peft_alone_saved_says_what_is_missing(repos: Path) -> None:
    wrapped = get_peft_model(plain_tracker(AMG, repos / "base"), AMG.config())
    wrapped.save_pretrained(repos / "by-peft", save_embedding_layers=False)
    with pytest.raises(ValueError, match=r"has no tracker_config\.json .*streams=1.*save_adapter\(peft_model,"):
        AutoTracker.from_pretrained(repos / "by-peft", base_model=repos / "base")
    model = AutoTracker.from_pretrained(repos / "by-peft", base_model=plain_tracker(AMG, repos / "base"))
    assert torch.equal(maps(model, inputs(model)), maps(wrapped, inputs(model)))
    save_adapter(wrapped, repos / "by-us")
    assert type(AutoTracker.from_pretrained(repos / "by-us")) is SEATrackForTracking


# ---------------------------------------------------------------------------------------------- adapters on a model


def modes(model: torch.nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules() if "amg_lora" not in name}


def test_loading_an_adapter_leaves_the_rest_as_it_was(repos: Path) -> None:
    model = with_adapter(AMG, repos / "base", "mine").train()
    trains, before = {n for n, p in model.named_parameters() if p.requires_grad}, modes(model)
    assert model.load_adapter(repos / "adapter", "theirs") == "thermal"
    assert model.active_adapters() == ["mine"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trains
    assert model.training and modes(model) == before
    model.disable_adapters()
    model.load_adapter(repos / "adapter", "third")
    assert torch.equal(maps(model, inputs(model)), maps(plain_tracker(AMG, repos / "base"), inputs(model)))


@pytest.mark.filterwarnings("error")
def test_a_failed_adapter_leaves_no_trace(repos: Path) -> None:
    model = with_adapter(AMG, repos / "base", "mine")
    plain = plain_tracker(AMG, repos / "base")
    expected = {id(m): (maps(m, inputs(m)), str(m), list(m.state_dict())) for m in (model, plain)}
    change(repos / "adapter" / "adapter_model.safetensors", "k_proj", one_bit)
    for m in (model, plain):
        with pytest.raises(OSError, match="has changed"):
            m.load_adapter(repos / "adapter", "other")
        with pytest.raises(ValueError, match="not found in the base model"):
            m.add_adapter(LoraConfig(target_modules=["nowhere"]), "low-rank")
        found, shape, names = expected[id(m)]
        assert torch.equal(maps(m, inputs(m)), found) and str(m) == shape and list(m.state_dict()) == names
    assert not plain.has_adapter and list(model.peft_config) == ["mine"]


def test_without_its_last_adapter_a_model_is_the_base(repos: Path) -> None:
    model, plain = with_adapter(AMG, repos / "base"), plain_tracker(AMG, repos / "base")
    model.delete_adapter("default")
    assert not model.has_adapter and str(model) == str(plain)
    assert torch.equal(maps(model, inputs(model)), maps(plain, inputs(model)))
    model.save_pretrained(repos / "again")
    assert (repos / "again" / "config.json").is_file()


def test_adapters_of_a_bfloat16_base_start_in_float32(repos: Path) -> None:
    model = SEATrackForTracking.from_base(repos / "base", dtype="bfloat16")
    assert {p.requires_grad: p.dtype for p in model.parameters()} == {True: torch.float32, False: torch.bfloat16}
    assert isinstance(PeftModel.from_pretrained(plain_tracker(AMG, repos / "base"), repos / "adapter"), PeftModel)
