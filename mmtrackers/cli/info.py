"""`mmtrackers info`: what there is, and what a tracker is made of."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument

from .ending import quiet_loading
from .options import BaseModel

REPO = "Folder or Hub id of a tracker or an adapter; without it: all that there is."


def info(repo: Annotated[str | None, Argument(help=REPO)] = None, base_model: BaseModel = None) -> None:
    """List systems, tuners, presets and embedded checkpoints; or show what one tracker is made of."""
    if repo is None:
        return _overview()
    from mmtrackers.hub.auto import AutoTracker
    from mmtrackers.pretrained import located

    quiet_loading()
    repo = located(repo)
    model = AutoTracker.from_pretrained(repo, **({"base_model": base_model} if base_model else {}))
    for name, value in describe(model, repo).items():
        typer.echo(f"{name:<12}{value}")


def _overview() -> None:
    from mmtrackers.pretrained import FOLDER
    from mmtrackers.register import SYSTEMS, TUNERS
    from mmtrackers.training.recipes import RECIPES

    typer.echo("systems (a row each in README.md; official checkpoints by `mmtrackers convert`):")
    for system, name in SYSTEMS.items():
        presets = [preset for preset, recipe in RECIPES.items() if preset.split("-")[0] == system]
        typer.echo(f"  {name:<12}presets: {', '.join(presets) or 'none'}")
    typer.echo(f"tuners: {', '.join(folder.upper() for folder in TUNERS)}, and peft's LORA")
    typer.echo("embedded checkpoints (`mmtrackers info NAME` says more):")
    for folder in sorted(path.parent for path in FOLDER.glob("*/*model.safetensors")):
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        typer.echo(f"  {folder.name:<24}{size / 1e6:.1f} MB")


def describe(model: Any, repo: str) -> dict[str, str]:
    """What `mmtrackers info` shows of a loaded model that came from `repo`."""
    from huggingface_hub import ModelCard

    from mmtrackers.hub.adapters import adapter_state_dict

    config, adapters = model.config, getattr(model, "peft_config", None) or {}
    own = sum(tensor.numel() for name in adapters for tensor in adapter_state_dict(model, name).values())
    total = sum(p.numel() for p in model.parameters())
    described = {"tracker": f"{type(model).__name__} ({config.model_type})",
                 "modality": "rgb" if config.streams == 1 else f"rgb + {config.modality}"}  # fmt: skip
    for adapter in adapters.values():
        described["base"] = str(adapter.base_model_name_or_path)
        described["tuner"] = str(getattr(adapter.peft_type, "value", adapter.peft_type))
    described |= {
        "sizes": f"template {config.template_size}, search {config.search_size}, patch {config.patch_size} pixels",
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}, {config.num_attention_heads} heads",
        "parameters": f"{total:,}" + (f", of them {own:,} in the adapter" if adapters else ""),
        "MACs": f"{multiply_adds(model) / 1e9:.2f} G per frame and target",
    }
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if path := _file(repo, name):
            described["adapter" if adapters else "weights"] = f"{path.stat().st_size:,} bytes ({name})"
    if path := _file(repo, "README.md"):
        card = ModelCard.load(path).data
        figures = [f"{r.dataset_name} {r.metric_name} {r.metric_value}" for r in card.eval_results or []]
        described |= {"license": card.license or "none stated"} | ({"figures": "; ".join(figures)} if figures else {})
    return described


def multiply_adds(model: Any) -> int:
    """Multiply-adds of the matrix products and convolutions that one frame with one target takes."""
    import numpy as np
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from mmtrackers.tracking.tracker import Tracker

    frame = {"rgb": np.zeros((256, 256, 3), np.uint8)}
    if model.config.streams == 2:
        second = "thermal" if model.config.modality == "any" else model.config.modality
        frame[second] = np.full((256, 256), 1000, np.uint16) if second == "depth" else frame["rgb"]
    session = Tracker(model.eval(), model.image_processor()).start(frame, [100, 100, 40, 40])
    # torch does not count the CPU's fused attention, so its products are made visible
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        session.update(frame)
    return counter.get_total_flops() // 2


def _file(repo: str, name: str) -> Path | None:
    if Path(repo).is_dir():
        return Path(repo) / name if (Path(repo) / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name)
    return Path(found) if isinstance(found, str) else None
