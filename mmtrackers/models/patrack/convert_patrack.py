"""Names of official PATrack checkpoints, turned into this package's.

They are those of github.com/ouha1998/Learning-Progressive-Adaptation-for-Multi-Modal-Tracking. An official file is the
whole two-stream tracker: OSTrack's 242 entries, and 488 more. In every layer the official model declares all of MDA,
CEA and CEA's norms, though a layer runs either MDA or CEA; these and a few more entries are never read and are left
out here. The file does not say which layers run CEA: layers 3, 6 and 9, as the code has it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmtrackers.conversion.job import (
    ConversionJob,
    ConversionReport,
    check_result,
    check_same_base,
    count,
    load_base,
    rename,
    save_adapter,
    shape_of,
)
from mmtrackers.hub.folders import check_tensors, shorten
from mmtrackers.models.ostrack.convert_ostrack import our_names, save_ostrack, variant
from mmtrackers.models.ostrack.modeling_ostrack import OSTrackForTracking
from mmtrackers.tuners.progressive.config import ProgressiveConfig

from .modeling_patrack import PATrackForTracking

_ADAPTER = re.compile(
    r"adapter_head\..+|norm1\..+|backbone\.blocks\.\d+\.(?:adap2?_t|highfuseadapter[12]|norml[12])\..+"
)
_MDA = {
    "down.weight": "D_fc1.weight",
    "down.bias": "D_fc1.bias",
    "high_expand.weight": "high_mixer.conv1.weight",
    "high_depthwise.weight": "high_mixer.proj1.weight",
    "high_pooled.weight": "high_mixer.proj2.weight",
    "high_pooled.bias": "high_mixer.proj2.bias",
    "mix.weight": "conv_fuse.weight",
    "up.weight": "proj.weight",
    "up.bias": "proj.bias",
}
_CEA = {"down.weight": "down.weight", "guide.weight": "obj_fuse.linearcat.weight", "up.weight": "up.weight"}
_QUERY_VALUE = [f"obj_fuse.linear{i}.weight" for i in range(1, 5)]
_GAMMAS = [f"obj_fuse.gamma{i}" for i in (1, 2)]
_LEAVES = ("weight", "bias")
_SITES = {
    "attention_junction": ("adap_t", "highfuseadapter1", "norml1"),
    "mlp_junction": ("adap2_t", "highfuseadapter2", "norml2"),
}


def split_official(net: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An official PATrack state dict as two: OSTrack's entries (and any unknown ones), and PATrack's own."""
    own = {name: tensor for name, tensor in net.items() if _ADAPTER.fullmatch(name)}
    return {name: tensor for name, tensor in net.items() if name not in own}, own


def patrack_entries(depth: int, config: ProgressiveConfig) -> dict[str, tuple[str, ...]]:
    """The official entries that each adapter tensor here is made of, without peft's `base_model.model.`.

    Four of them make CEA's `query_value`; every other tensor is one entry.

    Args:
        depth: number of layers.
        config: says which layers have CEA, and whether its norms are trained.

    Example:
        >>> entries = patrack_entries(12, ProgressiveConfig())
        >>> len(entries), entries["model.layers.0.mlp_junction.progressive_adapter.mix.weight"]
        (192, ('backbone.blocks.0.adap2_t.conv_fuse.weight',))
    """
    entries: dict[str, tuple[str, ...]] = {}
    for layer in range(depth):
        block = f"backbone.blocks.{layer}"
        for site, (mda, cea, norm) in _SITES.items():
            ours = f"model.layers.{layer}.{site}.progressive_adapter"
            if not config.has_cea(layer):
                entries |= {f"{ours}.{name}": (f"{block}.{mda}.{official}",) for name, official in _MDA.items()}
                continue
            entries |= {f"{ours}.{name}": (f"{block}.{cea}.{official}",) for name, official in _CEA.items()}
            entries[f"{ours}.query_value"] = tuple(f"{block}.{cea}.{official}" for official in _QUERY_VALUE)
            if config.cea_train_norm:
                entries |= {f"{ours}.norm.{leaf}": (f"{block}.{norm}.{leaf}",) for leaf in _LEAVES}
    for part in ("down", "middle", "up"):
        official = f"adapter_head.adapter_{'mid' if part == 'middle' else part}"
        entries |= {f"neck.progressive_adapter.{part}.{leaf}": (f"{official}.{leaf}",) for leaf in _LEAVES}
    return entries


def dead_entries(depth: int, config: ProgressiveConfig) -> set[str]:
    """Entries that the official model declares and never reads: MDA in layers with CEA, CEA and its norms in the
    others, the scalars of a gate that is commented out, and a layer norm of the tracker."""
    dead = {f"norm1.{leaf}" for leaf in _LEAVES}
    for layer in range(depth):
        for mda, cea, norm in _SITES.values():
            parts = [f"{cea}.{name}" for name in _GAMMAS]
            if config.has_cea(layer):
                parts += [f"{mda}.{name}" for name in _MDA.values()]
            else:
                parts += [f"{cea}.{name}" for name in [*_CEA.values(), *_QUERY_VALUE]]
                parts += [f"{norm}.{leaf}" for leaf in _LEAVES]
            dead |= {f"backbone.blocks.{layer}.{part}" for part in parts}
    return dead


def rename_patrack_adapter(net: Mapping[str, Tensor], depth: int, config: ProgressiveConfig) -> dict[str, Tensor]:
    """The live adapter tensors of an official PATrack state dict under this package's names.

    Raises:
        ValueError: entries are missing; they are named.
    """
    entries = patrack_entries(depth, config)
    if missing := [name for names in entries.values() for name in names if name not in net]:
        raise ValueError(f"the official state dict is incomplete: {len(missing)} missing: {shorten(missing)}")
    renamed = {}
    for ours, names in entries.items():
        tensors = [net[name] for name in names]
        if len(tensors) > 1:
            check_tensors(dict.fromkeys(names, tensors[0]), dict(zip(names, tensors, strict=True)), "CEA")
            query_rgb, value_rgb, query_x, value_x = (tensor.flatten(1) for tensor in tensors)
            renamed[ours] = torch.stack([torch.cat([query_rgb, value_rgb]), torch.cat([query_x, value_x])])
        else:
            # linear maps here are 1x1 convolutions there, but for the small ones between MDA's channels
            linear = ours.endswith((".down.weight", ".guide.weight", ".up.weight"))
            shape_of(net, names[0], max(tensors[0].ndim, 2 if linear else 1), "the official state dict")
            renamed[ours] = tensors[0].flatten(1) if linear else tensors[0]
    return renamed


def patrack_settings(net: Mapping[str, Tensor], cea_layers: list[int] | None = None) -> dict[str, Any]:
    """The fields of `ProgressiveConfig` that an official PATrack state dict has.

    Args:
        net: tensors by official name.
        cea_layers: layers with CEA, which a file does not tell; None for the published 3, 6, 9.

    Raises:
        ValueError: there are no adapter tensors, or those that tell sizes are missing.
    """
    own = split_official(net)[1]
    if not own:
        raise ValueError(
            f"none of the {len(net)} entries is an adapter tensor of PATrack (adap_t, highfuseadapter1, adapter_head, "
            "...): is it a plain OSTrack file? Convert that one as 'ostrack'."
        )
    names = {
        "mda_width": "backbone.blocks.0.adap_t.D_fc1.weight",
        "cea_width": "backbone.blocks.0.highfuseadapter1.down.weight",
        "head_width": "adapter_head.adapter_down.weight",
    }
    settings: dict[str, Any] = {
        field: shape_of(own, name, own[name].ndim if name in own else 2, "the official state dict")[0]
        for field, name in names.items()
    }
    settings["cea_layers"] = cea_layers
    norms = _live_norms(own, ProgressiveConfig(**settings))
    settings["cea_train_norm"] = any(bool((t != name.endswith("weight")).any()) for name, t in norms.items())
    return settings


def _live_norms(own: Mapping[str, Tensor], config: ProgressiveConfig) -> dict[str, Tensor]:
    pattern = re.compile(r"backbone\.blocks\.(\d+)\.norml[12]\.")
    matches = {name: pattern.match(name) for name in own}
    return {name: own[name] for name, match in matches.items() if match and config.has_cea(int(match[1]))}


def convert_patrack(job: ConversionJob) -> ConversionReport:
    """An official PATrack file to an adapter folder; see `mmtrackers.conversion.systems.convert_checkpoint`."""
    overrides = {"elimination_layers": []} | dict(job.overrides)
    adapter_config = ProgressiveConfig(**patrack_settings(job.net, overrides.pop("cea_layers", None)))
    base_net, own = split_official(job.net)
    base_tensors, base, folders = rename(base_net, our_names), job.base, {"adapter": job.out}
    if base is None:
        base = folders["base"] = job.out / "base"
        config = save_ostrack(job, base, base_tensors, overrides).config
    else:
        known = load_base(base, OSTrackForTracking, "PATrack's")
        config = known.config
        check_same_base(known.state_dict(), base_tensors, str(job.file), tolerance=0.0)
    ours = rename_patrack_adapter(own, config.num_hidden_layers, adapter_config)
    report = ConversionReport("patrack", f"{job.modality}, {variant(config)}", folders)
    report.facts += _findings(own, ours, config.num_hidden_layers, adapter_config)
    limits = "The authors' repository states no license for code or weights: ask them before you use or share these."
    facts = {"license": "unknown", "limits": limits}
    model = save_adapter(job, base, PATrackForTracking, adapter_config, ours, facts)
    check_result(report, job, model, base_tensors, ours)
    return report


def _findings(
    own: Mapping[str, Tensor], ours: Mapping[str, Tensor], depth: int, config: ProgressiveConfig
) -> list[str]:
    """What was found in the file, in sentences."""
    live = {name for names in patrack_entries(depth, config).values() for name in names}
    # the norms of CEA layers that are plain normalizations are read by the model, and hold nothing
    norms = set() if config.cea_train_norm else set(_live_norms(own, config))
    dead = dead_entries(depth, config)
    if unknown := sorted(set(own) - live - dead - norms):
        raise ValueError(f"PATrack has no entries of these names: {shorten(unknown)}")
    left_out, missing = sorted(dead & set(own)), sorted(dead - set(own))
    with_cea = [i for i in range(depth) if config.has_cea(i)]
    facts = [
        f"read {count({name: own[name] for name in live})} of the adapter (here {len(ours)} tensors), CEA in layers "
        f"{with_cea}",
        f"left out {len(left_out)} entries that the model never reads: {_summary(left_out)}",
    ]
    if norms:
        facts.append(f"left out {len(norms)} entries of CEA's norms, plain normalizations (scale 1, shift 0)")
    if config.cea_train_norm:
        facts.append("CEA's norms are trained, which the adapters' recipe does not do: kept with the adapter")
    if missing:
        facts.append(f"{len(missing)} entries that the model never reads are not in the file: {_summary(missing)}")
    # their bias starts at zero and moves with the first step
    untrained = [i for i in range(depth) if not own.get(f"backbone.blocks.{i}.adap_t.D_fc1.bias", torch.ones(1)).any()]
    if untrained not in ([], with_cea):
        facts.append(f"check the file: the MDA of layers {untrained} is untrained, expected were those with CEA")
    return facts


def _summary(names: list[str]) -> str:
    """Entries by their part of the model and its layers, such as "adap_t of layers [3, 6, 9], norm1"."""
    layers: dict[str, set[int]] = {}
    for name in names:
        match = re.match(r"backbone\.blocks\.(\d+)\.(\w+)\.(?:obj_fuse\.(gamma\d))?", name)
        part = name.split(".")[0] if match is None else ".".join(filter(None, match.groups()[1:]))
        layers.setdefault(part, set()).update([] if match is None else [int(match[1])])
    return ", ".join(f"{part} of layers {sorted(found)}" if found else part for part, found in layers.items())
