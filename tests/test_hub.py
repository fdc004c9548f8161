"""Saving, cards, and a Hub on loopback: push, pull, pinned, offline."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from local_hub import LocalHub
from peft_rows import ROWS, TINY, inputs, maps, plain_tracker, tiny_ostrack, with_adapter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mmtrackers import AutoTracker, OSTrackConfig, OSTrackForTracking, TrackerImageProcessor
from mmtrackers.hub.card import write_results
from mmtrackers.hub.publish import TrainingFacts, check_folder, push, save_adapter, write_card

AMG = next(row for row in ROWS if row.peft_type == "AMG_LORA")
FACTS = TrainingFacts(
    data="LasHeR's training sequences",
    datasets=["org/lasher"],
    samples=60_000,
    steps=1_875,
    minutes=93.4,
    hardware="1 H100",
    recipe={"learning rate": 1e-4, "batch": 32},
    figures=[
        {"dataset": "LasHeR", "split": "test", "metric": "AUC", "value": 0.5551, "dataset_id": "org/lasher"},
        {"dataset": "RGBT234", "metric": "MPR", "value": 0.85, "note": "one run"},
    ],
    limits="It was never shown rain.",
    license="apache-2.0",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    tiny_ostrack().save_pretrained(folder / "base")
    TrackerImageProcessor(search_size=64, template_size=32).save_pretrained(folder / "base")
    save_adapter(with_adapter(AMG, folder / "base"), folder / "adapter", card=FACTS)
    return folder


@pytest.fixture
def copies(folders: Path, tmp_path: Path) -> Path:
    shutil.copytree(folders, tmp_path / "copies")
    return tmp_path / "copies"


# ---------------------------------------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Push and pull in one process, then the server goes, then two more processes that only have the cache."""
    home, folder = tmp_path_factory.mktemp("hf_home"), tmp_path_factory.mktemp("round")
    code = "import hub_rounds, json, pathlib; print(json.dumps(hub_rounds.{}(pathlib.Path({!r}){})))"
    found: dict[str, Any] = {}
    with LocalHub() as hub:
        found["online"] = json.loads(hub.run(code.format("online", str(folder), ""), home).splitlines()[-1])
        found["faults"] = json.loads(hub.run(code.format("faults", str(folder), ""), home).splitlines()[-1])
        found["files"] = {name: hub.files(name) for name in hub.repositories}
        found["url"] = hub.url
    for kind, more, flag in (("offline", "", True), ("local", ", local_files_only=True", False)):
        output = hub.run(code.format("offline", str(folder), more), home, offline=flag)
        found[kind] = json.loads(output.splitlines()[-1])
    found["here"] = str(folder)
    return found


def test_push_and_pull(round_trip: dict[str, Any]) -> None:
    found = round_trip["online"]
    assert found["url"] == f"{round_trip['url']}/org/seatrack-tiny-thermal"
    assert found["class"] == "SEATrackForTracking"
    for what in ("base is the same", "adapter is the same", "pinned is the first", "both pinned"):
        assert found[what] is True, what
    assert "'org/base-that-is-gone' is not on the Hub" in found["refused"]
    assert found["pipeline"] == [True, True, True]
    assert found["orphan with base_model="] is True
    assert found["processor"] == [64, 32]
    assert found["base of the saved again"] == "org/ostrack-tiny"


def test_what_lies_on_the_hub(round_trip: dict[str, Any]) -> None:
    adapter = round_trip["files"]["org/seatrack-tiny-thermal"]
    assert set(adapter) == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "preprocessor_config.json",
        "tracker_config.json",
    }
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == "org/ostrack-tiny"
    card = ModelCard(adapter["README.md"].decode())
    assert (card.data.library_name, card.data.base_model) == ("mmtrackers", "org/ostrack-tiny")
    assert 'Tracker.from_pretrained("org/seatrack-tiny-thermal")' in card.text
    base = round_trip["files"]["org/ostrack-tiny"]
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(base)
    assert "made-up pictures" in base["README.md"].decode()
    for files in round_trip["files"].values():
        for name, content in files.items():
            assert round_trip["here"].encode() not in content, name
            assert str(Path.home()).encode() not in content or str(Path.home()) == "/", name


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("bad revision", ["OSError", "'org/seatrack-tiny-thermal' has no revision 'no-such-tag'"]),
        ("bad base revision", ["OSError", "'org/ostrack-tiny' has no revision 'no-such-tag'"]),
        ("missing repository", ["OSError", "No repository 'org/no-such-model'"]),
        ("missing base", ["OSError", "org/orphan needs its base 'org/base-that-is-gone'", "base_model="]),
    ],
)
def test_errors_of_the_hub_are_named(round_trip: dict[str, Any], what: str, words: list[str]) -> None:
    for word in words:
        assert word in round_trip["online"][what]


def test_crop_settings_are_those_of_the_base_that_was_loaded(round_trip: dict[str, Any]) -> None:
    expected = {
        "from_base": 9.0,
        "from_base in another cache": 9.0,
        "other cache was used": True,
        "the base as it is now": 3.0,
        "recorded revision": 9.0,
        "base revision": 3.0,
        "root": 2.0,
        "subfolder": 5.0,
        "by its class": "SEATrackForTracking",
    }
    assert {name: round_trip["online"][name] for name in expected} == expected


@pytest.mark.parametrize("fault", ["cut", "stall", "html", "500", "401", "403"])
def test_a_hub_that_fails(round_trip: dict[str, Any], fault: str) -> None:
    said = round_trip["faults"]
    assert said[f"{fault} cached"] == "no error"
    message = said[f"{fault} fresh"]
    words = "is gated or private" if fault in ("401", "403") else "Cannot reach 'org/seatrack-tiny-thermal' on the Hub"
    assert message.startswith("OSError: ") and words in message and "\n" not in message


@pytest.mark.parametrize("fault", ["cut", "500"])
def test_a_hub_that_fails_at_the_base(round_trip: dict[str, Any], fault: str) -> None:
    message = round_trip["faults"][f"{fault} of the base"]
    assert "Adapter org/seatrack-tiny-thermal needs its base 'org/ostrack-tiny'" in message
    assert "Cannot reach 'org/ostrack-tiny'" in message and "base_model=" in message
    message = round_trip["faults"][f"{fault} of the base's file"]
    assert "Cannot reach 'org/ostrack-tiny' at revision" in message
    assert "pytorch_model.bin" not in message and "local directory" not in message


@pytest.mark.parametrize("kind", ["offline", "local"])
def test_again_from_the_cache_with_the_server_off(round_trip: dict[str, Any], kind: str) -> None:
    found = round_trip[kind]
    assert found["class"] == "OSTrackForTracking"
    assert found["adapter is the same"] is True
    assert found["pinned is the first"] is True
    assert "OSError: Cannot reach 'org/never-seen'" in found["not cached"]
    assert "needs its base 'org/base-that-is-gone'" in found["base not cached"]
    assert "base_model=" in found["base not cached"]


# ---------------------------------------------------------------------------------------------- saving


def test_saved_files(folders: Path) -> None:
    names = {path.name for path in (folders / "adapter").iterdir()}
    assert names == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "preprocessor_config.json",
        "tracker_config.json",
        "training_facts.json",
    }
    for path in (folders / "adapter").iterdir():
        assert str(folders).encode() not in path.read_bytes(), path.name
    config = json.loads((folders / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["inference_mode"]) == ("../base", True)
    record = json.loads((folders / "adapter" / "tracker_config.json").read_text())
    assert record["model_type"] == "mmt_seatrack"
    assert record["config"]["modality"] == "thermal"
    assert record["base_fingerprint"]


def test_full_model_of_a_plain_save_has_no_local_path(folders: Path, tmp_path: Path) -> None:
    AutoTracker.from_pretrained(folders / "base").save_pretrained(tmp_path / "again")
    assert not [path for path in (tmp_path / "again").iterdir() if str(folders).encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("given", "written"),
    [(None, "../base"), ("org/name", "org/name"), ("../elsewhere/base", "../elsewhere/base"), ("./base", "./base")],
)
def test_name_of_the_base(copies: Path, given: str | None, written: str) -> None:
    save_adapter(with_adapter(AMG, copies / "base"), copies / "out", base_model=given)
    config = json.loads((copies / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == written


def test_bases_without_a_usable_name_are_refused(copies: Path) -> None:
    model = with_adapter(AMG, copies / "base")
    for given, words in ((str(copies / "base"), "absolute local path"), ("~/base", "absolute"), ("a b", "no Hub id")):
        with pytest.raises(ValueError, match=words) as caught:
            save_adapter(model, copies / "out", base_model=given)
        assert 'base_model="org/name"' in str(caught.value)
        assert 'base_model="../folder"' in str(caught.value)
    (copies / "base").rename(copies / "gone")
    with pytest.raises(ValueError, match="a local path that is gone"):
        save_adapter(model, copies / "out")
    fresh = AMG.tracker(AMG.tracker_config())
    fresh.add_adapter(AMG.config())
    with pytest.raises(ValueError, match="made from a config, not loaded"):
        save_adapter(fresh, copies / "out")
    assert not (copies / "out").exists()


def test_what_save_adapter_refuses(copies: Path) -> None:
    with pytest.raises(ValueError, match="has no adapter"):
        save_adapter(plain_tracker(AMG, copies / "base"), copies / "out")
    model = with_adapter(AMG, copies / "base")
    with pytest.raises(ValueError, match=r"already holds a config\.json"):
        save_adapter(model, copies / "base")
    with pytest.raises(ValueError, match="no adapter 'night'"):
        save_adapter(model, copies / "out", adapter_name="night")
    with pytest.raises(TypeError, match="does not know speed"):
        save_adapter(model, copies / "out", speed=3)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"NaN or infinity in .*amg_lora"):
        save_adapter(model, copies / "out")
    assert save_adapter(model, copies / "out", is_main_process=False) is None
    assert not (copies / "out").exists()


def test_shards_are_not_saved_as_if_they_were_whole(copies: Path, tmp_path: Path) -> None:
    model = AutoTracker.from_pretrained(copies / "adapter", is_trainable=True)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"in shards \(FSDP2\).*nothing is saved"):
            model.save_pretrained(tmp_path / "out")
    finally:
        torch.distributed.destroy_process_group()
    assert not (tmp_path / "out").exists()


def test_each_adapter_of_a_model_saves_alone(copies: Path) -> None:
    model = with_adapter(AMG, copies / "base", "day")
    model.load_adapter(str(copies / "adapter"), adapter_name="night")
    model.set_adapter("night")
    night = maps(model, inputs(model))
    model.save_pretrained(copies / "night")
    model.set_adapter("day")
    model.save_pretrained(copies / "night-by-name", adapter_name="night")
    for name in ("night", "night-by-name"):
        loaded = AutoTracker.from_pretrained(copies / name)
        assert list(loaded.peft_config) == ["default"]
        assert torch.equal(maps(loaded, inputs(model)), night)


def test_bfloat16_adapters_are_saved_in_float32(copies: Path) -> None:
    model = AutoTracker.from_pretrained(copies / "adapter", dtype="bfloat16")
    model.save_pretrained(copies / "again")
    names = ("adapter_model.safetensors",)
    assert all((copies / "again" / n).read_bytes() == (copies / "adapter" / n).read_bytes() for n in names)


# ---------------------------------------------------------------------------------------------- cards


def test_card_says_what_a_reader_wants_to_know(folders: Path) -> None:
    card = ModelCard.load(folders / "adapter" / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["datasets"]) == ("apache-2.0", "mmtrackers", ["org/lasher"])
    assert data["tags"] == ["visual-object-tracking", "rgbt", "seatrack", "peft"]
    assert data["pipeline_tag"] == "visual-object-tracking"
    assert "base_model" not in data  # "../base" is no Hub id
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert results == {("LasHeR", "auc"): 0.5551, ("RGBT234", "mpr"): 0.85}
    for words in (
        "RGB + thermal tracker (seatrack) out of a frozen base: `../base`",
        'tracker.start({"rgb": first_rgb, "thermal": first_thermal}',
        "LasHeR's training sequences",
        "60,000 samples, 1,875 steps, 93 minutes, on 1 H100",
        "| learning rate | 0.0001 |",
        "| LasHeR | test | AUC | 0.555 |",
        "| RGBT234 |  | MPR | 0.850 | one run |",
        "It was never shown rain.",
        "| tuner | AMG_LORA (peft) |",
    ):
        assert words in card.text, words
    assert "{{" not in card.text and "nofficial" not in card.text
    assert "\n\n\n" not in card.text
    table = card.text.split("| system |")[1].split("\n\n")[0]
    assert "| license | apache-2.0 |" in table


def test_card_names_a_hub_base_and_invents_nothing(copies: Path) -> None:
    save_adapter(with_adapter(AMG, copies / "base"), copies / "out", base_model="org/ostrack-256")
    card = ModelCard.load(copies / "out" / "README.md")
    assert (card.data.base_model, card.data.to_dict()["base_model_relation"]) == ("org/ostrack-256", "adapter")
    assert "Nothing was recorded about the training data." in card.text
    assert "None were recorded" in card.text
    assert card.data.eval_results is None


def test_facts_stay_and_peoples_text_is_kept(copies: Path) -> None:
    adapter = copies / "adapter"
    write_card(adapter)
    assert "LasHeR's training sequences" in (adapter / "README.md").read_text()
    text = (adapter / "README.md").read_text()
    own = "\n".join(line for line in text.splitlines() if "Generated by mmtrackers" not in line) + "\nMy words.\n"
    (adapter / "README.md").write_text(own)
    save_adapter(with_adapter(AMG, copies / "base"), adapter)
    assert (adapter / "README.md").read_text() == own
    with pytest.raises(ValueError, match='needs a "dataset" and a number'):
        TrainingFacts(figures=[{"dataset": "LasHeR"}])


def test_card_of_peft_is_replaced(copies: Path) -> None:
    (copies / "adapter" / "README.md").write_text("---\nlibrary_name: peft\n---\n# Model Card for Model ID\n")
    save_adapter(with_adapter(AMG, copies / "base"), copies / "adapter")
    assert "library_name: mmtrackers" in (copies / "adapter" / "README.md").read_text()


# ---------------------------------------------------------------------------------------------- what may be pushed


def _set(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _nan(folder: Path) -> None:
    model = OSTrackForTracking(OSTrackConfig(**TINY))
    with torch.no_grad():
        model.head.score[4].bias.fill_(float("inf"))
    model.save_pretrained(folder)


REFUSED = {
    "relative base": (lambda f: None, "adapter", None, ValueError, "which means nothing on the Hub"),
    "absolute base": (
        lambda f: _set(f / "adapter/adapter_config.json", base_model_name_or_path="/data/base"), "adapter", None,
        ValueError, "by the local path '/data/base'",
    ),
    "base given as a path": (lambda f: None, "adapter", "/data/base", ValueError, "by the local path '/data/base'"),
    "base for a full model": (lambda f: None, "base", "org/x", ValueError, "does not apply"),
    "path in a file": (
        lambda f: _set(f / "base/config.json", note="/home/me/data"), "base", None, ValueError,
        "local path '/home/me/data'",
    ),
    "no folder": (lambda f: None, "nowhere", None, OSError, "There is no folder"),
    "nothing in it": (lambda f: (f / "empty").mkdir(), "empty", None, OSError, "nothing to publish"),
    "truncated weights": (
        lambda f: _truncate(f / "adapter/adapter_model.safetensors"), "adapter", "org/x", OSError,
        "corrupt or truncated",
    ),
    "no weights": (lambda f: (f / "base/model.safetensors").unlink(), "base", None, OSError, r"no \*\.safetensors"),
    "no tracker": (
        lambda f: (f / "adapter/tracker_config.json").unlink(), "adapter", "org/x", OSError, "tracker_config.json"
    ),
    "infinite weights": (lambda f: _nan(f / "base"), "base", None, ValueError, "NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_push_refuses(copies: Path, case: str) -> None:
    spoil, name, base, error, words = REFUSED[case]
    spoil(copies)
    with pytest.raises(error, match=words):
        push(copies / name, "org/never", base_model=base)


def test_check_folder_answers_with_the_base(copies: Path) -> None:
    assert check_folder(copies / "base") is None
    assert check_folder(copies / "adapter", base_model="org/base") == "org/base"


def test_results_for_the_hub_and_no_license_unless_somebody_chose_one(tmp_path: Path) -> None:
    (file,) = write_results(tmp_path, FACTS)
    assert file == tmp_path / ".eval_results/lasher.yaml"
    known = {"dataset": {"id": "org/lasher", "task_id": "test_auc"}, "value": 0.5551}
    assert yaml.safe_load(file.read_text()) == [known]
    tiny_ostrack().save_pretrained(tmp_path)
    card = ModelCard.load(write_card(tmp_path, TrainingFacts(data="mine")))
    assert card.data.license is None and card.data.pipeline_tag == "visual-object-tracking"
    assert "pip install mmtrackers" in card.text and "none stated" in card.text
