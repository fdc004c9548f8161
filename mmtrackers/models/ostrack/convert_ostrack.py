"""Names and shapes of official OSTrack checkpoints, turned into this package's and back.

The official state dict (github.com/botaoye/OSTrack, entry `net` of the file) keeps q, k and v in one matrix, a class
token and a 197-row position table that no forward pass reads, and the head under `box_head.conv{k}_{branch}`.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrackers.conversion.job import ConversionJob, ConversionReport, check_forward, check_numbers, count
from mmtrackers.hub.auto import AutoTracker
from mmtrackers.hub.card import TrainingFacts, write_card
from mmtrackers.hub.folders import check_tensors

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
        extra (`tuple[str]`): official entries that OSTrack does not have, or does not read.
        unused (`tuple[str]`): entries that no forward pass reads.
        elimination_layers (`dict[int, list[int]]`): number of layers to the layers that drop tokens.
    """

    system: str = "ostrack"
    model: type[OSTrackForTracking] = OSTrackForTracking
    names: Callable[[str], tuple[str, ...] | None] = our_names
    extra: tuple[str, ...] = ()
    unused: tuple[str, ...] = UNUSED
    elimination_layers: dict[int, list[int]] = field(default_factory=lambda: {12: [3, 6, 9]})


OSTRACK = OfficialForm()


def rename(net: Mapping[str, Tensor], names: Callable[[str], tuple[str, ...] | None]) -> dict[str, Tensor]:
    """Every entry under its names here; where there are several, the rows are shared out equally and copied."""
    renamed: dict[str, Tensor] = {}
    for official, tensor in net.items():
        ours = names(official)
        if ours is None:
            raise ValueError(f"unexpected entry {official!r}: the official model has none of that name")
        parts = (tensor,) if len(ours) == 1 else [part.clone() for part in tensor.chunk(len(ours))] if ours else ()
        renamed.update(zip(ours, parts, strict=True))
    return renamed


def rename_ostrack(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official OSTrack state dict under this package's names; the fused q, k, v come apart, unused entries go.

    Args:
        net: tensors by official name (`backbone.*`, `box_head.*`), whole or in part.

    Raises:
        ValueError: an entry has a name that OSTrack does not have.

    Example:
        >>> import torch
        >>> sorted(rename_ostrack({"backbone.blocks.0.attn.qkv.bias": torch.zeros(6)}))[0]
        'model.layers.0.attention.k_proj.bias'
    """
    return rename(net, our_names)


def merge_names(
    ours: Mapping[str, Tensor], official: Iterable[str], names: Callable[[str], tuple[str, ...] | None]
) -> dict[str, Tensor]:
    """The reverse of `rename`: every official entry, its parts' rows joined.

    Raises:
        ValueError: a part is missing, or a tensor of `ours` belongs to no official entry.
    """
    left = dict(ours)
    net = {}
    for entry in official:
        parts = names(entry) or ()
        if missing := [part for part in parts if part not in left]:
            raise ValueError(f"{', '.join(missing)}: missing, so the official entry {entry!r} cannot be made")
        tensors = [left.pop(part) for part in parts]
        net[entry] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    if left:
        raise ValueError(f"no official entry holds {', '.join(sorted(left)[:6])} ({len(left)} tensors)")
    return net


def _official_entries(depth: int) -> Iterator[str]:
    yield from _FIXED
    for block in range(depth):
        for part in _IN_BLOCK:
            yield from (f"backbone.blocks.{block}.{part}.{leaf}" for leaf in ("weight", "bias"))
    for branch in BRANCHES:
        for layer in range(1, 5):
            yield from (f"box_head.conv{layer}_{branch}.0.{leaf}" for leaf in ("weight", "bias"))
            yield from (f"box_head.conv{layer}_{branch}.1.{leaf}" for leaf in _NORM_ENTRIES)
        yield from (f"box_head.conv5_{branch}.{leaf}" for leaf in ("weight", "bias"))


def ostrack_to_official(
    state_dict: Mapping[str, Tensor], unused: bool = True, form: OfficialForm = OSTRACK
) -> dict[str, Tensor]:
    """A state dict of `OSTrackForTracking` under the official names, q, k and v joined.

    Args:
        state_dict: tensors by the names here.
        unused: add the class token and position table that the official class declares and never reads (zeros), so
            that its strict loading accepts the result.
        form: which tracker of the family.

    Raises:
        ValueError: tensors are missing, or have no place there.

    Example:
        >>> config = OSTrackConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_channels=16,
        ...     elimination_layers=[])
        >>> len(ostrack_to_official(OSTrackForTracking(config).state_dict()))
        110
    """
    depth = 1 + max((int(name.split(".")[2]) for name in state_dict if name.startswith("model.layers.")), default=-1)
    net = merge_names(state_dict, (*form.extra, *_official_entries(depth)), form.names)
    if not unused:
        return net
    width, patch = net["backbone.patch_embed.proj.weight"].shape[0], net["backbone.patch_embed.proj.weight"].shape[-1]
    table = net["backbone.pos_embed_z"]
    empty = {
        "backbone.cls_token": table.new_zeros(1, 1, width),
        "backbone.pos_embed": table.new_zeros(1, (224 // patch) ** 2 + 1, width),
    }
    return {name: tensor for name, tensor in empty.items() if name in form.unused} | net


def ostrack_config(net: Mapping[str, Tensor], form: OfficialForm = OSTRACK, **overrides: Any) -> OSTrackConfig:
    """The configuration that an official OSTrack state dict has, read off its shapes.

    Args:
        net: tensors by official name.
        form: which tracker of the family.
        overrides: fields of `OSTrackConfig` that shapes do not tell: `num_attention_heads` (else heads are 64 wide, as
            in all published files) and the elimination (else layers 3, 6, 9 of 12 at 0.7, none at other depths).

    Raises:
        ValueError: entries that sizes are read from are missing, or do not make an OSTrack.

    Example:
        >>> net = ostrack_to_official(OSTrackForTracking(OSTrackConfig(num_hidden_layers=1)).state_dict())
        >>> ostrack_config(net).search_size
        256
    """
    needed = [
        "backbone.patch_embed.proj.weight",
        "backbone.pos_embed_z",
        "backbone.pos_embed_x",
        "backbone.blocks.0.mlp.fc1.weight",
        "box_head.conv1_ctr.0.weight",
    ]
    if missing := [name for name in needed if name not in net]:
        kind = form.model.__name__.removesuffix("ForTracking")
        raise ValueError(
            f"not an {kind} state dict: {', '.join(missing)} missing; there are {len(net)} entries, such as "
            f"{', '.join(list(net)[:3])}. Is it the checkpoint of another tracker?"
        )
    patch, template, search, fc1, conv1 = (net[name] for name in needed)
    width, depth = patch.shape[0], 1 + max(int(match[1]) for match in map(_BLOCK.fullmatch, net) if match)
    if width % HEAD_WIDTH and "num_attention_heads" not in overrides:
        raise ValueError(
            f"width {width} is no multiple of {HEAD_WIDTH}, the published heads': give num_attention_heads"
        )
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // HEAD_WIDTH,
        "mlp_ratio": fc1.shape[0] // width if fc1.shape[0] % width == 0 else fc1.shape[0] / width,
        "qkv_bias": "backbone.blocks.0.attn.qkv.bias" in net,
        "patch_size": patch.shape[-1],
        "template_size": _side(template, "backbone.pos_embed_z") * patch.shape[-1],
        "search_size": _side(search, "backbone.pos_embed_x") * patch.shape[-1],
        "head_channels": conv1.shape[0],
        "elimination_layers": form.elimination_layers.get(depth, []),
    }
    return form.model.config_class(**(sizes | overrides))


def _side(table: Tensor, name: str) -> int:
    side = math.isqrt(table.shape[1])
    if side * side != table.shape[1]:
        raise ValueError(f"{name} has {table.shape[1]} rows, which is no square grid of tokens")
    return side


def ostrack_from_official(
    net: Mapping[str, Tensor], form: OfficialForm = OSTRACK, **overrides: Any
) -> tuple[OSTrackConfig, dict[str, Tensor]]:
    """An official OSTrack state dict as configuration and state dict of `OSTrackForTracking`.

    Args:
        net: tensors by official name, exactly those of an OSTrack with centre head.
        form: which tracker of the family.
        overrides: as in `ostrack_config`.

    Raises:
        ValueError: entries are missing, unexpected or of another shape; they are named.

    Example:
        >>> small = OSTrackConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, head_channels=16)
        >>> net = ostrack_to_official(OSTrackForTracking(small).state_dict())
        >>> config, state_dict = ostrack_from_official(net)
        >>> OSTrackForTracking(config).load_state_dict(state_dict)
        <All keys matched successfully>
    """
    config = ostrack_config(net, form, **overrides)
    with torch.device("meta"):
        expected = ostrack_to_official(form.model(config).state_dict(), unused=False, form=form)
    found = {name: tensor for name, tensor in net.items() if name not in form.unused}
    check_tensors(expected, found, "the official state dict")
    return config, rename(net, form.names)


def variant(config: OSTrackConfig) -> str:
    """What people call a size of the family."""
    sizes = config.template_size, config.search_size
    return PUBLISHED.get(sizes, f"search {sizes[1]}, template {sizes[0]}, not a published size")


def save_ostrack(
    net: Mapping[str, Tensor], source: Path, out: Path, overrides: Mapping[str, Any], form: OfficialForm = OSTRACK
) -> OSTrackConfig:
    """Writes an official state dict as a full model with image processor and card; returns its config."""
    config, state_dict = ostrack_from_official(net, form, **overrides)
    model = form.model(config)
    model.load_state_dict(state_dict)
    model.eval().save_pretrained(out)
    model.image_processor().save_pretrained(out)
    facts = TrainingFacts(
        data=f"as its authors trained it; converted from the official file `{source.name}`", license="mit"
    )
    write_card(out, facts)
    return config


def convert_ostrack(job: ConversionJob, form: OfficialForm = OSTRACK) -> ConversionReport:
    """An official file of the family to a full model in `job.out`; see `convert_checkpoint`."""
    config = save_ostrack(job.net, job.file, job.out, job.overrides, form)
    used = {name: tensor for name, tensor in job.net.items() if name not in form.unused}
    loaded = AutoTracker.from_pretrained(job.out, dtype=torch.float32)
    report = ConversionReport(form.system, variant(config), {"model": job.out})
    report.facts += [
        f"read {count(used)}: {config.num_hidden_layers} layers of width {config.hidden_size}, template "
        f"{config.template_size}, search {config.search_size} pixels; {len(job.net) - len(used)} unused entries left "
        "out",
        _told_elimination(config),
    ]
    check_numbers(report, used, ostrack_to_official(loaded.state_dict(), unused=False, form=form), tolerance=0.0)
    memory = form.model(config)
    memory.load_state_dict(ostrack_from_official(job.net, form, **job.overrides)[1])
    check_forward(report, memory, loaded)
    return report


def _told_elimination(config: OSTrackConfig) -> str:
    layers = list(config.elimination_layers)
    if not layers:
        return "candidate elimination is off"
    return (
        f"candidate elimination: layers {layers} keep {config.elimination_keep_rate:g}, as in the published 'ce' "
        "files; a file does not tell, so set elimination_layers to [] in config.json for one trained without it"
    )
