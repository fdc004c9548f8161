"""Official checkpoint files to folders of this package: read, renamed, checked, saved, read back and compared."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from torch import Tensor, nn

from .adapters import (
    KEY_PREFIX,
    PREPROCESSOR_CONFIG,
    adapter_state_dict,
    base_state_dict,
    check_tensors,
    shorten,
)
from .auto import AutoTracker
from .checkpoints import load_official
from .image_processing import TrackerImageProcessor
from .model_card import TrainingFacts, write_card
from .models.ostrack.configuration_ostrack import OSTrackConfig
from .models.ostrack.convert_ostrack import UNUSED, ostrack_from_official, ostrack_to_official
from .models.ostrack.modeling_ostrack import OSTrackForTracking
from .models.seatrack.convert_seatrack import (
    MERGED_AS_PUBLISHED,
    ROUNDING,
    rename_seatrack_adapter,
    seatrack_settings,
    seatrack_to_official,
    split_official,
    undo_merge,
)
from .models.seatrack.modeling_seatrack import SEATrackForTracking
from .tuners.amg_lora import AMGLoraConfig

SYSTEMS = ("ostrack", "seatrack")
# sizes and search factors of the two published OSTracks; other sizes get the first one's factor
PUBLISHED = {(128, 256): ("256", 4.0), (192, 384): ("384", 5.0)}


@dataclass
class ConversionReport:
    """What a conversion read, decided, wrote and checked.

    Args:
        system (`str`): "ostrack" or "seatrack".
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


def convert_checkpoint(
    system: str,
    file: str | Path,
    out: str | Path,
    base: str | Path | None = None,
    modality: str | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> ConversionReport:
    """Convert an official checkpoint file into a folder that `AutoTracker` and `Tracker` load.

    The file is read without running anything in it. An OSTrack file becomes a full model. A SEATrack file becomes an
    adapter folder, and without `base` also the base that the file holds, in `out/base`. The result is loaded back, and
    compared with the file's numbers and, on one random input, with the model it was saved from.

    Args:
        system: "ostrack" or "seatrack".
        file: `.pth`, `.pth.tar` or `.safetensors`.
        out: folder to make.
        base: seatrack: the OSTrack it was trained on, as folder or Hub id of this package's form. Used to tell whether
            the file's weights are merged, and named in the adapter.
        modality: seatrack: "thermal", "depth" or "event".
        overwrite: write into `out` although it holds files already.
        overrides: fields of `OSTrackConfig` that a file does not tell, such as `num_attention_heads` where heads are
            not 64 wide.

    Raises:
        FileNotFoundError, FileExistsError: no such file; `out` is not an empty folder.
        ValueError: the file is not what it should be, or was trained on another base.
        RuntimeError: the saved result does not equal the file (then a new `out` is removed again).

    Example:
        >>> print(convert_checkpoint("seatrack", "SEATrack_RGBT.pth.tar", "seatrack-thermal", base="ostrack-256",
        ...     modality="thermal"))  # doctest: +SKIP
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; files of these can be converted: {', '.join(SYSTEMS)}")
    out = Path(out)
    if system == "ostrack" and (base is not None or modality is not None):
        raise ValueError("an OSTrack file is a whole RGB tracker: base and modality belong to 'seatrack' files")
    if system == "seatrack" and modality not in MERGED_AS_PUBLISHED:
        raise ValueError(
            f"modality is {modality!r}: a SEATrack file does not say what its second stream was, so say it: "
            f"{', '.join(MERGED_AS_PUBLISHED)}"
        )
    if out.exists() and not (out.is_dir() and (overwrite or not any(out.iterdir()))):
        raise FileExistsError(f"{out} exists and is not an empty folder: choose another one")
    net = load_official(file)
    if broken := sorted(name for name, t in net.items() if t.is_floating_point() and not torch.isfinite(t).all()):
        raise ValueError(f"{file} holds NaN or infinity in {shorten(broken)}: it cannot be used")
    with _all_or_nothing(out):
        if system == "ostrack":
            return _convert_ostrack(net, Path(file), out, overrides)
        return _convert_seatrack(net, Path(file), out, base, str(modality), overrides)


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[None]:
    """No half-written folder stays behind after a failure, unless it was there before."""
    existed = out.exists()
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _variant(config: OSTrackConfig) -> tuple[str, float]:
    default = f"search {config.search_size}, template {config.template_size}, not a published size", 4.0
    return PUBLISHED.get((config.template_size, config.search_size), default)


def _processor(config: OSTrackConfig) -> TrackerImageProcessor:
    return TrackerImageProcessor(
        template_size=config.template_size, search_size=config.search_size, search_factor=_variant(config)[1]
    )


def _count(tensors: Mapping[str, Tensor]) -> str:
    return f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers"


def _save_ostrack(net: Mapping[str, Tensor], source: Path, out: Path, overrides: Mapping[str, Any]) -> OSTrackConfig:
    config, state_dict = ostrack_from_official(net, **overrides)
    model = OSTrackForTracking(config)
    model.load_state_dict(state_dict)
    model.eval().save_pretrained(out)
    _processor(config).save_pretrained(out)
    facts = TrainingFacts(
        data=f"as its authors trained it; converted from the official file `{source.name}`", license="mit"
    )
    write_card(out, facts)
    return config


def _convert_ostrack(net: dict[str, Tensor], file: Path, out: Path, overrides: Mapping[str, Any]) -> ConversionReport:
    if adapter := split_official(net)[1]:
        raise ValueError(f"{file} holds {len(adapter)} adapter tensors of SEATrack: convert it as 'seatrack'")
    config = _save_ostrack(net, file, out, overrides)
    used = {name: tensor for name, tensor in net.items() if name not in UNUSED}
    loaded = AutoTracker.from_pretrained(out, dtype=torch.float32)
    report = ConversionReport("ostrack", _variant(config)[0], {"model": out})
    report.facts += [
        f"read {_count(used)}: {config.num_hidden_layers} layers of width {config.hidden_size}, template "
        f"{config.template_size}, search {config.search_size} pixels; {len(net) - len(used)} unused entries left out",
        _told_elimination(config),
    ]
    _check_numbers(report, used, ostrack_to_official(loaded.state_dict(), unused=False), tolerance=0.0)
    memory = OSTrackForTracking(config)
    memory.load_state_dict(ostrack_from_official(net, **overrides)[1])
    _check_forward(report, memory, loaded)
    return report


def _told_elimination(config: OSTrackConfig) -> str:
    layers = list(config.elimination_layers)
    if not layers:
        return "candidate elimination is off"
    return (
        f"candidate elimination: layers {layers} keep {config.elimination_keep_rate:g}, as in the published 'ce' "
        "files; a file does not tell, so set elimination_layers to [] in config.json for one trained without it"
    )


def _convert_seatrack(
    net: dict[str, Tensor],
    file: Path,
    out: Path,
    base: str | Path | None,
    modality: str,
    overrides: Mapping[str, Any],
) -> ConversionReport:
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
        config = _save_ostrack(split_official(plain)[0], file, base, overrides)
    else:
        known = _load_base(base)
        config = known.config
        plain, finding = undo_merge(net, modality, ostrack_to_official(known.state_dict(), unused=False))
    report = ConversionReport("seatrack", f"{modality}, {_variant(config)[0]}", folders)
    report.facts += [
        f"read {_count(adapter)} of the adapter (here {len(ours)}, as k and v are apart), in layers "
        f"{settings['adapter_layers']}",
        _told_merge(finding.merged, finding.reason),
    ]
    model = SEATrackForTracking.from_base(str(base), modality=modality, adapter_config=AMGLoraConfig(**settings))
    tensors = {f"{KEY_PREFIX}{name}": tensor for name, tensor in ours.items()}
    check_tensors(adapter_state_dict(model, "default"), tensors, str(file))
    set_peft_model_state_dict(model, tensors, adapter_name="default")
    facts = TrainingFacts(
        data=f"as its authors trained it; converted from the official file `{file.name}`", license="mit"
    )
    model.eval().save_pretrained(out, card=facts)
    if not (out / PREPROCESSOR_CONFIG).is_file():
        _processor(config).save_pretrained(out)
    loaded = AutoTracker.from_pretrained(out, dtype=torch.float32)
    again = ostrack_to_official(base_state_dict(loaded), unused=False)
    again |= seatrack_to_official(adapter_state_dict(loaded, "default"))
    expected = {name: tensor for name, tensor in plain.items() if name not in UNUSED}
    _check_numbers(report, expected, again, tolerance=ROUNDING if finding.difference else 0.0)
    _check_forward(report, model, loaded)
    return report


def _load_base(base: str | Path) -> OSTrackForTracking:
    if Path(base).is_file():
        raise ValueError(f"the base {base} is a file: convert it first, as 'ostrack', and give the folder")
    model = AutoTracker.from_pretrained(base, dtype=torch.float32)
    if not isinstance(model, OSTrackForTracking):
        raise ValueError(f"the base {base} is a {type(model).__name__}; SEATrack's is an OSTrack")
    return model


def _told_merge(merged: bool | None, reason: str) -> str:
    if merged is None:
        return f"k and v weights taken as they are: {reason}"
    form = "merged (W + BA), the products were taken out again" if merged else "plain (W), taken as they are"
    return f"k and v weights were {form}: {reason}"


def _check_numbers(
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
def _check_forward(report: ConversionReport, memory: nn.Module, loaded: nn.Module) -> None:
    """The folder's model and the one in memory must see the same in one random input."""
    config, generator = memory.config, torch.Generator().manual_seed(0)
    sizes = (config.search_size, config.template_size)
    search, template = (torch.randn(1, config.streams, 3, size, size, generator=generator) for size in sizes)
    outputs = [model.eval()(search, template[:, None]) for model in (memory, loaded)]
    names = ("score_map", "size_map", "offset_map", "boxes")
    worst = max((outputs[0][name] - outputs[1][name]).abs().max().item() for name in names)
    report.differences["forward"] = worst
    if not worst <= 1e-5:
        raise RuntimeError(f"the saved model's output differs from the one in memory by {worst:.3g}")
    report.facts.append(f"result checked: on a random input it gives the same maps and boxes (difference {worst:.3g})")
