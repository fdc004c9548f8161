"""Names of official SEATrack checkpoints (github.com/AutoLab-SAI-SJTU/SEATrack), turned into this package's.

An official file is the whole two-stream tracker: OSTrack's 242 entries and, in every second layer, 38 adapter tensors.
Here k and v have low-rank matrices of their own, so the same numbers make 40 tensors a layer.

The official low-rank linear layer adds its product to the fused q, k, v weight in place whenever it goes to evaluation
mode, and the trainer saves in whichever mode it is. So a file's k and v rows hold either W or W + BA, with A and B
beside them in both cases; loading the second kind as the first counts BA twice. `undo_merge` tells the two apart.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from mmtrackers.conversion.job import (
    ConversionJob,
    ConversionReport,
    Names,
    check_result,
    check_same_base,
    count,
    rename,
    save_adapter,
    shape_of,
    split,
)
from mmtrackers.models.ostrack.convert_ostrack import OSTRACK_NAMES, base_to_stand_on, given_base, variant
from mmtrackers.tuners.amg_lora.config import AMGLoraConfig

from .modeling_seatrack import SEATrackForTracking

# what the official recipes leave: a validation pass before the last save (evaluation mode) with thermal and depth only
MERGED_AS_PUBLISHED = {"thermal": True, "depth": True, "event": False}
ROUNDING = 1e-6

SEATRACK_NAMES: Names = {
    r"backbone\.blocks\.(\d+)\.attn\.qkv\.(lora_[AB])": (
        r"model.layers.\1.attention.k_proj.amg_\2",
        r"model.layers.\1.attention.v_proj.amg_\2",
    ),
    r"backbone\.blocks\.(\d+)\.dte2r_scaling": r"model.layers.\1.attention.core.amg_lora_x_to_rgb",
    r"backbone\.blocks\.(\d+)\.r2dte_scaling": r"model.layers.\1.attention.core.amg_lora_rgb_to_x",
}
for _official, _ours in {"attn_moe": "attention_junction", "ffn_moe": "mlp_junction"}.items():
    _place, _mixture = rf"backbone\.blocks\.(\d+)\.{_official}", rf"model.layers.\1.{_ours}.amg_lora_hmoe"
    SEATRACK_NAMES |= {
        rf"{_place}\.gate_thi": f"{_mixture}.gate",
        rf"{_place}\.D_temp": f"{_mixture}.dispatch_temperature",
        rf"{_place}\.C_temp": f"{_mixture}.combine_temperature",
        rf"{_place}\.norm\.(weight|bias)": rf"{_mixture}.norm.\2",
    }
    for _part, _map in {"linear1": "input_proj", "experts": "experts", "linear2": "output_proj"}.items():
        SEATRACK_NAMES[rf"{_place}\.{_part}\.lora_([ab])"] = rf"{_mixture}.{_map}.\2"
        SEATRACK_NAMES[rf"{_place}\.{_part}\.(bias_[ab])"] = rf"{_mixture}.{_map}.\2"


def split_official(net: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An official SEATrack state dict under the names here, as two: the base's tensors, and the adapter's."""
    base, own = split(net, SEATRACK_NAMES)
    return rename(base, OSTRACK_NAMES), rename(own, SEATRACK_NAMES)


def seatrack_settings(adapter: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `AMGLoraConfig` that an adapter's tensors, under the names here, show by their shapes; ValueError
    where there are none, or those that tell sizes are missing."""
    layers = sorted({int(name.split(".")[2]) for name in adapter})
    if not layers:
        raise ValueError(
            "no entry of the file is an adapter tensor of SEATrack (lora_A, dte2r_scaling, attn_moe, ...): is it a "
            "plain OSTrack file? Convert that one as 'ostrack'."
        )
    layer, mixture = f"model.layers.{layers[0]}", "junction.amg_lora_hmoe"
    rank, width = shape_of(adapter, f"{layer}.attention.k_proj.amg_lora_A", 2)
    experts, _, inner = shape_of(adapter, f"{layer}.attention_{mixture}.experts.a", 3)
    return {
        "r": rank,
        "hmoe_rank": inner,
        "hmoe_heads": width // shape_of(adapter, f"{layer}.attention_{mixture}.gate", 2)[0],
        "hmoe_experts_attn": experts,
        "hmoe_experts_ffn": shape_of(adapter, f"{layer}.mlp_{mixture}.experts.a", 3)[0],
        "adapter_layers": layers,
    }


def low_rank_products(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the official layer adds to each weight of k and v: the weight's name and the product, in float64."""
    products = {}
    for name, down in adapter.items():
        if name.endswith(".amg_lora_A"):
            place = name.removesuffix("amg_lora_A")
            products[f"{place}weight"] = adapter[f"{place}amg_lora_B"].double() @ down.double()
    return products


def add_products(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], sign: int) -> dict[str, Tensor]:
    """The base with the low-rank products added to (`sign` 1) or taken from (-1) the weights of k and v."""
    changed = {
        name: (base[name].double() + sign * product).to(base[name].dtype)
        for name, product in low_rank_products(adapter).items()
    }
    return {**base, **changed}


class MergeFinding(NamedTuple):
    """What was found about a file's k and v rows (`merged` None: both readings are the same), and how; `difference` is
    their largest from the given base after undoing."""

    merged: bool | None
    reason: str
    difference: float | None = None


def undo_merge(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], modality: str, known: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], MergeFinding]:
    """The base of a SEATrack file with plain k and v weights, whichever form it came in; tensors under the names here.

    With the known base at hand (ValueError if the file has another) the two forms are told apart by comparing. Without
    it, by how much of the products BA the weights contain: the least-squares factor of BA in them is 1 in a merged
    file and 0 in a plain one, up to the chance overlap of W with BA, of the order of |W| / (|BA| sqrt(number of
    entries)). Where that is not clear-cut, the rule of the published files decides.
    """
    if known is not None:
        return _undo_by_base(base, adapter, known)
    products = low_rank_products(adapter)
    weights = {name: base[name].double() for name in products}
    energy = sum(product.square().sum().item() for product in products.values())
    if energy == 0:
        return dict(base), MergeFinding(None, "the low-rank products are zero, so merged and plain are the same")
    factor = sum((weights[name] * product).sum().item() for name, product in products.items()) / energy
    size = sum(weight.square().sum().item() for weight in weights.values())
    chance = (size / energy / sum(weight.numel() for weight in weights.values())) ** 0.5
    rule = MERGED_AS_PUBLISHED[modality]
    merged, reason = rule, f"the rule of the published files for {modality} (no base given to compare with"
    if chance < 0.1 and min(abs(factor), abs(factor - 1)) < 0.3:
        merged = factor > 0.5
        reason = f"the rows contain {factor:.2f} of the low-rank products (1 merged, 0 plain; no base given"
        if merged != rule:
            reason += f"; unlike the published {modality} file"
    plain = add_products(base, adapter, -1) if merged else dict(base)
    return plain, MergeFinding(merged, f"{reason})")


def _undo_by_base(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], known: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], MergeFinding]:
    adapted = low_rank_products(adapter)
    # the weights of k and v are compared below, in both forms
    shared = {name: tensor if name not in adapted else base.get(name, tensor) for name, tensor in known.items()}
    check_same_base(shared, base, "the file", tolerance=0.0)

    def gap(candidate: Mapping[str, Tensor]) -> float:
        return max(((candidate[name] - known[name]).abs().max().item() for name in adapted), default=0.0)

    plain, unmerged = dict(base), add_products(base, adapter, -1)
    as_plain, as_merged = gap(plain), gap(unmerged)
    if min(as_plain, as_merged) > ROUNDING:
        raise ValueError(
            f"the k and v rows are neither the given base's (off by {as_plain:.3g}) nor the base's with the low-rank "
            f"products added (off by {as_merged:.3g}); at most {ROUNDING:g} is rounding. Give the OSTrack it "
            "started from, or none to keep the file's own."
        )
    if max(as_plain, as_merged) <= ROUNDING:
        return plain, MergeFinding(None, "the low-rank products are too small to tell merged from plain", as_plain)
    if as_merged < as_plain:
        return unmerged, MergeFinding(True, "compared with the given base", as_merged)
    return plain, MergeFinding(False, "compared with the given base", as_plain)


def convert_seatrack(job: ConversionJob) -> ConversionReport:
    """An official SEATrack file to an adapter folder; see `mmtrackers.conversion.systems.convert_checkpoint`."""
    modality = str(job.modality)
    own, adapter = split_official(job.net)
    settings, known = seatrack_settings(adapter), given_base(job, "SEATrack's")
    plain, finding = undo_merge(own, adapter, modality, None if known is None else known.state_dict())
    # the depth tracker started from the OSTrack without elimination
    overrides = ({"elimination_layers": []} if modality == "depth" else {}) | job.overrides
    base, config, folders = base_to_stand_on(job, known, plain, overrides)
    report = ConversionReport("seatrack", f"{modality}, {variant(config)}", folders)
    merged = "merged (W + BA), the products were taken out again"
    how = {None: "taken as they are", True: merged, False: "plain (W), taken as they are"}[finding.merged]
    report.facts += [
        f"read {count(adapter)} of the adapter (k and v apart), in layers {settings['adapter_layers']}",
        f"k and v weights were {how}: {finding.reason}",
    ]
    model = save_adapter(job, base, SEATrackForTracking, AMGLoraConfig(**settings), adapter, {"license": "mit"})
    check_result(report, job, model, plain, adapter, tolerance=ROUNDING if finding.difference else 0.0)
    return report
