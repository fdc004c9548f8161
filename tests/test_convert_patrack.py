"""Official PATrack files: names, sizes, dead entries, and the way to a folder that tracks."""

import json
import os
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub, Repository
from official_names import meta_net, save_official, seeded_net
from parity_tools import cases, load_case, stated_input
from safetensors.torch import load_file

from mmtrackers import AutoTracker, ProgressiveConfig
from mmtrackers.conversion.systems import convert_checkpoint
from mmtrackers.models.patrack.convert_patrack import (
    live_entries,
    patrack_settings,
    rename_patrack_adapter,
    split_official,
)

NEEDED = {"patrack-small", "patrack-base"}
pytestmark = pytest.mark.skipif(bool(NEEDED - set(cases(".*"))), reason=f"fixtures {sorted(NEEDED)} are not here")

COMMANDS = """
from typer.testing import CliRunner
from mmtrackers.cli import app
for command in {!r}:
    print(CliRunner().invoke(app, command).output)
"""
Net = dict[str, torch.Tensor]
SMALL = {"num_attention_heads": 4, "cea_layers": [1, 3]}


@pytest.fixture(scope="module")
def patrack() -> Net:
    return seeded_net(load_case("patrack-small")[0])


def untouched_norms(net: Net) -> Net:
    """The file as the adapters' recipe leaves it: CEA's norms at their initial values."""
    values = {"weight": torch.ones_like, "bias": torch.zeros_like}
    return {n: values[n.rsplit(".")[-1]](t) if ".norml" in n else t for n, t in net.items()}


def test_names_and_counts_at_the_real_size() -> None:
    net = meta_net(load_case("patrack-base")[0])
    base, own = split_official(net)
    assert (len(net), len(base), len(own)) == (730, 242, 488)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(t.numel() for name, t in net.items() if not name.endswith(statistics)) == 105_667_413
    config = ProgressiveConfig(cea_train_norm=True)
    live = live_entries(own, config)
    assert len(live) == 222 and sum(tensor.numel() for tensor in live.values()) == 3_732_120
    ours = rename_patrack_adapter(net, config)
    assert (len(ours), sum(t.numel() for t in ours.values())) == (204, 3_732_120)
    ours = rename_patrack_adapter(net, ProgressiveConfig())
    assert (len(ours), sum(t.numel() for t in ours.values())) == (192, 3_722_904)


def test_settings(patrack: Net) -> None:
    sizes = {"mda_width": 8, "cea_width": 24, "head_width": 16}
    assert patrack_settings(patrack, [1, 3]) == sizes | {"cea_layers": [1, 3], "cea_train_norm": True}
    plain = patrack_settings(untouched_norms(patrack))
    assert plain == sizes | {"cea_layers": None, "cea_train_norm": False}


def assert_parity(folder: Path) -> None:
    """The loaded folder gives the fixture's maps."""
    case, golden = load_case("patrack-small")
    model = AutoTracker.from_pretrained(folder)
    assert type(model).__name__ == "PATrackForTracking"
    search, template = (stated_input(case, role).unflatten(1, (2, 3)) for role in ("search", "template"))
    with torch.no_grad():
        output = model(search, template[:, None])
    for name in ("score_map", "size_map", "offset_map"):
        assert (output[name] - golden[f"output.{name}"]).abs().max() < 1e-4, name


@pytest.mark.parametrize("legacy", [False, True])
def test_parity_patrack_converted_without_base(patrack: Net, tmp_path: Path, legacy: bool) -> None:
    file, out = save_official(tmp_path / "PATrack_ep0060.pth.tar", patrack, legacy=legacy), tmp_path / "out"
    report = convert_checkpoint("patrack", file, out, modality="event", **SMALL)
    assert set(report.folders) == {"adapter", "base"}
    assert report.differences == {"numbers": 0.0, "forward": 0.0}
    assert len(load_file(out / "adapter_model.safetensors")) == 4 * 9 + 4 * 6 + 6
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "./base"
    assert AutoTracker.from_pretrained(out).config.modality == "event"
    assert "license: unknown" in (out / "README.md").read_text()
    assert_parity(out)
    text = str(report)
    for said in ("CEA in layers [1, 3]", "CEA's norms are trained", "left out 90 entries"):
        assert said in text, said


def test_a_file_of_the_hub_runs_nothing_and_its_card_claims_no_license(patrack: Net, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    file = save_official(tmp_path / "a.pth.tar", untouched_norms(patrack), settings=Payload())
    names = ("org/official:RGBE/PATrack_ep0060.pth.tar", "org/official:b.pth", "org/nobody:b.pth")
    commands = [["convert", "patrack", name, str(tmp_path / "out"), "--modality", "event"] for name in names]
    with LocalHub() as hub:
        hub.repositories["org/official"] = Repository()
        hub.repositories["org/official"].commit({"RGBE/PATrack_ep0060.pth.tar": file.read_bytes()})
        said = hub.run(COMMANDS.format(commands), tmp_path / "home")
    assert "repository 'org/official' of the Hub has no file b.pth" in said and "No repository 'org/nobody'" in said
    assert "its numbers differ from the file's by at most 0" in said and not (tmp_path / "ran").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown" in card and "official file `PATrack_ep0060.pth.tar`" in card
    assert "The authors' repository states no license for code or weights" in card


def test_parity_patrack_converted_on_a_base(patrack: Net, tmp_path: Path) -> None:
    base, out = tmp_path / "ostrack", tmp_path / "out"
    net = split_official(patrack)[0]
    heads = {"num_attention_heads": 4}
    convert_checkpoint("ostrack", save_official(tmp_path / "base.pth", net), base, **heads)
    file = save_official(tmp_path / "a.pth", patrack)
    report = convert_checkpoint("patrack", file, out, base, "depth", **SMALL)
    assert set(report.folders) == {"adapter"} and not (out / "base").exists()
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "../ostrack"
    assert_parity(out)
    tuned = {**patrack, "backbone.blocks.0.mlp.fc1.bias": patrack["backbone.blocks.0.mlp.fc1.bias"] + 1}
    file = save_official(tmp_path / "tuned.pth", tuned)
    with pytest.raises(ValueError, match=r"1 of \d+ shared .* differ: .*fc1.bias \(by up to 1\).*, or none"):
        convert_checkpoint("patrack", file, tmp_path / "tuned", base, "depth", **SMALL)
    convert_checkpoint("patrack", file, tmp_path / "tuned", None, "depth", **SMALL)
    kept = AutoTracker.from_pretrained(tmp_path / "tuned" / "base").get_parameter("model.layers.0.mlp.fc1.bias")
    assert torch.equal(kept, tuned["backbone.blocks.0.mlp.fc1.bias"])


def test_untouched_norms_and_dead_entries_are_left_out(patrack: Net, tmp_path: Path) -> None:
    net = untouched_norms(patrack)
    for layer in (1, 3):  # as a trained file has it: what never ran keeps its bias of zero
        net[f"backbone.blocks.{layer}.adap_t.D_fc1.bias"] = torch.zeros(8)
    del net["norm1.weight"], net["backbone.blocks.1.highfuseadapter1.obj_fuse.gamma2"]
    file = save_official(tmp_path / "a.pth", net)
    report = str(convert_checkpoint("patrack", file, tmp_path / "out", None, "thermal", **SMALL))
    assert len(load_file(tmp_path / "out" / "adapter_model.safetensors")) == 4 * 9 + 4 * 4 + 6
    assert "left out 96 entries" in report and "CEA's norms are plain" in report
    assert "check the file" not in report
    report = str(convert_checkpoint("patrack", file, tmp_path / "other", None, "thermal", num_attention_heads=4))
    assert "check the file: the MDA of layers [1, 3] is untrained" in report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.pop("backbone.blocks.0.adap_t.proj.bias"), r"1 missing: .*0\.attention_.*up\.bias"),
        (lambda net: net.pop("adapter_head.adapter_down.weight"), "adapter_head.adapter_down.weight is missing"),
        (lambda net: net.update({"adapter_head.gate": torch.ones(1)}), "unexpected entry 'adapter_head.gate'"),
        (lambda net: net.update({"extra": torch.ones(1)}), "unexpected entry 'extra'"),
        (lambda net: net.update({"adapter_head.adapter_up.bias": torch.ones(3)}), r"up.bias \[3\] .*\[64\]"),
        (
            lambda net: net.update({"backbone.blocks.1.highfuseadapter1.obj_fuse.linear2.weight": torch.ones(3, 24)}),
            r"four matrices of one shape .*\[24, 24, 1, 1\], \[3, 24\]",
        ),
        (lambda net: [net.pop(name) for name in split_official(net)[1]], "is it a plain OSTrack file"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing(patrack: Net, tmp_path: Path, change, message: str) -> None:
    net, out = dict(patrack), tmp_path / "out"
    change(net)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint("patrack", save_official(tmp_path / "a.pth", net), out, modality="depth", **SMALL)
    assert not out.exists()


def test_as_an_ostrack_file_it_is_refused(patrack: Net, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unexpected entry"):
        convert_checkpoint(
            "ostrack", save_official(tmp_path / "a.pth", patrack), tmp_path / "out", num_attention_heads=4
        )
