"""Files of a tracker's folder or repository: their names, how they are read and written, and what they must hold."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRACKER_CONFIG = "tracker_config.json"
MODEL_CONFIG = "config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
SMALL_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRACKER_CONFIG, MODEL_CONFIG, PREPROCESSOR_CONFIG)
FLOATING = ("F64", "F32", "F16", "BF16")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")


def check_tensors(expected: dict[str, Any], found: dict[str, Any], source: str) -> None:
    """Compare names and shapes of tensors; both arguments map a name to something with ``.shape`` or to a shape.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; all of them are named (the first few of many).
    """

    def shape(value: Any) -> tuple[int, ...]:
        return tuple(getattr(value, "shape", value))

    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    wrong = [
        f"{key} {list(shape(found[key]))} (expected {list(shape(expected[key]))})"
        for key in sorted(set(expected) & set(found))
        if shape(found[key]) != shape(expected[key])
    ]

    def plain_float(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point() and value.itemsize > 1

    quantized = [
        f"{key} ({found[key].dtype})"
        for key in sorted(set(expected) & set(found))
        if plain_float(expected[key]) and isinstance(found[key], torch.Tensor) and not plain_float(found[key])
    ]
    problems = [
        f"{len(names)} {what}: {shorten(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", wrong),
            ("quantized", quantized),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{source} does not fit the model ({len(expected)} tensors expected, {len(found)} in the file): "
            + "; ".join(problems)
            + ". Nothing was loaded: the file is incomplete, or made for another base or another configuration."
        )


def check_floating(folder: Path, model: torch.nn.Module, source: str) -> None:
    """Refuses weights that are no plain floating numbers, which transformers would cast without a word.

    Raises:
        ValueError: a weight of the model is stored as whole numbers or in 8 bits.
    """
    floating = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in floating.intersection(file.keys())}
        if wrong := sorted(f"{name} ({kind})" for name, kind in types.items() if kind not in FLOATING):
            raise ValueError(
                f"{source}: {path.name} holds quantized weights, which mean nothing without their scales: "
                f"{shorten(wrong)}. Give the float file, and choose a smaller type with dtype='bfloat16'."
            )


def shorten(names: list[str], limit: int = 6) -> str:
    """A list of names as text, cut after ``limit`` entries."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names) - limit} more)"


def read_safetensors(path: Path, source: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises:
        OSError: the file is missing, empty, truncated or no safetensors file.
    """
    source = source or str(path)
    if not path.is_file():
        raise OSError(f"{source}: {path.name} is missing. An adapter keeps its tensors there, in safetensors format.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"{source}: {path.name} ({path.stat().st_size} bytes) is corrupt or truncated ({error}). Download or "
            "copy it again."
        ) from error


def read_json(path: Path, source: str | None = None) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        OSError: the file is missing or holds no JSON object.
    """
    source = source or str(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OSError(f"{source}: {path.name} is missing.") from error
    except OSError as error:
        raise OSError(f"{source}: {path.name} cannot be read ({error.strerror or error}).") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OSError(f"{source}: {path.name} is not valid JSON ({error}). Download or copy it again.") from error
    if not isinstance(content, dict):
        raise OSError(f"{source}: {path.name} holds a {type(content).__name__}, expected a JSON object.")
    return content


def strings_of(value: Any) -> Iterator[str]:
    """All strings inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)


def is_relative_base(name: str) -> bool:
    """Whether a recorded base is a folder relative to the adapter's own ("../ostrack-tiny") and not a Hub id."""
    return name in (".", "..") or name.startswith(("./", "../", ".\\", "..\\"))


def find_files(source: str, revision: str | None, subfolder: str, hub: dict[str, Any]) -> Path:
    """Folder with the config files and, for an adapter, its tensors; downloads them if ``source`` is a Hub id."""
    if os.path.isdir(source):
        return Path(source)
    names = [str(Path(subfolder, name)) if subfolder else name for name in SMALL_FILES]
    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=names, **hub))
    except HFValidationError as error:
        raise OSError(f"{source!r} is neither an existing folder nor a Hub id of the form 'org/name'.") from error
    except RevisionNotFoundError as error:
        raise OSError(f"Repository {source!r} has no revision {revision!r} (branch, tag or commit).") from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"No repository {source!r} on the Hub (and no such folder here). A private one needs token= or "
            "`hf auth login`."
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise OSError(
            f"Cannot reach {source!r}{at} on the Hub and it is not in the local cache ({first_line(error)}). Connect "
            "once, or pass a local folder."
        ) from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
