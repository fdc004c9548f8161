"""`mmtrackers info | push | convert`: what a tracker is made of, the Hub, official checkpoints."""

from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    repo: Annotated[str, typer.Argument(help="Folder or Hub id of a tracker or an adapter.")],
    base_model: Annotated[str | None, typer.Option(help="The base, in place of the one an adapter names.")] = None,
) -> None:
    """Show what a tracker is made of: base, tuner, modality, sizes, parameters."""
    from mmtrackers.hub.auto import AutoTracker

    model = AutoTracker.from_pretrained(repo, **({"base_model": base_model} if base_model else {}))
    for name, value in describe(model, repo).items():
        typer.echo(f"{name:<12}{value}")


def describe(model: Any, repo: str) -> dict[str, str]:
    """What `mmtrackers info` shows of a loaded model.

    Args:
        model (`TrackerPreTrainedModel`): with or without an adapter.
        repo (`str`): where it came from.

    Example:
        ```python
        describe(AutoTracker.from_pretrained(folder), folder)["modality"]
        ```
    """
    from mmtrackers.hub.adapters import adapter_state_dict

    config = model.config
    adapters = getattr(model, "peft_config", None) or {}
    own = sum(tensor.numel() for name in adapters for tensor in adapter_state_dict(model, name).values())
    total = sum(p.numel() for p in model.parameters())
    described = {
        "tracker": f"{type(model).__name__} ({config.model_type})",
        "modality": "rgb" if config.streams == 1 else f"rgb + {config.modality}",
    }
    for adapter in adapters.values():
        described["base"] = str(adapter.base_model_name_or_path)
        described["tuner"] = str(getattr(adapter.peft_type, "value", adapter.peft_type))
    described |= {
        "sizes": f"template {config.template_size}, search {config.search_size}, patch {config.patch_size} pixels",
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}, {config.num_attention_heads} heads",
        "parameters": f"{total:,}" + (f", of them {own:,} in the adapter" if adapters else ""),
    }
    path = _adapter_file(repo)
    if adapters and path is not None:
        described["adapter"] = f"{path.stat().st_size:,} bytes ({path.name})"
    return described


def _adapter_file(repo: str) -> Path | None:
    name = "adapter_model.safetensors"
    if Path(repo).is_dir():
        return Path(repo) / name if (Path(repo) / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name)
    return Path(found) if isinstance(found, str) else None


def push(
    folder: Annotated[Path, typer.Argument(help="A saved tracker or adapter.")],
    repo: Annotated[str, typer.Argument(help="Hub id: organisation/name.")],
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the base, where the adapter names a local folder.")
    ] = None,
) -> None:
    """Upload a saved tracker or adapter to the Hub."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give one that save_pretrained wrote")
    from mmtrackers.hub import publish

    typer.echo(f"pushed to {publish.push(folder, repo, private=private, base_model=base_model)}")


def convert(
    system: Annotated[str, typer.Argument(help="Whose file: lorat, ostrack, odtrack, patrack, seatrack, spmtrack.")],
    file: Annotated[Path, typer.Argument(help="Official checkpoint, as published (.pth.tar, .pth), or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    base: Annotated[str | None, typer.Option(help="Folder or Hub id of the base that an adapter belongs to.")] = None,
    modality: Annotated[str | None, typer.Option(help="thermal, depth or event.")] = None,
    search_size: Annotated[int | None, typer.Option(help="Side of the search crop, where a file lacks it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Turn an official checkpoint into a folder of this package."""
    from mmtrackers.conversion.systems import convert_checkpoint

    told = {} if search_size is None else {"search_size": search_size}
    try:
        report = convert_checkpoint(system, file, out, base=base, modality=modality, overwrite=force, **told)
    except FileExistsError as error:
        raise ValueError(f"{error}, or --force to write into it") from error
    typer.echo(str(report))
