"""Official OSTrack checkpoints (github.com/botaoye/OSTrack, entry `net` of the file), turned into this package's.

They keep q, k and v in one matrix, a class token and a 197-row position table that no forward pass reads, and the head
under `box_head.conv{k}_{branch}`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtrackers.conversion.job import (
    ConversionJob,
    ConversionReport,
    Names,
    check_result,
    count,
    depth_of,
    names_of,
    rename,
    save_model,
    shape_of,
)
from mmtrackers.hub.auto import AutoTracker

from .configuration_ostrack import OSTrackConfig
from .modeling_ostrack import OSTrackForTracking

HEAD_WIDTH = 64
PUBLISHED = {(128, 256): "256", (192, 384): "384"}  # template and search size

OSTRACK_NAMES: Names = {
    r"backbone\.cls_token": (),
    r"backbone\.pos_embed": (),
    r"backbone\.pos_embed_z": "model.embeddings.template_position",
    r"backbone\.pos_embed_x": "model.embeddings.search_position",
    r"backbone\.patch_embed\.proj\.(weight|bias)": r"model.embeddings.patch.\1",
    r"backbone\.norm\.(weight|bias)": r"model.norm.\1",
    r"backbone\.blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.(weight|bias)": r"model.layers.\1.\2.\3",
    r"backbone\.blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"model.layers.\1.attention.o_proj.\2",
    r"backbone\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)": (
        r"model.layers.\1.attention.q_proj.\2",
        r"model.layers.\1.attention.k_proj.\2",
        r"model.layers.\1.attention.v_proj.\2",
    ),
}
for _official, _ours in {"ctr": "score", "offset": "offset", "size": "size"}.items():
    OSTRACK_NAMES[rf"box_head\.conv5_{_official}\.(weight|bias)"] = rf"head.{_ours}.4.\1"
    for _layer in range(4):
        _place, _norm = rf"box_head\.conv{_layer + 1}_{_official}", r"weight|bias|running_mean|running_var"
        OSTRACK_NAMES[rf"{_place}\.0\.(weight|bias)"] = rf"head.{_ours}.{_layer}.conv.\1"
        OSTRACK_NAMES[rf"{_place}\.1\.({_norm}|num_batches_tracked)"] = rf"head.{_ours}.{_layer}.norm.\1"


@dataclass(frozen=True)
class OfficialForm:
    """What sets one base tracker of the family apart in its official files: its name, class and entries' names, and by
    the number of layers those that drop tokens."""

    system: str = "ostrack"
    model: type[OSTrackForTracking] = OSTrackForTracking
    names: Names = field(default_factory=lambda: OSTRACK_NAMES)
    elimination_layers: dict[int, list[int]] = field(default_factory=lambda: {12: [3, 6, 9]})


OSTRACK = OfficialForm()


def ostrack_config(tensors: Mapping[str, Tensor], form: OfficialForm = OSTRACK, **overrides: Any) -> OSTrackConfig:
    """The configuration of an OSTrack, read off its tensors' shapes (ValueError where those are missing or make none).

    `overrides` are fields that shapes do not tell: `num_attention_heads` (else heads are 64 wide, as in all published
    files) and the elimination (else layers 3, 6, 9 of 12 at 0.7, none at other depths).
    """
    source = f"the {form.model.__name__.removesuffix('ForTracking')} file"
    width, _, _, patch = shape_of(tensors, "model.embeddings.patch.weight", 4, source)
    inner = shape_of(tensors, "model.layers.0.mlp.fc1.weight", 2, source)[0]
    if width % HEAD_WIDTH and "num_attention_heads" not in overrides:
        raise ValueError(f"width {width} is no multiple of {HEAD_WIDTH}, the width of heads: give num_attention_heads")
    depth = depth_of(tensors)
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // HEAD_WIDTH,
        "mlp_ratio": inner // width if inner % width == 0 else inner / width,
        "qkv_bias": "model.layers.0.attention.q_proj.bias" in tensors,
        "patch_size": patch,
        "head_channels": shape_of(tensors, "head.score.0.conv.weight", 4, source)[0],
        "elimination_layers": form.elimination_layers.get(depth, []),
    }
    for role in ("template", "search"):
        cells = shape_of(tensors, f"model.embeddings.{role}_position", 3, source)[1]
        if math.isqrt(cells) ** 2 != cells:
            raise ValueError(f"the {role}'s position table has {cells} rows, which is no square grid of tokens")
        sizes[f"{role}_size"] = math.isqrt(cells) * patch
    return form.model.config_class(**(sizes | overrides))


def variant(config: OSTrackConfig) -> str:
    """What people call a size of the family."""
    sizes = config.template_size, config.search_size
    return PUBLISHED.get(sizes, f"search {sizes[1]}, template {sizes[0]}, not a published size")


def save_ostrack(
    job: ConversionJob, folder: Path, tensors: Mapping[str, Tensor], overrides: Mapping[str, Any],
    form: OfficialForm = OSTRACK,
) -> nn.Module:
    """Writes the tensors of a base, under the names here, as a full model; returns it."""
    return save_model(job, folder, form.model, ostrack_config(tensors, form, **overrides), tensors, {"license": "mit"})


def given_base(job: ConversionJob, whose: str) -> OSTrackForTracking | None:
    """The base of an adapter, in float32, where the job names one; ValueError where that is a file, or no OSTrack."""
    if job.base is None:
        return None
    if Path(job.base).is_file():
        raise ValueError(f"the base {job.base} is a file: convert it first, and give the folder")
    model = AutoTracker.from_pretrained(job.base, dtype=torch.float32)
    if not isinstance(model, OSTrackForTracking):
        raise ValueError(f"the base {job.base} is a {type(model).__name__}; {whose} is a OSTrackForTracking")
    return model


def base_to_stand_on(
    job: ConversionJob, known: OSTrackForTracking | None, tensors: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> tuple[str | Path, OSTrackConfig, dict[str, Path]]:
    """Where an adapter's base is, its config, and the folders of the result: the `known` base, else the file's own
    tensors, which are written to `job.out / "base"`."""
    if known is not None:
        return job.base, known.config, {"adapter": job.out}
    folder = job.out / "base"
    return folder, save_ostrack(job, folder, tensors, overrides).config, {"adapter": job.out, "base": folder}


def convert_ostrack(job: ConversionJob, form: OfficialForm = OSTRACK) -> ConversionReport:
    """An official file of the family to a full model in `job.out`; see `convert_checkpoint`."""
    tensors = rename(job.net, form.names)
    model = save_ostrack(job, job.out, tensors, job.overrides, form)
    config, read = model.config, {n: t for n, t in job.net.items() if names_of(n, form.names)}
    dropping = "candidate elimination is off"
    if layers := list(config.elimination_layers):
        dropping = (
            f"candidate elimination: layers {layers} keep {config.elimination_keep_rate:g}, as in the published 'ce' "
            "files; a file does not tell, so set elimination_layers to [] in config.json for one trained without it"
        )
    report = ConversionReport(form.system, variant(config), {"model": job.out})
    report.facts += [
        f"read {count(read)}: {config.num_hidden_layers} layers of width {config.hidden_size}, template "
        f"{config.template_size}, search {config.search_size} pixels; {len(job.net) - len(read)} unused entries left "
        "out",
        dropping,
    ]
    check_result(report, job, model, tensors)
    return report
