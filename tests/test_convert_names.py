"""Official state dicts against ours: names, shapes, counts, and the merged weights of SEATrack's files."""

from pathlib import Path

import pytest
import torch
from official_names import merged_official, meta_net, official_ostrack, seeded_net
from parity_tools import cases, load_case

from mmtrackers import OSTrackForTracking
from mmtrackers.conversion.job import rename
from mmtrackers.models.lorat.convert_lorat import take_scale
from mmtrackers.models.ostrack.convert_ostrack import OSTRACK_NAMES, ostrack_config
from mmtrackers.models.seatrack.convert_seatrack import (
    SEATRACK_NAMES,
    add_products,
    seatrack_settings,
    split_official,
    undo_merge,
)
from mmtrackers.models.spmtrack.convert_spmtrack import rename_spmtrack

NEEDED = {"ostrack-small", "ostrack-base", "seatrack-small", "seatrack-base"}
pytestmark = pytest.mark.skipif(bool(NEEDED - set(cases(".*"))), reason=f"fixtures {sorted(NEEDED)} are not here")

Net = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def seatrack() -> Net:
    """The small SEATrack, plain k and v rows."""
    return seeded_net(load_case("seatrack-small")[0])


def test_ostrack_names() -> None:
    net = seeded_net(load_case("ostrack-small")[0])
    ours = rename(net, OSTRACK_NAMES)
    config = ostrack_config(ours, num_attention_heads=4)
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size) == (64, 4, 8)
    assert (config.template_size, config.search_size, config.head_channels) == (64, 128, 32)
    assert torch.equal(
        ours["model.layers.2.attention.k_proj.weight"], net["backbone.blocks.2.attn.qkv.weight"][64:128]
    )
    model = OSTrackForTracking(config)
    model.load_state_dict(ours)
    back = official_ostrack(model.state_dict())
    assert set(back) == set(net)
    read = [name for name in net if rename({name: net[name]}, OSTRACK_NAMES)]
    assert len(net) - len(read) == 2 and all(torch.equal(net[name], back[name]) for name in read)


def test_real_size_is_recognised() -> None:
    net = meta_net(load_case("ostrack-base")[0])
    ours = rename(net, OSTRACK_NAMES)
    config = ostrack_config(ours)
    assert (len(net), len(ours)) == (242, 288)
    assert (config.search_size, config.num_attention_heads, config.elimination_layers) == (256, 12, [3, 6, 9])
    for role, cells in (("template", 144), ("search", 576)):
        ours[f"model.embeddings.{role}_position"] = torch.empty(1, cells, 768)
    assert (ostrack_config(ours).template_size, ostrack_config(ours).search_size) == (192, 384)


def test_ostrack_errors_name_the_tensors() -> None:
    ours = rename(meta_net(load_case("ostrack-small")[0]), OSTRACK_NAMES)
    with pytest.raises(ValueError, match=r"the OSTrack file is incomplete: model.embeddings.patch.weight is missing"):
        ostrack_config({})
    with pytest.raises(ValueError, match=r"width 96 is no multiple of 64, .*give num_attention_heads"):
        ostrack_config(ours | {"model.embeddings.patch.weight": torch.empty(96, 3, 8, 8)})
    for name, shape, message in (
        ("model.layers.0.mlp.fc1.weight", (), r"fc1.weight has the shape \[\], expected 2 axes"),
        ("model.embeddings.search_position", (1, 0, 64), r"search_position has the shape \[1, 0, 64\], expected 3"),
        ("model.embeddings.search_position", (1, 5, 64), r"the search's position table has 5 rows, .*no square"),
        ("head.score.0.conv.weight", (4,), r"head.score.0.conv.weight has the shape \[4\], expected 4 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            ostrack_config(ours | {name: torch.empty(shape)}, num_attention_heads=4)
    with pytest.raises(ValueError, match=r"unexpected entry 'box_head.conv6_ctr.weight'"):
        rename({"box_head.conv6_ctr.weight": torch.empty(1)}, OSTRACK_NAMES)


def test_seatrack_counts_at_the_real_size() -> None:
    net = meta_net(load_case("seatrack-base")[0])
    base, adapter = split_official(net)
    assert (len(net), len(base), len(adapter)) == (470, 288, 240)
    assert sum(tensor.numel() for tensor in adapter.values()) == 636_324
    assert seatrack_settings(adapter) == {
        "r": 8,
        "hmoe_rank": 4,
        "hmoe_heads": 2,
        "hmoe_experts_attn": 4,
        "hmoe_experts_ffn": 8,
        "adapter_layers": [1, 3, 5, 7, 9, 11],
    }


def test_seatrack_names(seatrack: Net) -> None:
    _, ours = split_official(seatrack)
    low_rank = seatrack["backbone.blocks.3.attn.qkv.lora_B"]
    assert torch.equal(ours["model.layers.3.attention.k_proj.amg_lora_B"], low_rank[:64])
    assert torch.equal(ours["model.layers.3.attention.v_proj.amg_lora_B"], low_rank[64:])
    with pytest.raises(ValueError, match="is it a plain OSTrack file"):
        seatrack_settings({})
    gate = "model.layers.1.attention_junction.amg_lora_hmoe.gate"
    with pytest.raises(ValueError, match=f"{gate} is missing"):
        seatrack_settings({name: tensor for name, tensor in ours.items() if name != gate})
    with pytest.raises(ValueError, match=f"{gate} has the shape"):
        seatrack_settings({**ours, gate: torch.ones(2)})


def test_parity_seatrack_merged_weight(seatrack: Net) -> None:
    _, tensors = load_case("seatrack-small")
    golden = tensors["block1.qkv.weight_merged"]
    assert (merged_official(seatrack)["backbone.blocks.1.attn.qkv.weight"] - golden).abs().max() < 1e-6
    base, adapter = split_official(seatrack)
    for part, rows in zip("qkv", golden.chunk(3), strict=True):
        found = add_products(base, adapter, 1)[f"model.layers.1.attention.{part}_proj.weight"]
        assert (found - rows).abs().max() < 1e-6


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("modality", ["thermal", "depth", "event"])
def test_merged_form_is_found_and_undone(seatrack: Net, modality: str, merged: bool, with_base: bool) -> None:
    base, adapter = split_official(seatrack)
    file = split_official(merged_official(seatrack))[0] if merged else base
    plain, finding = undo_merge(file, adapter, modality, base if with_base else None)
    assert finding.merged is merged
    assert finding.reason.startswith("compared" if with_base else "the rows contain")
    published = {"thermal": True, "depth": True, "event": False}[modality]
    assert ("unlike the published" in finding.reason) == (not with_base and merged != published)
    for name, tensor in base.items():
        if merged and name.endswith(("k_proj.weight", "v_proj.weight")):
            assert (plain[name] - tensor).abs().max() <= 1e-6, name
        else:
            assert torch.equal(plain[name], tensor), name


def test_rounding_of_many_merges_is_allowed(seatrack: Net) -> None:
    base, adapter = split_official(seatrack)
    file = add_products(base, adapter, 1)
    for _ in range(13):
        file = add_products(add_products(file, adapter, -1), adapter, 1)
    _, finding = undo_merge(file, adapter, "event", base)
    assert finding.merged is True and 0 < finding.difference <= 1e-6


def test_rule_of_the_published_files_where_numbers_do_not_tell(seatrack: Net) -> None:
    base, adapter = split_official(seatrack)
    faint = {name: tensor * 0.01 if name.endswith("lora_B") else tensor for name, tensor in adapter.items()}
    for modality, merged in (("thermal", True), ("depth", True), ("event", False)):
        _, finding = undo_merge(base, faint, modality)
        assert finding.merged is merged and "the rule of the published files" in finding.reason
    zero = {name: torch.zeros_like(t) if name.endswith("lora_B") else t for name, t in adapter.items()}
    assert undo_merge(base, zero, "thermal")[1].merged is None
    assert undo_merge(base, zero, "thermal", base)[1].merged is None


def test_another_base_is_refused(seatrack: Net) -> None:
    base, adapter = split_official(seatrack)
    other = {**base, "model.norm.weight": base["model.norm.weight"] + 0.5}
    with pytest.raises(
        ValueError, match=r"another base .*1 of \d+ shared tensors differ: model.norm.weight \(by up to 0.5\)"
    ):
        undo_merge(base, adapter, "thermal", other)
    changed = base["model.layers.1.attention.k_proj.weight"].clone()
    changed[-1] += 0.25
    with pytest.raises(ValueError, match=r"neither the given base's \(off by 0.25\)"):
        undo_merge(base, adapter, "thermal", {**base, "model.layers.1.attention.k_proj.weight": changed})
    with pytest.raises(ValueError, match=r"1 missing: model.norm.weight"):
        undo_merge({name: t for name, t in base.items() if name != "model.norm.weight"}, adapter, "thermal", base)


@pytest.mark.parametrize(
    ("rename_", "name", "shape", "message"),
    [
        (OSTRACK_NAMES, "backbone.blocks.0.attn.qkv.weight", (), "should hold 3 equal parts"),
        (OSTRACK_NAMES, "backbone.blocks.0.attn.qkv.bias", (0,), "should hold 3 equal parts"),
        (OSTRACK_NAMES, "backbone.blocks.0.attn.qkv.weight", (7, 2), "should hold 3 equal parts"),
        (SEATRACK_NAMES, "backbone.blocks.1.attn.qkv.lora_A", (3, 2), "should hold 2 equal parts"),
    ],
)
def test_shapes_that_cannot_be_shared_out(rename_, name: str, shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rename({name: torch.ones(shape)}, rename_)


def test_shapes_of_experts_and_scales() -> None:
    place = "blocks.0.attn.proj.tmoe."
    parts = {f"{place}compress_expert": torch.ones(2, 4), f"{place}expert_route.weight": torch.ones(4)}
    with pytest.raises(ValueError, match=r"shapes that do not fit: \[\[2, 4\], \[4\]\]"):
        rename_spmtrack(parts)
    with pytest.raises(ValueError, match=r"'lora_alpha' has the shape \[2\], expected one number"):
        take_scale({"lora_alpha": torch.ones(2)}, Path("a.pth"), None)
