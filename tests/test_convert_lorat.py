"""Official LoRAT files to folders: what was trained, on a DINOv2; whole models, merged or not; scales and sizes."""

from pathlib import Path

import pytest
import torch
from parity_tools import cases, load_case, seeded_tensor
from safetensors.torch import load_file, save_file
from test_parity_lorat import check, config_of, inputs_of
from transformers import Dinov2Config, Dinov2Model
from typer.testing import CliRunner

from mmtrackers import AutoTracker, LoRATConfig, LoRATForTracking, Tracker
from mmtrackers.cli import app
from mmtrackers.conversion.job import rename
from mmtrackers.conversion.systems import convert_checkpoint
from mmtrackers.models.lorat.convert_lorat import LORAT_NAMES, split_trained

CASES = cases(r"lorat-(small|swiglu)")
pytestmark = pytest.mark.skipif(len(CASES) != 2, reason="fixtures lorat-small and lorat-swiglu are not here")
SIZES = {"search_size": 112, "template_size": 56}


@pytest.fixture(params=CASES)
def official(request: pytest.FixtureRequest) -> tuple[dict, dict, dict[str, torch.Tensor]]:
    """A fixture's description and numbers, and its official state dict without scales."""
    return official_of(request.param)


def official_of(name: str) -> tuple[dict, dict, dict[str, torch.Tensor]]:
    case, golden = load_case(name)
    net = {
        name: seeded_tensor(name, entry["shape"], case["seed"])
        for name, entry in case["state_dict"].items()
        if "float" in entry["dtype"] and name not in ("lora_alpha", "use_rslora")
    }
    return case, golden, net


def base_of(case: dict, net: dict[str, torch.Tensor], folder: Path) -> Path:
    """A LoRAT base with the fixture's frozen tensors; head and token types are random."""
    model = LoRATForTracking(config_of(case["config"]))
    model.load_state_dict(split_trained(rename(net, LORAT_NAMES))[1], strict=False)
    model.save_pretrained(folder)
    return folder


def file_of(net: dict[str, torch.Tensor], path: Path, **scales: torch.Tensor) -> Path:
    """As published: safetensors, whatever its name says, with only what was trained."""
    ours = {name: rename({name: tensor}, LORAT_NAMES) for name, tensor in net.items()}
    kept = {name: net[name] for name, renamed in ours.items() if split_trained(renamed)[0]}
    save_file(kept | scales, path)
    return path


def scales(case: dict) -> dict[str, torch.Tensor]:
    c = case["config"]
    return {"lora_alpha": torch.tensor(c["lora_alpha"]), "use_rslora": torch.tensor(c["use_rslora"])}


def test_published_form(official: tuple, tmp_path: Path) -> None:
    case, golden, net = official
    base = base_of(case, net, tmp_path / "base")
    file = file_of(net, tmp_path / "base.bin", **scales(case))
    depth = case["config"]["depth"]
    assert len(load_file(file)) == 12 * depth + 13 + 2
    report = convert_checkpoint("lorat", file, tmp_path / "out", base=base, **SIZES)
    assert report.differences == {"numbers": 0.0, "forward": 0.0}
    assert f"read {12 * depth + 13} tensors" in str(report) and "alpha 8, as the file says" in str(report)
    loaded = AutoTracker.from_pretrained(tmp_path / "out")
    check(loaded, case, golden, inputs_of(case, golden))
    tracker = Tracker.from_pretrained(tmp_path / "out")
    assert (tracker.image_processor.crop_style, tracker.image_processor.search_size) == ("lorat", 112)


def test_whole_unmerged_form_must_stand_on_the_base(tmp_path: Path) -> None:
    case, golden, net = official_of("lorat-small")
    base = base_of(case, net, tmp_path / "base")
    save_file(net | scales(case), tmp_path / "model.safetensors")
    convert_checkpoint("lorat", tmp_path / "model.safetensors", tmp_path / "out", base=base, template_size=56)
    check(AutoTracker.from_pretrained(tmp_path / "out"), case, golden, inputs_of(case, golden))
    net["blocks.1.mlp.fc2.linear.bias"] = net["blocks.1.mlp.fc2.linear.bias"] + 1e-3
    save_file(net | scales(case), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"another base than .*1 of .* differ: model\.layers\.1\.mlp\.fc2\.bias"):
        convert_checkpoint("lorat", tmp_path / "other.safetensors", tmp_path / "no", base=base, template_size=56)
    assert not (tmp_path / "no").exists()


def merged_official(case: dict, net: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The official merged state dict: W + s B A, q, k and v in one matrix."""
    c = case["config"]
    scale = c["lora_alpha"] / (c["lora_r"] ** 0.5 if c["use_rslora"] else c["lora_r"])
    merged = {name: tensor for name, tensor in net.items() if ".lora." not in name and ".linear." not in name}
    for name in net:
        if name.endswith(".linear.weight"):
            place = name.removesuffix(".linear.weight")
            product = net[f"{place}.lora.B"] @ net[f"{place}.lora.A"]
            merged[f"{place}.weight"] = net[name] + scale * product
            merged[f"{place}.bias"] = net[f"{place}.linear.bias"]
    for block in range(c["depth"]):
        for leaf in ("weight", "bias"):
            parts = [merged.pop(f"blocks.{block}.attn.qkv.{part}.{leaf}") for part in "qkv"]
            merged[f"blocks.{block}.attn.qkv.{leaf}"] = torch.cat(parts)
    return merged


@pytest.mark.parametrize("name", cases(r"lorat-(merged|swiglu-merged)"))
def test_parity_lorat_merged_form(name: str, tmp_path: Path) -> None:
    """The merged file becomes a full model, and the official merged weights are those of our merging."""
    case, golden = load_case(name)
    source, _, net = official_of("lorat-swiglu" if "swiglu" in name else "lorat-small")
    merged = merged_official(source, net)
    for key in golden:
        if key.startswith("weight."):
            torch.testing.assert_close(merged[key.removeprefix("weight.")], golden[key], atol=1e-6, rtol=0)
    save_file(merged, tmp_path / "merged.safetensors")
    heads = {"num_attention_heads": source["config"]["num_heads"]}
    report = convert_checkpoint(
        "lorat", tmp_path / "merged.safetensors", tmp_path / "out", template_size=56, **heads
    )
    assert report.folders == {"model": tmp_path / "out"} and report.differences["numbers"] == 0.0
    loaded = AutoTracker.from_pretrained(tmp_path / "out")
    assert type(loaded) is LoRATForTracking and not loaded.has_adapter
    check(loaded, case, golden, inputs_of(case, golden))


def test_scales(tmp_path: Path) -> None:
    case, golden, net = official_of("lorat-small")
    base = base_of(case, net, tmp_path / "base")
    bare = file_of(net, tmp_path / "bare.bin")
    report = convert_checkpoint("lorat", bare, tmp_path / "one", base=base, **SIZES)
    assert "which makes the factor 1, as the file has none" in str(report)
    assert AutoTracker.from_pretrained(tmp_path / "one").peft_config["default"].lora_alpha == 4
    report = convert_checkpoint("lorat", bare, tmp_path / "two", base=base, lora_alpha=8, **SIZES)
    check(AutoTracker.from_pretrained(tmp_path / "two"), case, golden, inputs_of(case, golden))
    pairs = [name.removesuffix("A") for name in net if name.endswith(".lora.A")]
    each = {f"{place}alpha": torch.tensor(8) for place in pairs}
    convert_checkpoint("lorat", file_of(net, tmp_path / "each.bin", **each), tmp_path / "three", base=base, **SIZES)
    check(AutoTracker.from_pretrained(tmp_path / "three"), case, golden, inputs_of(case, golden))
    each[f"{pairs[0]}alpha"] = torch.tensor(4)
    for scale, given, message in (
        (each, {}, r"several scales: alpha \[4\.0, 8\.0\]"),
        (scales(case), {"lora_alpha": 4}, "lora_alpha is 4, but .* says 8"),
    ):
        with pytest.raises(ValueError, match=message):
            file = file_of(net, tmp_path / "wrong.bin", **scale)
            convert_checkpoint("lorat", file, tmp_path / "no", base=base, **given, **SIZES)


def test_what_a_file_does_not_tell_is_asked_for(tmp_path: Path) -> None:
    case, _, net = official_of("lorat-small")
    base, file = base_of(case, net, tmp_path / "base"), file_of(net, tmp_path / "base.bin", **scales(case))
    wide = Dinov2Config(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=56)
    Dinov2Model(wide).save_pretrained(tmp_path / "wide")
    net_without = {name: tensor for name, tensor in net.items() if name != "blocks.0.mlp.fc1.lora.B"}
    foreign = {"blocks.0.attn.proj.tmoe.compress_expert": torch.zeros(4, 48)}
    for source, options, message in (
        (file, {"base": base}, "does not tell whether its crops have 224 or 378 pixels"),
        (file, SIZES, "what was trained only: give the DINOv2"),
        (file, {"base": base, "search_size": 112}, "say the template's side too"),
        (file, {"base": tmp_path / "wide"} | SIZES, "width 48 and 3 layers; .* has 64 and 3"),
        (file_of(net_without, tmp_path / "half.bin"), {"base": base} | SIZES, "1 missing: .*fc1.lora_B"),
        (file_of(net, tmp_path / "moe.bin", **foreign), {"base": base} | SIZES, "convert it as 'spmtrack'"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint("lorat", source, tmp_path / "no", **options)
        assert not (tmp_path / "no").exists()


def test_on_a_plain_dinov2(tmp_path: Path) -> None:
    """The published way: the base is DINOv2 as transformers writes it, and only its trunk is taken."""
    torch.manual_seed(0)
    config = LoRATConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1)
    dinov2 = Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, patch_size=14, image_size=518)
    Dinov2Model(dinov2).save_pretrained(tmp_path / "dinov2")
    net = {"token_type_embed": torch.randn(3, 64)}
    for branch, outputs in (("cls", 1), ("reg", 4)):
        for layer, out in enumerate((64, 64, outputs)):
            net[f"head.{branch}_mlp.layers.{layer}.weight"] = torch.randn(out, 64) / 8
            net[f"head.{branch}_mlp.layers.{layer}.bias"] = torch.randn(out)
    maps = [f"attn.qkv.{part}" for part in "qkv"] + ["attn.proj", "mlp.fc1", "mlp.fc2"]
    for block in range(2):
        for place in maps:
            inner, outer = (256 if place == "mlp.fc2" else 64), (256 if place == "mlp.fc1" else 64)
            net[f"blocks.{block}.{place}.lora.A"] = torch.randn(4, inner) / 8
            net[f"blocks.{block}.{place}.lora.B"] = torch.randn(outer, 4) / 8
    save_file(net, tmp_path / "base.bin")
    convert_checkpoint("lorat", tmp_path / "base.bin", tmp_path / "out", base=tmp_path / "dinov2", search_size=378)
    loaded = AutoTracker.from_pretrained(tmp_path / "out")
    assert (loaded.config.template_size, loaded.config.search_grid) == (196, 27)
    assert loaded.config.num_attention_heads == config.num_attention_heads
    assert Tracker.from_pretrained(tmp_path / "out").image_processor.search_factor == 5.0


def test_from_the_command_line(tmp_path: Path) -> None:
    case, _, net = official_of("lorat-small")
    case["config"]["template_size"], case["config"]["search_region_size"] = [196, 196], [378, 378]
    net["pos_embed"] = seeded_tensor("pos_embed", (1, 729, 48), case["seed"])
    base, file = base_of(case, net, tmp_path / "base"), file_of(net, tmp_path / "base.bin", **scales(case))
    arguments = ["convert", "lorat", str(file), str(tmp_path / "out"), "--base", str(base)]
    asked = CliRunner().invoke(app, arguments)
    assert asked.exit_code == 2 and "--search-size 224" in " ".join(asked.output.split())
    done = CliRunner().invoke(app, [*arguments, "--search-size", "378"])
    assert done.exit_code == 0, done.output
    assert "lorat (width 48, 378)" in done.output and "alpha 8, as the file says" in done.output
    assert AutoTracker.from_pretrained(tmp_path / "out").config.template_grid == 14
