"""Official state dicts against ours: names, shapes, counts, and the merged weights of SEATrack's files."""

import pytest
import torch
from official_names import meta_net, seeded_net
from parity_tools import cases, load_case

from mmtrackers.models.ostrack.convert_ostrack import (
    UNUSED,
    ostrack_config,
    ostrack_from_official,
    ostrack_to_official,
    rename_ostrack,
)
from mmtrackers.models.seatrack.convert_seatrack import (
    add_products,
    rename_seatrack_adapter,
    seatrack_settings,
    seatrack_to_official,
    split_official,
    undo_merge,
)

NEEDED = {"ostrack-small", "ostrack-base", "seatrack-small", "seatrack-base"}
pytestmark = pytest.mark.skipif(bool(NEEDED - set(cases(".*"))), reason=f"fixtures {sorted(NEEDED)} are not here")

Net = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def seatrack() -> Net:
    """The small SEATrack, plain k and v rows."""
    return seeded_net(load_case("seatrack-small")[0])


def base_part(net: Net) -> Net:
    return split_official(net)[0]


def test_ostrack_round_trip() -> None:
    net = seeded_net(load_case("ostrack-small")[0])
    config, ours = ostrack_from_official(net, num_attention_heads=4)
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size) == (64, 4, 8)
    assert (config.template_size, config.search_size, config.head_channels) == (64, 128, 32)
    assert torch.equal(
        ours["model.layers.2.attention.k_proj.weight"], net["backbone.blocks.2.attn.qkv.weight"][64:128]
    )
    back = ostrack_to_official(ours)
    assert set(back) == set(net)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in net.items()}
    assert [name for name in net if name not in UNUSED and not torch.equal(net[name], back[name])] == []


def test_real_size_is_recognised() -> None:
    net = meta_net(load_case("ostrack-base")[0])
    config, ours = ostrack_from_official(net)
    assert (len(net), len(ours)) == (242, 288)
    assert (config.search_size, config.num_attention_heads, config.elimination_layers) == (256, 12, [3, 6, 9])
    net["backbone.pos_embed_z"], net["backbone.pos_embed_x"] = torch.empty(1, 144, 768), torch.empty(1, 576, 768)
    assert (ostrack_config(net).template_size, ostrack_config(net).search_size) == (192, 384)


def test_ostrack_errors_name_the_entries() -> None:
    net = meta_net(load_case("ostrack-small")[0])
    del net["backbone.blocks.1.norm2.bias"]
    net["extra.weight"] = torch.empty(1)
    net["box_head.conv5_ctr.bias"] = torch.empty(3)
    with pytest.raises(ValueError) as error:
        ostrack_from_official(net)
    for said in (
        "1 missing: backbone.blocks.1.norm2.bias",
        "1 unexpected: extra.weight",
        "box_head.conv5_ctr.bias [3] (expected [1])",
    ):
        assert said in str(error.value)
    with pytest.raises(ValueError, match=r"not an OSTrack state dict: .*backbone.pos_embed_z, .*missing"):
        ostrack_config({"module.weight": torch.empty(1)})
    narrow = {name: tensor[:32] if name.endswith("proj.weight") else tensor for name, tensor in net.items()}
    with pytest.raises(ValueError, match=r"width 32 is no multiple of 64, .*give num_attention_heads"):
        ostrack_config(narrow)
    with pytest.raises(ValueError, match=r"unexpected entry 'box_head.conv6_ctr.weight'"):
        rename_ostrack({"box_head.conv6_ctr.weight": torch.empty(1)})
    with pytest.raises(ValueError, match=r"model.layers.0.norm1.weight: missing"):
        ostrack_to_official(
            {"model.layers.0.norm1.bias": torch.empty(1)} | dict.fromkeys(ours_of_embeddings(), torch.empty(1))
        )


def ours_of_embeddings() -> list[str]:
    part = "model.embeddings."
    names = [f"{part}{name}" for name in ("template_position", "search_position", "patch.weight", "patch.bias")]
    return [*names, "model.norm.weight", "model.norm.bias"]


def test_seatrack_counts_at_the_real_size() -> None:
    net = meta_net(load_case("seatrack-base")[0])
    base, adapter = split_official(net)
    ours = rename_seatrack_adapter(net)
    assert (len(net), len(base), len(adapter), len(ours)) == (470, 242, 228, 240)
    assert sum(tensor.numel() for tensor in adapter.values()) == 636_324
    assert sum(tensor.numel() for tensor in ours.values()) == 636_324
    assert seatrack_settings(net) == {
        "r": 8,
        "hmoe_rank": 4,
        "hmoe_heads": 2,
        "hmoe_experts_attn": 4,
        "hmoe_experts_ffn": 8,
        "adapter_layers": [1, 3, 5, 7, 9, 11],
    }


def test_seatrack_adapter_round_trip(seatrack: Net) -> None:
    ours = rename_seatrack_adapter(seatrack)
    low_rank = seatrack["backbone.blocks.3.attn.qkv.lora_B"]
    assert torch.equal(ours["model.layers.3.attention.k_proj.amg_lora_B"], low_rank[:64])
    assert torch.equal(ours["model.layers.3.attention.v_proj.amg_lora_B"], low_rank[64:])
    adapter = split_official(seatrack)[1]
    for names in (ours, {f"base_model.model.{name}": tensor for name, tensor in ours.items()}):
        back = seatrack_to_official(names)
        assert set(back) == set(adapter)
        assert all(torch.equal(back[name], adapter[name]) for name in adapter)
    with pytest.raises(ValueError, match=r"no official entry holds model.layers.3.other"):
        seatrack_to_official({**ours, "model.layers.3.other": low_rank})


def test_seatrack_errors_name_the_entries(seatrack: Net) -> None:
    with pytest.raises(ValueError, match="is it a plain OSTrack file"):
        seatrack_settings(base_part(seatrack))
    net = dict(seatrack)
    del net["backbone.blocks.3.ffn_moe.D_temp"]
    with pytest.raises(ValueError, match=r"1 missing: backbone.blocks.3.ffn_moe.D_temp"):
        seatrack_settings(net)
    net = {**seatrack, "backbone.blocks.3.dte2r_scaling": torch.ones(2)}
    with pytest.raises(ValueError, match=r"dte2r_scaling \[2\] \(expected \[1\]\)"):
        seatrack_settings(net)


def test_parity_seatrack_merged_weight(seatrack: Net) -> None:
    _, tensors = load_case("seatrack-small")
    merged = add_products(seatrack, 1)["backbone.blocks.1.attn.qkv.weight"]
    assert (merged - tensors["block1.qkv.weight_merged"]).abs().max() < 1e-6


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("modality", ["thermal", "depth", "event"])
def test_merged_form_is_found_and_undone(seatrack: Net, modality: str, merged: bool, with_base: bool) -> None:
    file = add_products(seatrack, 1) if merged else seatrack
    plain, finding = undo_merge(file, modality, base_part(seatrack) if with_base else None)
    assert finding.merged is merged
    assert finding.reason.startswith("compared" if with_base else "the rows contain")
    published = {"thermal": True, "depth": True, "event": False}[modality]
    assert ("unlike the published" in finding.reason) == (not with_base and merged != published)
    for name, tensor in seatrack.items():
        if name.endswith("qkv.weight"):
            assert torch.equal(plain[name][:64], tensor[:64]), name
            assert (plain[name] - tensor).abs().max() <= (1e-6 if merged else 0), name
        else:
            assert torch.equal(plain[name], tensor), name


def test_rounding_of_many_merges_is_allowed(seatrack: Net) -> None:
    file = add_products(seatrack, 1)
    for _ in range(13):
        file = add_products(add_products(file, -1), 1)
    _, finding = undo_merge(file, "event", base_part(seatrack))
    assert finding.merged is True and 0 < finding.difference <= 1e-6


def test_rule_of_the_published_files_where_numbers_do_not_tell(seatrack: Net) -> None:
    faint = {name: tensor * 0.01 if name.endswith("lora_B") else tensor for name, tensor in seatrack.items()}
    for modality, merged in (("thermal", True), ("depth", True), ("event", False)):
        _, finding = undo_merge(faint, modality)
        assert finding.merged is merged and "the rule of the published files" in finding.reason
    zero = {name: torch.zeros_like(t) if name.endswith("lora_B") else t for name, t in seatrack.items()}
    assert undo_merge(zero, "thermal")[1].merged is None
    assert undo_merge(zero, "thermal", base_part(seatrack))[1].merged is None


def test_another_base_is_refused(seatrack: Net) -> None:
    base = base_part(seatrack)
    other = {**base, "backbone.norm.weight": base["backbone.norm.weight"] + 0.5}
    with pytest.raises(
        ValueError, match=r"another base .*1 of \d+ shared entries differ: backbone.norm.weight \(by up to 0.5\)"
    ):
        undo_merge(seatrack, "thermal", other)
    changed = base["backbone.blocks.1.attn.qkv.weight"].clone()
    changed[-1] += 0.25
    with pytest.raises(ValueError, match=r"neither the given base's \(off by 0.25\)"):
        undo_merge(seatrack, "thermal", {**base, "backbone.blocks.1.attn.qkv.weight": changed})
    with pytest.raises(ValueError, match=r"1 missing: backbone.norm.weight"):
        undo_merge({name: t for name, t in seatrack.items() if name != "backbone.norm.weight"}, "thermal", base)
