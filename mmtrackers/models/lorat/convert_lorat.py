"""Official LoRAT checkpoints, turned into folders of this package.

The official training model (github.com/LitingLin/LoRAT) keeps q, k and v apart, each linear map under `linear` and its
low-rank pair under `lora`; the merged model has neither level, and q, k and v in one matrix, as Meta's DINOv2 files.
Published files hold only what was trained: the frozen rest is DINOv2's.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from mmtrackers.conversion.job import (
    ConversionJob,
    ConversionReport,
    Names,
    check_result,
    check_same_base,
    count,
    depth_of,
    number_of,
    rename,
    save_adapter,
    save_model,
    shape_of,
)
from mmtrackers.hub.adapters import PeftConfig, base_state_dict
from mmtrackers.tuners.lora import lora_config

from .configuration_lorat import SIZES, TEMPLATE_SIZES, LoRATConfig
from .modeling_lorat import LoRATForTracking

MAPS = {
    "attn.qkv.q": "attention.q_proj",
    "attn.qkv.k": "attention.k_proj",
    "attn.qkv.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
} | {f"mlp.{name}": f"mlp.{name}" for name in ("fc1", "fc2", "w12", "w3")}

# low-rank pairs come under the names of an adapter file
LORAT_NAMES: Names = {
    r"pos_embed": "model.embeddings.position",
    r"token_type_embed": "model.embeddings.token_type.weight",
    r"patch_embed\.proj\.(weight|bias)": r"model.embeddings.patch.\1",
    r"norm\.(weight|bias)": r"model.norm.\1",
    r"blocks\.(\d+)\.(norm[12])\.(weight|bias)": r"model.layers.\1.\2.\3",
    r"blocks\.(\d+)\.ls1\.gamma": r"model.layers.\1.attention.scale.gamma",
    r"blocks\.(\d+)\.ls2\.gamma": r"model.layers.\1.mlp.scale.gamma",
    r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)": (
        r"model.layers.\1.attention.q_proj.\2",
        r"model.layers.\1.attention.k_proj.\2",
        r"model.layers.\1.attention.v_proj.\2",
    ),
}
for _official, _ours in MAPS.items():
    _place = rf"blocks\.(\d+)\.{re.escape(_official)}"
    LORAT_NAMES[rf"{_place}\.(?:linear\.)?(weight|bias)"] = rf"model.layers.\1.{_ours}.\2"
    LORAT_NAMES[rf"{_place}\.lora\.([AB])"] = rf"model.layers.\1.{_ours}.lora_\2.weight"
for _official, _ours in {"cls": "score", "reg": "box"}.items():
    for _layer in range(3):
        _place = rf"head\.{_official}_mlp\.layers\.{_layer}"
        LORAT_NAMES[rf"{_place}\.(weight|bias)"] = rf"head.{_ours}.{2 * _layer}.\1"


def split_trained(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors under this package's names as two: those that an adapter holds, and the frozen trunk's."""
    frozen = ("model.layers.", "model.norm.", "model.embeddings.p")
    trained = {n: t for n, t in tensors.items() if not n.startswith(frozen) or ".lora_" in n or ".tmoe_" in n}
    return trained, {name: tensor for name, tensor in tensors.items() if name not in trained}


def crop_fields(job: ConversionJob, positions: Tensor | None) -> dict[str, int]:
    """The crops' sizes: of the file's position table, else as the job says, since no other tensor tells."""
    given, found = job.overrides.get("search_size"), None
    if positions is not None:
        found = 14 * math.isqrt(shape_of({"positions": positions}, "positions", 3, str(job.file))[1])
    if given is None and found is None:
        raise ValueError(f"{job.file} does not tell whether its crops have 224 or 378 pixels: say --search-size 224.")
    if given is not None and found is not None and given != found:
        raise ValueError(f"search_size is {given}, but the position table in {job.file} is one for {found} pixels.")
    search = found or given
    template = job.overrides.get("template_size") or TEMPLATE_SIZES.get(search)
    if template is None:
        raise ValueError(f"no published tracker searches {search} pixels: say the template's side too, template_size=")
    return {"search_size": search, "template_size": template}


def take_scale(net: dict[str, Tensor], file: Path, given: float | None) -> tuple[float, bool, str]:
    """Takes the scale's entries out of an official state dict: alpha, whether it is divided by the root of the rank,
    and where they came from, in words.

    Files of some versions say `lora_alpha` and `use_rslora` for the whole model, others for every layer, and what the
    present code saves of a training says neither; its own loader then takes a factor of 1, that is alpha = r.
    """
    found: dict[str, set[float]] = {"lora_alpha": set(), "use_rslora": set()}
    for name in list(net):
        leaf = name.rpartition(".")[2]
        key = {"alpha": "lora_alpha"}.get(leaf, leaf) if ".lora." in name else name
        if key in found:
            found[key].add(number_of(net.pop(name), name))
    rank = next((shape_of(net, name, 2, str(file))[0] for name in net if name.endswith(".lora.A")), 0)
    rooted = bool(max(found["use_rslora"], default=0.0))
    if any(len(values) > 1 for values in found.values()):
        raise ValueError(f"{file} has several scales: alpha {sorted(found['lora_alpha'])}; one is expected.")
    said, default = next(iter(found["lora_alpha"]), None), rank**0.5 if rooted else float(rank)
    unsaid = "which makes the factor 1, as the file has none (give lora_alpha= for another)"
    alpha, origin = settled("lora_alpha", file, said, given, default, unsaid)
    return alpha, rooted, f"rank {rank}, alpha {alpha:g}, {origin}"


def settled(
    field: str, file: Path, said: float | None, given: float | None, default: float, unsaid: str
) -> tuple[float, str]:
    """A number that a file may leave out, and where it is from, in words; ValueError where file and caller differ."""
    if said is None:
        return (default, unsaid) if given is None else (given, "as given")
    if given not in (None, said):
        raise ValueError(f"{field} is {given}, but {file} says {said:g}.")
    return said, "as the file says"


def convert_lorat(job: ConversionJob) -> ConversionReport:
    """An official LoRAT file to an adapter folder, or to a full model where it is merged; see
    `mmtrackers.conversion.systems.convert_checkpoint`."""
    net = dict(job.net)
    if other := [name for name in net if ".tmoe." in name]:
        raise ValueError(f"{job.file} holds {len(other)} tensors of SPMTrack: convert it as 'spmtrack'")
    alpha, rooted, found = take_scale(net, job.file, job.overrides.get("lora_alpha"))
    tensors = rename(net, LORAT_NAMES)
    pair = next((name for name in tensors if ".lora_A." in name), None)
    if pair is None:
        return _convert_merged(job, tensors)
    adapter = lora_config(shape_of(tensors, pair, 2)[0], alpha, use_rslora=rooted)
    return convert_on_dinov2("lorat", LoRATForTracking, job, tensors, adapter, found)


def convert_on_dinov2(
    system: str, kind: type[LoRATForTracking], job: ConversionJob, tensors: Mapping[str, Tensor],
    adapter_config: PeftConfig, found: str,
) -> ConversionReport:
    """A trained adapter to a folder whose base is the job's, a plain DINOv2 or a tracker; ValueError where there is
    none, or one of another size or with other weights. `tensors` are under the names here; `found` is for the report.
    """
    trained, frozen = split_trained(tensors)
    if job.base is None:
        raise ValueError(f"{job.file} holds what was trained only: give the DINOv2 it stands on, with --base FOLDER.")
    fields = crop_fields(job, frozen.get("model.embeddings.position"))
    width = shape_of(trained, "model.embeddings.token_type.weight", 2, str(job.file))[1]

    def check(model: nn.Module) -> None:
        sizes = (model.config.hidden_size, model.config.num_hidden_layers)
        if (width, depth_of(tensors)) != sizes:
            raise ValueError(
                f"{job.file} was trained on a DINOv2 of width {width} and {depth_of(tensors)} layers; {job.base} has "
                f"{sizes[0]} and {sizes[1]}."
            )
        base = base_state_dict(model)
        # positions up to the rounding of their resampling
        check_same_base({n: base[n] for n in frozen if n in base}, frozen, str(job.file), tolerance=1e-5)

    model = save_adapter(job, job.base, kind, adapter_config, trained, {"license": "apache-2.0"}, check, **fields)
    config = model.config
    report = ConversionReport(system, _variant(config), {"adapter": job.out})
    report.facts += [f"read {count(trained)} of the adapter: {found}", f"base: {job.base}"]
    check_result(report, job, model, {}, trained)
    return report


def _variant(config: LoRATConfig) -> str:
    names = {sizes[:2]: name for name, sizes in SIZES.items()}
    name = names.get((config.hidden_size, config.num_hidden_layers), f"width {config.hidden_size}")
    return f"{name}, {config.search_size}"


def _convert_merged(job: ConversionJob, tensors: dict[str, Tensor]) -> ConversionReport:
    """A merged file is a whole tracker; shapes tell all but the crops' sizes and heads that are not 64 wide."""
    if job.base is not None:
        raise ValueError(f"{job.file} is merged, a whole tracker: it needs no base, leave it out")
    swiglu = "model.layers.0.mlp.w12.weight" in tensors
    source = "the file, without low-rank pairs and so a whole LoRAT,"
    width = shape_of(tensors, "model.embeddings.patch.weight", 4, source)[0]
    inner = shape_of(tensors, f"model.layers.0.mlp.{'w3' if swiglu else 'fc1'}.weight", 2, source)[0]
    config = LoRATConfig(
        hidden_size=width,
        num_hidden_layers=depth_of(tensors),
        num_attention_heads=job.overrides.get("num_attention_heads", max(width // 64, 1)),
        mlp_ratio=4 if swiglu else inner / width,
        use_swiglu_ffn=swiglu,
        **crop_fields(job, tensors.get("model.embeddings.position")),
    )
    model = save_model(job, job.out, LoRATForTracking, config, tensors, {"license": "apache-2.0"})
    report = ConversionReport("lorat", _variant(config), {"model": job.out})
    layers = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    report.facts.append(f"read {count(tensors)}: {layers}, adapter merged")
    check_result(report, job, model, tensors)
    return report
