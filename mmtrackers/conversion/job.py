"""What every converter of official checkpoints needs: the job, the report, and the checks of the result."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtrackers.hub.adapters import KEY_PREFIX, PeftConfig, adapter_state_dict, base_state_dict, fill_adapter
from mmtrackers.hub.auto import AutoTracker
from mmtrackers.hub.card import TrainingFacts, write_card
from mmtrackers.hub.folders import PREPROCESSOR_CONFIG, check_tensors, shorten
from mmtrackers.modeling.base import TrackerPreTrainedModel

# a pattern of official names -> the name here, by its groups; several share the rows out, none is left out
Names = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class ConversionJob:
    """One file to convert: its tensors under their official names, where it lies, the folder to make, the base of an
    adapter (folder or Hub id), the second stream, and config fields that a file does not tell."""

    net: dict[str, Tensor]
    file: Path
    out: Path
    base: str | Path | None
    modality: str | None
    overrides: dict[str, Any]


@dataclass
class ConversionReport:
    """What a conversion read, decided, wrote and checked: `variant` is such as "256"; `folders` "model", or "adapter"
    and perhaps "base"; `facts` sentences for people; `differences` the largest that each check found."""

    system: str
    variant: str
    folders: dict[str, Path]
    facts: list[str] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [*self.facts, *(f"{what}: {folder}" for what, folder in self.folders.items())]
        return "\n".join([f"{self.system} ({self.variant})", *(f"- {line}" for line in lines)])


def count(tensors: Mapping[str, Tensor]) -> str:
    """How many tensors and numbers, in words."""
    return f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers"


def names_of(official: str, names: Names) -> tuple[str, ...] | None:
    """The names here of one official entry; None for a name that the system has not."""
    for pattern, ours in names.items():
        if match := re.fullmatch(pattern, official):
            return tuple(match.expand(name) for name in ((ours,) if isinstance(ours, str) else ours))
    return None


def split(net: Mapping[str, Tensor], names: Names) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The entries that `names` does not know, and those that it does."""
    own = {name: tensor for name, tensor in net.items() if names_of(name, names) is not None}
    return {name: tensor for name, tensor in net.items() if name not in own}, own


def rename(net: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Every official entry under its names here (ValueError where it has none); where there are several, the rows are
    shared out equally and copied."""
    renamed: dict[str, Tensor] = {}
    for official, tensor in net.items():
        ours = names_of(official, names)
        if ours is None:
            raise ValueError(f"unexpected entry {official!r}: the official model has none of that name")
        if len(ours) == 1:
            renamed[ours[0]] = tensor
        elif ours:
            if not tensor.ndim or not len(tensor) or len(tensor) % len(ours):
                raise ValueError(f"entry {official!r}, {list(tensor.shape)}, should hold {len(ours)} equal parts")
            renamed |= zip(ours, (part.clone() for part in tensor.chunk(len(ours))), strict=True)
    return renamed


def shape_of(tensors: Mapping[str, Tensor], name: str, axes: int, source: str = "the file") -> torch.Size:
    """The shape of a tensor that sizes are read from; ValueError where it is missing or has another number of axes."""
    if name not in tensors:
        raise ValueError(f"{source} is incomplete: {name} is missing. Is it the checkpoint of another tracker?")
    shape = tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"{source}: {name} has the shape {list(shape)}, expected {axes} axes and numbers in each")
    return shape


def number_of(tensor: Tensor, name: str) -> float:
    """The number in a tensor of one; ValueError where it holds more or none."""
    if tensor.numel() != 1:
        raise ValueError(f"the entry {name!r} has the shape {list(tensor.shape)}, expected one number")
    return float(tensor)


def depth_of(tensors: Mapping[str, Tensor]) -> int:
    """The number of layers, by the names."""
    return 1 + max((int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")), default=-1)


def save_model(
    job: ConversionJob, folder: Path, kind: type[TrackerPreTrainedModel], config: Any, tensors: Mapping[str, Tensor],
    facts: Mapping[str, str],
) -> nn.Module:
    """Writes a full model with image processor and card, for which `facts` are fields of `TrainingFacts`; ValueError
    where tensors are missing, unexpected or of another shape."""
    with torch.device("meta"):
        expected = kind(config).state_dict()
    check_tensors(expected, tensors, str(job.file))
    model = kind(config).eval()
    model.load_state_dict(tensors)
    model.save_pretrained(folder)
    model.image_processor().save_pretrained(folder)
    write_card(folder, _card(job, facts))
    return model


def save_adapter(
    job: ConversionJob, base: str | Path, kind: type[TrackerPreTrainedModel], adapter_config: PeftConfig,
    tensors: Mapping[str, Tensor], facts: Mapping[str, str], check: Callable[[nn.Module], None] | None = None,
    **fields: Any,
) -> nn.Module:
    """Writes an adapter folder: a fresh adapter on a base, with `fields` in its config, filled with the file's tensors
    (named as here, without peft's prefix; ValueError for those that do not fit); `check` sees the tracker before."""
    model = kind.from_base(str(base), modality=job.modality, adapter_config=adapter_config, **fields)
    if check is not None:
        check(model)
    fill_adapter(model, "default", with_prefix(tensors), str(job.file))
    model.eval().save_pretrained(job.out, card=_card(job, facts))
    if not (job.out / PREPROCESSOR_CONFIG).is_file():  # the base has none beside it
        model.image_processor().save_pretrained(job.out)
    return model


def _card(job: ConversionJob, facts: Mapping[str, str]) -> TrainingFacts:
    said = f"as its authors trained it; converted from the official file `{job.file.name}`"
    return TrainingFacts(data=said, **facts)


def with_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapter tensors under the names of their file."""
    return {f"{KEY_PREFIX}{name}": tensor for name, tensor in tensors.items()}


def check_result(
    report: ConversionReport, job: ConversionJob, model: nn.Module, base: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor] | None = None, tolerance: float = 0.0,
) -> None:
    """Loads the folder and compares it with the file's numbers, of the base (where the file holds it) and of the
    adapter (without peft's prefix), and on one random input with the saved model."""
    loaded = AutoTracker.from_pretrained(job.out, dtype=torch.float32)
    found = base_state_dict(loaded) if base else {}
    found |= adapter_state_dict(loaded, "default") if adapter is not None else {}
    expected = {**base, **with_prefix(adapter or {})}
    check_tensors(expected, found, "the saved result")
    gaps = _gaps(expected, found)
    report.differences["numbers"] = worst = max(gaps.values())
    if not worst <= tolerance:
        wrong = shorten([name for name, gap in gaps.items() if not gap <= tolerance])
        raise RuntimeError(f"the saved result differs from the file by {worst:.3g} in {wrong}, by a fault of ours")
    report.facts.append(f"result checked: read back, its numbers differ from the file's by at most {worst:.3g}")
    check_forward(report, model, loaded)


def _gaps(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference in each tensor."""
    return {n: (t.double() - found[n].double()).abs().max().item() for n, t in expected.items() if t.numel()}


def check_same_base(known: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str, tolerance: float) -> None:
    """Raises ValueError unless a file's base part equals the given base; what differs is named."""
    check_tensors(dict(known), dict(found), f"the base part of {source}")
    gaps = _gaps(known, found)
    if different := [f"{name} (by up to {gap:.3g})" for name, gap in gaps.items() if not gap <= tolerance]:
        raise ValueError(
            f"{source} was trained on another base than the given one: {len(different)} of {len(known)} shared "
            f"tensors differ: {shorten(different)}. Give the one that it started from, in float32, or none where the "
            "file holds its own."
        )


@torch.no_grad()
def check_forward(report: ConversionReport, memory: nn.Module, loaded: nn.Module) -> None:
    """The folder's model and the one in memory must see the same in one random input."""
    config, generator = memory.config, torch.Generator().manual_seed(0)
    sizes = (config.search_size, config.template_size)
    search, template = (torch.randn(1, config.streams, 3, size, size, generator=generator) for size in sizes)
    feed = {"search": search, "template": template[:, None]}
    if memory.reads_template_mask:
        feed["template_mask"] = torch.rand(1, 1, *[config.template_grid] * 2, generator=generator) > 0.5
    outputs = [model.eval()(**feed) for model in (memory, loaded)]
    names = [n for n in ("score_map", "size_map", "offset_map", "box_map", "boxes") if outputs[0].get(n) is not None]
    worst = max((outputs[0][name] - outputs[1][name]).abs().max().item() for name in names)
    report.differences["forward"] = worst
    if not worst <= 1e-5:
        raise RuntimeError(f"the saved model's output differs from the one in memory by {worst:.3g}")
    report.facts.append(f"result checked: on a random input it gives the same maps and boxes (difference {worst:.3g})")
