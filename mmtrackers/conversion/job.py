"""What every converter of official checkpoints needs: the job, the report, and the checks of the result."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtrackers.hub.auto import AutoTracker
from mmtrackers.hub.folders import check_tensors, shorten


@dataclass(frozen=True)
class ConversionJob:
    """One file to convert, read already.

    Args:
        net (`dict[str, Tensor]`): the file's tensors under their official names.
        file, out (`Path`): where they came from; the folder to make.
        base (`str` or `Path`, *optional*): folder or Hub id of the base that an adapter belongs to.
        modality (`str`, *optional*): the second stream's.
        overrides (`dict`): config fields that a file does not tell.
    """

    net: dict[str, Tensor]
    file: Path
    out: Path
    base: str | Path | None
    modality: str | None
    overrides: dict[str, Any]


@dataclass
class ConversionReport:
    """What a conversion read, decided, wrote and checked.

    Args:
        system (`str`): such as "ostrack".
        variant (`str`): such as "256" or "384", the search crop's side.
        folders (`dict[str, Path]`): what was written: "model", or "adapter" and perhaps "base".
        facts (`list[str]`): sentences for people, in order.
        differences (`dict[str, float]`): the largest difference that each check found.

    Example:
        >>> print(ConversionReport("ostrack", "256", {"model": Path("out")}, ["240 tensors read."]))
        ostrack (256)
        - 240 tensors read.
        - model: out
    """

    system: str
    variant: str
    folders: dict[str, Path]
    facts: list[str] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [*self.facts, *(f"{what}: {folder}" for what, folder in self.folders.items())]
        return "\n".join([f"{self.system} ({self.variant})", *(f"- {line}" for line in lines)])


@contextmanager
def all_or_nothing(out: Path) -> Iterator[None]:
    """No half-written folder stays behind after a failure, unless it was there before."""
    existed = out.exists()
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(out, ignore_errors=True)
        raise


def count(tensors: Mapping[str, Tensor]) -> str:
    """How many tensors and numbers, in words."""
    return f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers"


def load_base(base: str | Path, kind: type[nn.Module], whose: str) -> nn.Module:
    """The base of an adapter, in float32.

    Raises:
        ValueError: it is a file, or not a `kind`.
    """
    if Path(base).is_file():
        raise ValueError(f"the base {base} is a file: convert it first, and give the folder")
    model = AutoTracker.from_pretrained(base, dtype=torch.float32)
    if not isinstance(model, kind):
        raise ValueError(f"the base {base} is a {type(model).__name__}; {whose} is a {kind.__name__}")
    return model


def check_numbers(
    report: ConversionReport, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float
) -> None:
    """Every number of the file must be in the saved folder, under a name that leads back to it."""
    check_tensors(expected, found, "the saved result")
    gaps = {
        name: (tensor.double() - found[name].double()).abs().max().item()
        for name, tensor in expected.items()
        if tensor.numel()
    }
    report.differences["numbers"] = worst = max(gaps.values())
    if not worst <= tolerance:
        wrong = shorten([name for name, gap in gaps.items() if not gap <= tolerance])
        raise RuntimeError(
            f"the saved result differs from the file by {worst:.3g} in {wrong}: this is a fault of the converter"
        )
    report.facts.append(f"result checked: read back, its numbers differ from the file's by at most {worst:.3g}")


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
