"""Names and shapes of official OSTrack checkpoints, turned into this package's.

The official state dict (github.com/botaoye/OSTrack, entry `net` of the file) keeps q, k and v in one matrix, a class
token and a 197-row position table that no forward pass reads, and the head under `box_head.conv{k}_{branch}`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmtrackers.conversion.job import (
    ConversionJob,
    ConversionReport,
    check_result,
    count,
    depth_of,
    rename,
    save_model,
    shape_of,
)

from .configuration_ostrack import OSTrackConfig
from .modeling_ostrack import OSTrackForTracking

UNUSED = ("backbone.cls_token", "backbone.pos_embed")
BRANCHES = {"ctr": "score", "offset": "offset", "size": "size"}
HEAD_WIDTH = 64
PUBLISHED = {(128, 256): "256", (192, 384): "384"}  # template and search size

_FIXED = {
    "backbone.pos_embed_z": "model.embeddings.template_position",
    "backbone.pos_embed_x": "model.embeddings.search_position",
    "backbone.patch_embed.proj.weight": "model.embeddings.patch.weight",
    "backbone.patch_embed.proj.bias": "model.embeddings.patch.bias",
    "backbone.norm.weight": "model.norm.weight",
    "backbone.norm.bias": "model.norm.bias",
}
_IN_BLOCK = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)")
_CONV = re.compile(r"box_head\.conv([1-4])_(ctr|offset|size)\.(?:0\.(weight|bias)|1\.(\w+))")
_LAST = re.compile(r"box_head\.conv5_(ctr|offset|size)\.(weight|bias)")
_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def our_names(official: str) -> tuple[str, ...] | None:
    """The names here of one official OSTrack entry: three for a fused q, k, v (equal parts of the rows, in this
    order), none for an entry that no forward pass reads, and `None` (not a tuple) for a name that OSTrack has not.

    Example:
        >>> our_names("backbone.blocks.0.attn.proj.bias")
        ('model.layers.0.attention.o_proj.bias',)
    """
    if official in UNUSED:
        return ()
    if official in _FIXED:
        return (_FIXED[official],)
    if match := _BLOCK.fullmatch(official):
        block, part, leaf = match.groups()
        return tuple(f"model.layers.{block}.{name}.{leaf}" for name in _IN_BLOCK[part])
    if match := _CONV.fullmatch(official):
        layer, branch, conv, norm = match.groups()
        if norm is not None and norm not in _NORM_ENTRIES:
            return None
        part = f"conv.{conv}" if conv else f"norm.{norm}"
        return (f"head.{BRANCHES[branch]}.{int(layer) - 1}.{part}",)
    if match := _LAST.fullmatch(official):
        return (f"head.{BRANCHES[match[1]]}.4.{match[2]}",)
    return None


@dataclass(frozen=True)
class OfficialForm:
    """What sets one base tracker of the family apart from the others, in its official files.

    Args:
        system (`str`): its name.
        model (`type`): its class here.
        names (`Callable`): as `our_names`.
        unused (`tuple[str]`): entries that no forward pass reads.
        elimination_layers (`dict[int, list[int]]`): number of layers to the layers that drop tokens.
    """

    system: str = "ostrack"
    model: type[OSTrackForTracking] = OSTrackForTracking
    names: Callable[[str], tuple[str, ...] | None] = our_names
    unused: tuple[str, ...] = UNUSED
    elimination_layers: dict[int, list[int]] = field(default_factory=lambda: {12: [3, 6, 9]})


OSTRACK = OfficialForm()


def ostrack_config(tensors: Mapping[str, Tensor], form: OfficialForm = OSTRACK, **overrides: Any) -> OSTrackConfig:
    """The configuration of an OSTrack, read off its tensors' shapes.

    Args:
        tensors: under the names here.
        form: which tracker of the family.
        overrides: fields of `OSTrackConfig` that shapes do not tell: `num_attention_heads` (else heads are 64 wide, as
            in all published files) and the elimination (else layers 3, 6, 9 of 12 at 0.7, none at other depths).

    Raises:
        ValueError: tensors that sizes are read from are missing, or do not make an OSTrack.
    """
    source = f"the {form.model.__name__.removesuffix('ForTracking')} file"
    width, _, _, patch = shape_of(tensors, "model.embeddings.patch.weight", 4, source)
    inner = shape_of(tensors, "model.layers.0.mlp.fc1.weight", 2, source)[0]
    if width % HEAD_WIDTH and "num_attention_heads" not in overrides:
        raise ValueError(
            f"width {width} is no multiple of {HEAD_WIDTH}, the published heads': give num_attention_heads"
        )
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


def convert_ostrack(job: ConversionJob, form: OfficialForm = OSTRACK) -> ConversionReport:
    """An official file of the family to a full model in `job.out`; see `convert_checkpoint`."""
    tensors = rename(job.net, form.names)
    model = save_ostrack(job, job.out, tensors, job.overrides, form)
    config, read = model.config, {name: tensor for name, tensor in job.net.items() if name not in form.unused}
    report = ConversionReport(form.system, variant(config), {"model": job.out})
    report.facts += [
        f"read {count(read)}: {config.num_hidden_layers} layers of width {config.hidden_size}, template "
        f"{config.template_size}, search {config.search_size} pixels; {len(job.net) - len(read)} unused entries left "
        "out",
        _elimination_fact(config),
    ]
    check_result(report, job, model, tensors)
    return report


def _elimination_fact(config: OSTrackConfig) -> str:
    layers = list(config.elimination_layers)
    if not layers:
        return "candidate elimination is off"
    return (
        f"candidate elimination: layers {layers} keep {config.elimination_keep_rate:g}, as in the published 'ce' "
        "files; a file does not tell, so set elimination_layers to [] in config.json for one trained without it"
    )
