"""Official PATrack checkpoints (github.com/ouha1998/Learning-Progressive-Adaptation-for-Multi-Modal-Tracking).

A file is the whole two-stream tracker: OSTrack's 242 entries, and 488 more. In every layer the official model declares
all of MDA, CEA and CEA's norms, though a layer runs either MDA or CEA; these and a few more entries are never read and
are left out here. The file does not say which layers run CEA: layers 3, 6 and 9, as the code has it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmtrackers.conversion.job import (
    ConversionJob,
    ConversionReport,
    Names,
    check_result,
    check_same_base,
    count,
    names_of,
    rename,
    save_adapter,
    shape_of,
    split,
)
from mmtrackers.models.ostrack.convert_ostrack import OSTRACK_NAMES, base_to_stand_on, given_base, variant
from mmtrackers.tuners.progressive.config import ProgressiveConfig

from .modeling_patrack import PATrackForTracking

_IN_LAYER = re.compile(r"backbone\.blocks\.(\d+)\.(\w+)\.")
_MDA = {
    "D_fc1.weight": "down.weight",
    "D_fc1.bias": "down.bias",
    "high_mixer.conv1.weight": "high_expand.weight",
    "high_mixer.proj1.weight": "high_depthwise.weight",
    "high_mixer.proj2.weight": "high_pooled.weight",
    "high_mixer.proj2.bias": "high_pooled.bias",
    "conv_fuse.weight": "mix.weight",
    "proj.weight": "up.weight",
    "proj.bias": "up.bias",
}
_CEA = {"down.weight": "down.weight", "obj_fuse.linearcat.weight": "guide.weight", "up.weight": "up.weight"}
_CEA |= {f"obj_fuse.linear{i}.weight": f"query_value.{i}" for i in range(1, 5)}

# MDA and CEA of a layer have the same names here: only the one that the layer runs is renamed
PATRACK_NAMES: Names = {
    r"norm1\.(?:weight|bias)": (),
    r"adapter_head\.adapter_(down|up)\.(weight|bias)": r"neck.progressive_adapter.\1.\2",
    r"adapter_head\.adapter_mid\.(weight|bias)": r"neck.progressive_adapter.middle.\1",
}
for _site, _mda, _cea, _norm in (
    ("attention_junction", "adap_t", "highfuseadapter1", "norml1"),
    ("mlp_junction", "adap2_t", "highfuseadapter2", "norml2"),
):
    _block, _adapter = r"backbone\.blocks\.(\d+)", rf"model.layers.\1.{_site}.progressive_adapter"
    for _module, _parts in ((_mda, _MDA), (_cea, _CEA)):
        PATRACK_NAMES |= {rf"{_block}\.{_module}\.{re.escape(n)}": f"{_adapter}.{ours}" for n, ours in _parts.items()}
    PATRACK_NAMES[rf"{_block}\.{_cea}\.obj_fuse\.gamma[12]"] = ()  # of a gate that is commented out
    PATRACK_NAMES[rf"{_block}\.{_norm}\.(weight|bias)"] = rf"{_adapter}.norm.\2"


def split_official(net: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An official PATrack state dict as two: OSTrack's entries (and any unknown ones), and PATrack's own."""
    return split(net, PATRACK_NAMES)


def live_entries(own: Mapping[str, Tensor], config: ProgressiveConfig) -> dict[str, Tensor]:
    """Those of PATrack's own entries that the model reads and an adapter holds: in layers with CEA this and its norms,
    where they are trained, in the others MDA."""

    def lives(name: str) -> bool:
        match = _IN_LAYER.match(name)
        if match is None:
            return True
        layer, module = int(match[1]), match[2]
        cea = not module.startswith("adap")
        return config.has_cea(layer) is cea and (config.cea_train_norm or not module.startswith("norml"))

    return {name: tensor for name, tensor in own.items() if names_of(name, PATRACK_NAMES) and lives(name)}


def rename_patrack_adapter(net: Mapping[str, Tensor], config: ProgressiveConfig) -> dict[str, Tensor]:
    """The live adapter tensors of an official PATrack state dict under this package's names; ValueError for parts of a
    tensor that differ in shape."""
    renamed, parts = {}, {}
    for name, tensor in rename(live_entries(split_official(net)[1], config), PATRACK_NAMES).items():
        place, _, part = name.rpartition(".")
        if place.endswith(".query_value"):
            parts.setdefault(place, {})[part] = tensor
        else:
            # linear maps here are 1x1 convolutions there, but for the small ones between MDA's channels
            linear = name.endswith((".down.weight", ".guide.weight", ".up.weight")) and tensor.ndim > 2
            renamed[name] = tensor.flatten(1) if linear else tensor
    for name, found in parts.items():
        shapes = [list(tensor.shape) for tensor in found.values()]
        if len(found) < 4 or any(shape != shapes[0] or len(shape) < 2 for shape in shapes):
            raise ValueError(f"{name} should be four matrices of one shape in an official file, not {shapes}")
        query_rgb, value_rgb, query_x, value_x = (found[part].flatten(1) for part in sorted(found))
        renamed[name] = torch.stack([torch.cat([query_rgb, value_rgb]), torch.cat([query_x, value_x])])
    return renamed


def patrack_settings(net: Mapping[str, Tensor], cea_layers: list[int] | None = None) -> dict[str, Any]:
    """The fields of `ProgressiveConfig` that an official PATrack state dict has (ValueError where adapter tensors
    lack), but for `cea_layers`, which a file does not tell; None for the published 3, 6, 9."""
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
    live = live_entries(own, ProgressiveConfig(**settings, cea_train_norm=True))
    norms = {name: tensor for name, tensor in live.items() if ".norml" in name}
    settings["cea_train_norm"] = any(bool((t != name.endswith("weight")).any()) for name, t in norms.items())
    return settings


def convert_patrack(job: ConversionJob) -> ConversionReport:
    """An official PATrack file to an adapter folder; see `mmtrackers.conversion.systems.convert_checkpoint`."""
    overrides = {"elimination_layers": []} | job.overrides
    adapter_config = ProgressiveConfig(**patrack_settings(job.net, overrides.pop("cea_layers", None)))
    base_net, own = split_official(job.net)
    base_tensors, known = rename(base_net, OSTRACK_NAMES), given_base(job, "PATrack's")
    if known is not None:
        check_same_base(known.state_dict(), base_tensors, str(job.file), tolerance=0.0)
    base, config, folders = base_to_stand_on(job, known, base_tensors, overrides)
    ours = rename_patrack_adapter(own, adapter_config)
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
    live, with_cea = live_entries(own, config), [i for i in range(depth) if config.has_cea(i)]
    norms = "trained, which the adapters' recipe does not do: kept" if config.cea_train_norm else "plain (scale 1)"
    facts = [
        f"read {count(live)} of the adapter (here {len(ours)} tensors), CEA in layers {with_cea}",
        f"left out {len(own) - len(live)} entries that hold nothing or that the model never reads: MDA in these "
        "layers, CEA in the others, the scalars of a gate, a norm",
        f"CEA's norms are {norms}",
    ]
    # their bias starts at zero and moves with the first step
    untrained = [i for i in range(depth) if not own.get(f"backbone.blocks.{i}.adap_t.D_fc1.bias", torch.ones(1)).any()]
    if untrained not in ([], with_cea):
        facts.append(f"check the file: the MDA of layers {untrained} is untrained, expected were those with CEA")
    return facts
