"""Conversion of official checkpoint files, from the file to a folder that tracks."""

import json
import os
from pathlib import Path

import pytest
import torch
from official_names import merged_official, official_ostrack, save_official, seeded_net
from parity_tools import cases, load_case, stated_input
from safetensors.torch import load_file

from mmtrackers import AutoTracker, OSTrackForTracking, TrackerImageProcessor
from mmtrackers.conversion.job import names_of
from mmtrackers.conversion.systems import convert_checkpoint
from mmtrackers.models.seatrack.convert_seatrack import SEATRACK_NAMES
from mmtrackers.processing.files import FolderLock

NEEDED = {"ostrack-small", "seatrack-small"}
pytestmark = pytest.mark.skipif(bool(NEEDED - set(cases(".*"))), reason=f"fixtures {sorted(NEEDED)} are not here")

Net = dict[str, torch.Tensor]
HEADS = {"num_attention_heads": 4}


@pytest.fixture(scope="module")
def ostrack() -> Net:
    return seeded_net(load_case("ostrack-small")[0])


@pytest.fixture(scope="module")
def seatrack() -> Net:
    return seeded_net(load_case("seatrack-small")[0])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("legacy", [False, True])
def test_parity_ostrack_converted(ostrack: Net, tmp_path: Path, legacy: bool) -> None:
    case, tensors = load_case("ostrack-small")
    file = save_official(tmp_path / "OSTrack_ep0300.pth.tar", ostrack, legacy=legacy)
    report = convert_checkpoint(
        "ostrack", file, tmp_path / "out", **HEADS, elimination_layers=case["configuration"]["ce_layers"]
    )
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= set(
        files(tmp_path / "out")
    )
    assert report.differences == {"numbers": 0.0, "forward": 0.0}
    model = AutoTracker.from_pretrained(tmp_path / "out")
    assert type(model) is OSTrackForTracking
    search, template = stated_input(case, "search"), stated_input(case, "template")
    with torch.no_grad():
        output = model(search[:, None], template[:, None, None])
    for name in ("score_map", "size_map", "offset_map"):
        assert (output[name] - tensors[f"output.{name}"]).abs().max() < 1e-4, name


def test_ostrack_report(ostrack: Net, tmp_path: Path) -> None:
    file = save_official(tmp_path / "a.pth.tar", ostrack)
    report = str(convert_checkpoint("ostrack", file, tmp_path / "out", **HEADS))
    for said in (
        "ostrack (search 128, template 64, not a published size)",
        "read 144 tensors",
        "4 layers of width 64",
        "2 unused entries left out",
        "numbers differ from the file's by at most 0",
        f"model: {tmp_path / 'out'}",
    ):
        assert said in report


def test_hostile_file_converts_and_runs_nothing(ostrack: Net, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    file = save_official(tmp_path / "a.pth.tar", ostrack, stats=Payload(), settings=[Payload()])
    convert_checkpoint("ostrack", file, tmp_path / "out", **HEADS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("siamfc", "a", "out"),
            ValueError,
            "unknown system 'siamfc'; files of these can be converted: .*ostrack, .*seatrack",
        ),
        (("ostrack", "a", "out", None, "depth"), ValueError, "modality has no meaning for 'ostrack' files"),
        (("seatrack", "a", "out"), ValueError, "does not say what its second stream was, so say it: thermal, depth"),
        (("ostrack", "a", "."), FileExistsError, "is not an empty folder: choose another one"),
        (("ostrack", "a", "out"), FileNotFoundError, "no file a: give the checkpoint"),
    ],
)
def test_wrong_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, error: type, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    with pytest.raises(error, match=message):
        convert_checkpoint(*arguments)


def test_one_process_writes_a_folder(ostrack: Net, tmp_path: Path) -> None:
    file, out = save_official(tmp_path / "a.pth", ostrack), tmp_path / "out"
    with FolderLock(out), pytest.raises(OSError, match=f"out is being written by process {os.getpid()}"):
        convert_checkpoint("ostrack", file, out, **HEADS)
    assert out.is_dir() and not files(out), "another one's folder is left alone"
    convert_checkpoint("ostrack", file, out, **HEADS)
    assert ".lock" not in files(out) and "model.safetensors" in files(out)


def test_bad_files_leave_nothing_behind(ostrack: Net, seatrack: Net, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = {**ostrack, "backbone.norm.bias": torch.full((64,), torch.nan)}
    short = {name: tensor for name, tensor in ostrack.items() if name != "backbone.norm.bias"}
    for net, message in ((broken, "NaN or infinity in backbone.norm.bias"), (short, "1 missing: model.norm.bias")):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint("ostrack", save_official(tmp_path / "a.pth", net), out, **HEADS)
        assert not out.exists()
    file = save_official(tmp_path / "a.pth", seatrack)
    with pytest.raises(ValueError, match="holds 76 adapter tensors of SEATrack: convert it as 'seatrack'"):
        convert_checkpoint("ostrack", file, out)
    with pytest.raises(ValueError, match="is it a plain OSTrack file"):
        convert_checkpoint("seatrack", save_official(tmp_path / "a.pth", ostrack), out, modality="event")


@pytest.mark.parametrize(("sizes", "variant", "factor"), [((2, 4), "256", 4.0), ((3, 6), "384", 5.0)])
def test_variant_is_told(tmp_path: Path, sizes: tuple[int, int], variant: str, factor: float) -> None:
    net = seeded_net({"state_dict": small_shapes(sizes), "seed": 0})
    report = convert_checkpoint("ostrack", save_official(tmp_path / "a.pth", net), tmp_path / "out")
    assert report.variant == variant
    assert TrackerImageProcessor.from_pretrained(tmp_path / "out").search_factor == factor


def small_shapes(sizes: tuple[int, int]) -> dict[str, dict]:
    """An OSTrack of one narrow layer with patches of 64 pixels."""
    from mmtrackers import OSTrackConfig
    config = OSTrackConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        patch_size=64,
        template_size=64 * sizes[0],
        search_size=64 * sizes[1],
        head_channels=16,
        elimination_layers=[],
    )
    net = official_ostrack(OSTrackForTracking(config).state_dict())
    return {name: {"shape": tuple(tensor.shape)} for name, tensor in net.items()}


def base_part(net: Net) -> Net:
    return {name: tensor for name, tensor in net.items() if not names_of(name, SEATRACK_NAMES)}


def seatrack_file(net: Net, folder: Path, merged: bool) -> Path:
    return save_official(folder / "SEATrack_ep0060.pth.tar", merged_official(net) if merged else net)


def assert_parity(folder: Path) -> None:
    """The loaded folder gives the fixture's maps."""
    case, tensors = load_case("seatrack-small")
    model = AutoTracker.from_pretrained(folder)
    assert type(model).__name__ == "SEATrackForTracking"
    search, template = (stated_input(case, role).unflatten(1, (2, 3)) for role in ("search", "template"))
    with torch.no_grad():
        output = model(search, template[:, None])
    for name in ("score_map", "size_map", "offset_map"):
        assert (output[name] - tensors[name]).abs().max() < 1e-4, name


@pytest.mark.parametrize(("modality", "merged"), [("thermal", True), ("event", False), ("event", True)])
def test_parity_seatrack_converted_without_base(seatrack: Net, tmp_path: Path, modality: str, merged: bool) -> None:
    file, out = seatrack_file(seatrack, tmp_path, merged), tmp_path / "out"
    report = convert_checkpoint("seatrack", file, out, modality=modality, **HEADS)
    expected = {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base",
        "preprocessor_config.json",
        "tracker_config.json",
    }
    assert expected <= set(files(out)) and "config.json" not in files(out)
    assert len(load_file(out / "adapter_model.safetensors")) == 80
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "./base"
    assert report.differences == {"numbers": 0.0, "forward": 0.0}
    assert ("were merged (W + BA)" if merged else "were plain (W)") in str(report)
    assert AutoTracker.from_pretrained(out).config.modality == modality
    assert_parity(out)


@pytest.mark.parametrize("merged", [True, False])
def test_parity_seatrack_converted_on_a_base(seatrack: Net, tmp_path: Path, merged: bool) -> None:
    base, out = tmp_path / "ostrack", tmp_path / "out"
    plain_base = base_part(seatrack)
    convert_checkpoint("ostrack", save_official(tmp_path / "base.pth", plain_base), base, **HEADS)
    report = convert_checkpoint("seatrack", seatrack_file(seatrack, tmp_path, merged), out, base, "depth")
    assert not (out / "base").exists() and set(report.folders) == {"adapter"}
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "../ostrack"
    assert report.differences["numbers"] <= (1e-6 if merged else 0) and report.differences["forward"] == 0
    assert ("were merged" if merged else "were plain") in str(report) and "compared with the given base" in str(report)
    assert_parity(out)


def test_seatrack_on_another_base_is_refused(seatrack: Net, tmp_path: Path) -> None:
    other = base_part(seatrack)
    other["backbone.blocks.0.mlp.fc1.bias"] = other["backbone.blocks.0.mlp.fc1.bias"] + 1
    base, out = tmp_path / "ostrack", tmp_path / "out"
    convert_checkpoint("ostrack", save_official(tmp_path / "base.pth", other), base, **HEADS)
    file = seatrack_file(seatrack, tmp_path, merged=False)
    with pytest.raises(ValueError, match=r"another base .*differ: model.layers.0.mlp.fc1.bias \(by up to 1\)"):
        convert_checkpoint("seatrack", file, out, base, "event")
    assert not out.exists()
    with pytest.raises(ValueError, match="is a file: convert it first, and give the folder"):
        convert_checkpoint("seatrack", file, out, tmp_path / "base.pth", "event")
