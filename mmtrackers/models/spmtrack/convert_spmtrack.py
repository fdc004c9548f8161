"""Official SPMTrack checkpoints (github.com/WenRuiCai/SPMTrack), turned into adapter folders.

Names are LoRAT's, with experts under `tmoe` beside each linear map in place of a low-rank pair. Published files hold
only what was trained: the frozen rest is DINOv2's.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mmtrackers.conversion.job import ConversionJob, ConversionReport, Names, number_of, rename, shape_of
from mmtrackers.models.lorat.convert_lorat import LORAT_NAMES, MAPS, convert_on_dinov2, settled
from mmtrackers.tuners.tmoe.config import TMoEConfig, tmoe_config

from .modeling_spmtrack import SPMTrackForTracking

# of a linear map, compressions and router are parts of one tensor, and so are all up-projections
SPMTRACK_NAMES: Names = LORAT_NAMES | {
    r"track_query": "model.track_token.start",
    r"query_embed": "model.track_token.position",
}
for _official, _ours in MAPS.items():
    _place = rf"blocks\.(\d+)\.{re.escape(_official)}\.tmoe"
    SPMTRACK_NAMES[rf"{_place}\.(?:compress_expert(?:\.\d+)?|expert_route\.weight)"] = (
        rf"model.layers.\1.{_ours}.tmoe_down"
    )
    SPMTRACK_NAMES[rf"{_place}\.(?:routed_experts\.\d+|shared_expert)"] = rf"model.layers.\1.{_ours}.tmoe_up"


def rename_spmtrack(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official SPMTrack state dict, whole or in part, under the names here; ValueError for a name it has not."""

    def place(name: str) -> list[str | int]:
        # expert 10 comes after expert 9; the router after the compressions; the expert without a gate at the end
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    found: dict[str, list[Tensor]] = {}
    for name in sorted(net, key=place):
        for ours, tensor in rename({name: net[name]}, SPMTRACK_NAMES).items():
            found.setdefault(ours, []).append(tensor[None] if ".track_token." in ours else tensor)
    joined = {}
    for name, parts in found.items():
        across = int(name.endswith("tmoe_up"))
        kept = {tuple(part.shape[:across]) + tuple(part.shape[across + 1 :]) for part in parts}
        if len(kept) > 1 or any(part.ndim <= across for part in parts):
            raise ValueError(f"the parts of {name} have shapes that do not fit: {[list(p.shape) for p in parts]}")
        joined[name] = torch.cat(parts, across)
    return joined


def read_adapter_config(net: dict[str, Tensor], file: Path, given: float | None) -> tuple[TMoEConfig, str]:
    """Takes the scale's entries out of an official state dict (which leaves them out where alpha is 1); returns the
    adapter's config and its sizes in words."""
    entries = [name.partition(".attn.proj.tmoe.")[2] for name in net if ".attn.proj.tmoe." in name]
    compressions = [tensor for name, tensor in net.items() if ".tmoe.compress_expert" in name]
    if not entries or not compressions:
        raise ValueError(f"{file} has no experts (names with .tmoe.): is it an SPMTrack file?")
    said = number_of(net.pop("expert_alpha"), "expert_alpha") if "expert_alpha" in net else None
    unsaid = "which the official code leaves out of its files for 1 (give alpha= for another)"
    alpha, origin = settled("alpha", file, said, given, 1.0, unsaid)
    config = tmoe_config(
        r=shape_of({"compression": compressions[0]}, "compression", 2, str(file))[0],
        alpha=alpha,
        num_experts=len({entry for entry in entries if entry.startswith("routed_experts")}),
        use_rsexpert=bool(number_of(net.pop("use_rsexpert", torch.tensor(False)), "use_rsexpert")),
        shared_low_rank_expert="shared_expert" in entries,
        routed_compression=any(entry.startswith("compress_expert.") for entry in entries),
    )
    return config, f"{config.num_experts} experts of rank {config.r}, alpha {alpha:g}, {origin}"


def convert_spmtrack(job: ConversionJob) -> ConversionReport:
    """An official SPMTrack file to an adapter folder; see `mmtrackers.conversion.systems.convert_checkpoint`."""
    net = dict(job.net)
    config, found = read_adapter_config(net, job.file, job.overrides.get("alpha"))
    if "pos_embed" not in net:  # all published trackers have these crops, and no other tensor tells
        job = replace(job, overrides={"search_size": 378} | job.overrides)
    return convert_on_dinov2("spmtrack", SPMTrackForTracking, job, rename_spmtrack(net), config, found)
