"""Names of official SEATrack checkpoints (github.com/AutoLab-SAI-SJTU/SEATrack), turned into this package's and back.

An official file is the whole two-stream tracker: OSTrack's 242 entries and, in every second layer, 38 adapter tensors.
Here k and v have low-rank matrices of their own, so the same numbers make 40 tensors a layer.

The official low-rank linear layer adds its product to the fused q, k, v weight in place whenever it goes to evaluation
mode, and the trainer saves in whichever mode it is. So a file's k and v rows hold either W or W + BA, with A and B
beside them in both cases; loading the second kind as the first counts BA twice. `undo_merge` tells the two apart.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmtrackers.conversion.job import ConversionJob, ConversionReport, check_forward, check_numbers, count, load_base
from mmtrackers.hub.adapters import KEY_PREFIX, adapter_state_dict, base_state_dict, fill_adapter
from mmtrackers.hub.auto import AutoTracker
from mmtrackers.hub.card import TrainingFacts
from mmtrackers.hub.folders import PREPROCESSOR_CONFIG, check_tensors, shorten
from mmtrackers.models.ostrack.convert_ostrack import (
    UNUSED,
    merge_names,
    ostrack_from_official,
    ostrack_to_official,
    rename,
    save_ostrack,
    variant,
)
from mmtrackers.models.ostrack.modeling_ostrack import OSTrackForTracking
from mmtrackers.tuners.amg_lora.config import AMGLoraConfig

from .modeling_seatrack import SEATrackForTracking

# what the official recipes leave: a validation pass before the last save (evaluation mode) with thermal and depth only
MERGED_AS_PUBLISHED = {"thermal": True, "depth": True, "event": False}
ROUNDING = 1e-6

_ADAPTER = re.compile(
    r"backbone\.blocks\.(\d+)\.(?:attn\.qkv\.(lora_[AB])|(dte2r_scaling|r2dte_scaling)|(attn_moe|ffn_moe)\.([\w.]+))"
)
_SCALARS = {"dte2r_scaling": "amg_lora_x_to_rgb", "r2dte_scaling": "amg_lora_rgb_to_x"}
_JUNCTIONS = {"attn_moe": "attention_junction", "ffn_moe": "mlp_junction"}
_LOW_RANK = {"linear1": "input_proj", "experts": "experts", "linear2": "output_proj"}
_IN_MIXTURE = {
    "gate_thi": "gate",
    "D_temp": "dispatch_temperature",
    "C_temp": "combine_temperature",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
} | {
    f"{official}.{leaf}": f"{ours}.{leaf.removeprefix('lora_')}"
    for official, ours in _LOW_RANK.items()
    for leaf in ("lora_a", "lora_b", "bias_a", "bias_b")
}


def our_adapter_names(official: str) -> tuple[str, ...] | None:
    """The names here of one official adapter tensor (two for a low-rank matrix: k, then v, equal parts of the rows),
    without peft's `base_model.model.`; `None` for every other name.

    Example:
        >>> our_adapter_names("backbone.blocks.1.dte2r_scaling")
        ('model.layers.1.attention.core.amg_lora_x_to_rgb',)
    """
    match = _ADAPTER.fullmatch(official)
    if match is None:
        return None
    block, low_rank, scalar, mixture, entry = match.groups()
    layer = f"model.layers.{block}"
    if low_rank:
        return tuple(f"{layer}.attention.{target}_proj.amg_{low_rank}" for target in "kv")
    if scalar:
        return (f"{layer}.attention.core.{_SCALARS[scalar]}",)
    if entry not in _IN_MIXTURE:
        return None
    return (f"{layer}.{_JUNCTIONS[mixture]}.amg_lora_hmoe.{_IN_MIXTURE[entry]}",)


def split_official(net: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An official SEATrack state dict as two: OSTrack's entries (and any unknown ones), and the adapter's."""
    adapter = {name: tensor for name, tensor in net.items() if our_adapter_names(name) is not None}
    return {name: tensor for name, tensor in net.items() if name not in adapter}, adapter


def rename_seatrack_adapter(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter tensors of an official SEATrack state dict under this package's names.

    Args:
        net: tensors by official name; OSTrack's own entries are passed over.

    Returns:
        Tensors by name, without peft's prefix `base_model.model.`; `lora_A` [2r, D] and `lora_B` [2D, r] come as
        `amg_lora_A` [r, D] and `amg_lora_B` [D, r] of `k_proj` and of `v_proj`.

    Example:
        >>> import torch
        >>> list(rename_seatrack_adapter({"backbone.blocks.1.r2dte_scaling": torch.ones(1)}))
        ['model.layers.1.attention.core.amg_lora_rgb_to_x']
    """
    return rename(split_official(net)[1], our_adapter_names)


def _official_shapes(layer: int, width: int, settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one layer's adapter tensors."""
    prefix, r, m, heads = f"backbone.blocks.{layer}", settings["r"], settings["hmoe_rank"], settings["hmoe_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.attn.qkv.lora_A": (2 * r, width),
        f"{prefix}.attn.qkv.lora_B": (2 * width, r),
        f"{prefix}.dte2r_scaling": (1,),
        f"{prefix}.r2dte_scaling": (1,),
    }
    for mixture, experts in (("attn_moe", settings["hmoe_experts_attn"]), ("ffn_moe", settings["hmoe_experts_ffn"])):
        part = width // heads
        entries: dict[str, tuple[int, ...]] = {
            "gate_thi": (part, experts * heads),
            "D_temp": (1,),
            "C_temp": (1,),
            "norm.weight": (width,),
            "norm.bias": (width,),
            "experts.lora_a": (experts, part, m),
            "experts.lora_b": (experts, m, part),
            "experts.bias_a": (experts, m),
            "experts.bias_b": (experts, part),
        }
        for linear in ("linear1", "linear2"):
            entries[f"{linear}.lora_a"], entries[f"{linear}.lora_b"] = (width, m), (m, width)
            entries[f"{linear}.bias_a"], entries[f"{linear}.bias_b"] = (m,), (width,)
        shapes |= {f"{prefix}.{mixture}.{name}": shape for name, shape in entries.items()}
    return shapes


def _layers(names: Mapping[str, Any], pattern: str) -> list[int]:
    return sorted({int(match[1]) for match in map(re.compile(pattern).match, names) if match})


def seatrack_settings(net: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `AMGLoraConfig` that an official SEATrack state dict has, read off its shapes.

    Raises:
        ValueError: there are no adapter tensors, or some are missing or of another shape; they are named.
    """
    adapter = split_official(net)[1]
    layers = _layers(adapter, r"backbone\.blocks\.(\d+)\.")
    if not layers:
        raise ValueError(
            f"none of the {len(net)} entries is an adapter tensor of SEATrack (lora_A, dte2r_scaling, attn_moe, ...): "
            "is it a plain OSTrack file? Convert that one as 'ostrack'."
        )
    first = f"backbone.blocks.{layers[0]}"
    needed = ["attn.qkv.lora_A", "attn_moe.gate_thi", "attn_moe.experts.lora_a", "ffn_moe.experts.lora_a"]
    if missing := [f"{first}.{name}" for name in needed if f"{first}.{name}" not in adapter]:
        raise ValueError(f"the official state dict is incomplete: missing {', '.join(missing)}")
    low_rank, gate, attn, ffn = (adapter[f"{first}.{name}"] for name in needed)
    width = low_rank.shape[1]
    settings = {
        "r": low_rank.shape[0] // 2,
        "hmoe_rank": attn.shape[-1],
        "hmoe_heads": width // gate.shape[0],
        "hmoe_experts_attn": attn.shape[0],
        "hmoe_experts_ffn": ffn.shape[0],
        "adapter_layers": layers,
    }
    expected: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        expected |= _official_shapes(layer, width, settings)
    check_tensors(expected, adapter, "the adapter part of the official state dict")
    return settings


def seatrack_to_official(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapter tensors by the names here (with or without `base_model.model.`) under the official names, k joined to v.

    Raises:
        ValueError: tensors are missing, or have no place there.
    """
    ours = {name.removeprefix("base_model.model."): tensor for name, tensor in adapter.items()}
    settings = {"r": 1, "hmoe_rank": 1, "hmoe_heads": 1, "hmoe_experts_attn": 1, "hmoe_experts_ffn": 1}
    names = [
        name for layer in _layers(ours, r"model\.layers\.(\d+)\.") for name in _official_shapes(layer, 1, settings)
    ]
    return merge_names(ours, names, our_adapter_names)


def low_rank_products(net: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What the official layer adds to each fused weight: its name and, for the k and v rows, `[2D, D]` (float64)."""
    for name in net:
        if name.endswith(".attn.qkv.lora_A"):
            prefix = name.removesuffix("lora_A")
            (a_k, a_v), (b_k, b_v) = net[name].double().chunk(2), net[f"{prefix}lora_B"].double().chunk(2)
            yield f"{prefix}weight", torch.cat([b_k @ a_k, b_v @ a_v])


def add_products(net: Mapping[str, Tensor], sign: int) -> dict[str, Tensor]:
    """The state dict with the low-rank products added to (`sign` 1) or taken from (-1) the k and v rows."""
    changed = dict(net)
    for name, product in low_rank_products(net):
        weight = net[name].clone()
        rows = weight[-product.shape[0] :]
        rows.copy_(rows.double() + sign * product)
        changed[name] = weight
    return changed


class MergeFinding(NamedTuple):
    """What was found about a file's k and v rows, and how.

    `merged` None: the products are zero, both readings are the same. `difference`: largest difference of the k and v
    rows from the given base after undoing (None without a base).
    """

    merged: bool | None
    reason: str
    difference: float | None = None


def undo_merge(
    net: Mapping[str, Tensor], modality: str, base: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], MergeFinding]:
    """An official SEATrack state dict with plain k and v rows, whichever form it came in.

    With the base at hand the two forms are told apart by comparing. Without it, by how much of the products BA the
    rows contain: the least-squares factor of BA in them is 1 in a merged file and 0 in a plain one, up to the chance
    overlap of W with BA, of the order of |W| / (|BA| sqrt(number of entries)). Where that is not clear-cut, the rule
    of the published files decides: thermal and depth merged, event plain.

    Args:
        net: the whole official state dict.
        modality: "thermal", "depth" or "event".
        base: the base's official state dict (`ostrack_to_official`), if known.

    Raises:
        ValueError: the file's base part is not `base`.
    """
    if base is not None:
        return _undo_by_base(net, base)
    products = dict(low_rank_products(net))
    rows = {name: net[name][-len(product) :].double() for name, product in products.items()}
    energy = sum(product.square().sum().item() for product in products.values())
    if energy == 0:
        return dict(net), MergeFinding(None, "the low-rank products are zero, so merged and plain are the same")
    factor = sum((rows[name] * product).sum().item() for name, product in products.items()) / energy
    size = sum(weight.square().sum().item() for weight in rows.values())
    chance = (size / energy / sum(weight.numel() for weight in rows.values())) ** 0.5
    rule = MERGED_AS_PUBLISHED[modality]
    merged, reason = rule, f"the rule of the published files for {modality} (no base given to compare with"
    if chance < 0.1 and min(abs(factor), abs(factor - 1)) < 0.3:
        merged = factor > 0.5
        reason = f"the rows contain {factor:.2f} of the low-rank products (1 merged, 0 plain; no base given"
        if merged != rule:
            reason += f"; unlike the published {modality} file"
    reason += ")"
    return (add_products(net, -1) if merged else dict(net)), MergeFinding(merged, reason)


def _undo_by_base(net: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], MergeFinding]:
    own = {name: tensor for name, tensor in split_official(net)[0].items() if name not in UNUSED}
    theirs = {name: tensor for name, tensor in base.items() if name not in UNUSED}
    check_tensors(theirs, own, "the base part of the official state dict")
    adapted = {name: product.shape[0] for name, product in low_rank_products(net)}
    different = []
    for name, tensor in own.items():
        rows = slice(None, -adapted[name]) if name in adapted else ...
        if not torch.equal(tensor[rows], theirs[name][rows].to(tensor.dtype)):
            gap = (tensor[rows].double() - theirs[name][rows].double()).abs().max().item()
            different.append(f"{name} (by up to {gap:.3g})")
    if different:
        raise ValueError(
            f"the file was trained on another base than the given one: {len(different)} of {len(own)} shared entries "
            f"differ: {shorten(different)}. Give the OSTrack it started from, in float32, or none "
            "to keep the file's own."
        )

    def gap(candidate: Mapping[str, Tensor]) -> float:
        gaps = [(candidate[name] - theirs[name]).abs().max().item() for name in adapted]
        return max(gaps, default=0.0)

    plain, unmerged = dict(net), add_products(net, -1)
    as_plain, as_merged = gap(plain), gap(unmerged)
    if min(as_plain, as_merged) > ROUNDING:
        raise ValueError(
            f"the k and v rows are neither the given base's (off by {as_plain:.3g}) nor the base's with the low-rank "
            f"products added (off by {as_merged:.3g}); at most {ROUNDING:g} is rounding. Give the OSTrack it "
            "started from, or none to keep the file's own."
        )
    if max(as_plain, as_merged) <= ROUNDING:
        return plain, MergeFinding(None, "the low-rank products are too small to tell merged from plain", as_plain)
    merged = as_merged < as_plain
    return (unmerged if merged else plain), MergeFinding(
        merged, "compared with the given base", min(as_plain, as_merged)
    )


def convert_seatrack(job: ConversionJob) -> ConversionReport:
    """An official SEATrack file to an adapter folder; see `mmtrackers.conversion.systems.convert_checkpoint`."""
    net, out, base, modality, overrides = job.net, job.out, job.base, str(job.modality), job.overrides
    settings = seatrack_settings(net)
    base_net, adapter = split_official(net)
    ours = rename_seatrack_adapter(net)
    folders = {"adapter": out}
    if base is None:
        # the depth tracker started from the OSTrack without elimination
        overrides = ({"elimination_layers": []} if modality == "depth" else {}) | dict(overrides)
        ostrack_from_official(base_net, **overrides)
        plain, finding = undo_merge(net, modality)
        base = folders["base"] = out / "base"
        config = save_ostrack(split_official(plain)[0], job.file, base, overrides)
    else:
        known = load_base(base, OSTrackForTracking, "SEATrack's")
        config = known.config
        plain, finding = undo_merge(net, modality, ostrack_to_official(known.state_dict(), unused=False))
    report = ConversionReport("seatrack", f"{modality}, {variant(config)}", folders)
    report.facts += [
        f"read {count(adapter)} of the adapter (here {len(ours)}, as k and v are apart), in layers "
        f"{settings['adapter_layers']}",
        _told_merge(finding.merged, finding.reason),
    ]
    model = SEATrackForTracking.from_base(str(base), modality=modality, adapter_config=AMGLoraConfig(**settings))
    tensors = {f"{KEY_PREFIX}{name}": tensor for name, tensor in ours.items()}
    fill_adapter(model, "default", tensors, str(job.file))
    facts = TrainingFacts(
        data=f"as its authors trained it; converted from the official file `{job.file.name}`", license="mit"
    )
    model.eval().save_pretrained(out, card=facts)
    if not (out / PREPROCESSOR_CONFIG).is_file():
        model.image_processor().save_pretrained(out)
    loaded = AutoTracker.from_pretrained(out, dtype=torch.float32)
    again = ostrack_to_official(base_state_dict(loaded), unused=False)
    again |= seatrack_to_official(adapter_state_dict(loaded, "default"))
    expected = {name: tensor for name, tensor in plain.items() if name not in UNUSED}
    check_numbers(report, expected, again, tolerance=ROUNDING if finding.difference else 0.0)
    check_forward(report, model, loaded)
    return report


def _told_merge(merged: bool | None, reason: str) -> str:
    if merged is None:
        return f"k and v weights taken as they are: {reason}"
    form = "merged (W + BA), the products were taken out again" if merged else "plain (W), taken as they are"
    return f"k and v weights were {form}: {reason}"
