"""Files of a tracker's folder or repository: their names, how they are read and written, and what they must hold."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRACKER_CONFIG = "tracker_config.json"
MODEL_CONFIG = "config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
SMALL_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRACKER_CONFIG, MODEL_CONFIG, PREPROCESSOR_CONFIG)
FLOATING = ("F64", "F32", "F16", "BF16")
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
# how a repository is found; further ones of `from_pretrained` say what is made of it
HUB_OPTIONS = ("revision", "subfolder", "cache_dir", "force_download", "local_files_only", "token")


@dataclass(frozen=True)
class TrackerFiles:
    """A folder here, or a repository at one state of the Hub: its `name` as the caller said it, where its small files
    lie, and the `options` it was found with, the commit as their revision: the same state again."""

    name: str
    folder: Path
    options: dict[str, Any]

    @classmethod
    def find(cls, name: str | os.PathLike[str], options: Mapping[str, Any]) -> "TrackerFiles":
        """Looks for a folder, else on the Hub, else in the cache; OSError where there is none, or it cannot be
        reached. Of `options` those in `HUB_OPTIONS` count."""
        name, options = os.fspath(name), {n: options[n] for n in HUB_OPTIONS if options.get(n) is not None}
        subfolder = options.get("subfolder", "")
        if os.path.isdir(name):
            return cls(name, Path(name, subfolder), options)
        root = download(name, options, SMALL_FILES)
        return cls(name, root / subfolder, options | {"revision": root.name})

    def has(self, file: str) -> bool:
        """Whether there is a file of this name."""
        return (self.folder / file).is_file()

    def json(self, file: str) -> dict[str, Any]:
        """What a JSON file holds; OSError where it is missing or broken."""
        return read_json(self.folder / file, self.name)

    @property
    def is_adapter(self) -> bool:
        """Whether this is an adapter and no full model."""
        return self.has(ADAPTER_CONFIG) and not self.has(MODEL_CONFIG)

    def processor_config(self) -> dict[str, Any] | None:
        """The saved crop settings; None only where there is no such file."""
        return self.json(PREPROCESSOR_CONFIG) if os.path.lexists(self.folder / PREPROCESSOR_CONFIG) else None

    def with_weights(self) -> Path:
        """The folder, once a full model's weights lie in it; OSError where it has none in safetensors format."""
        if not os.path.isdir(self.name):
            download(self.name, self.options, WEIGHT_FILES)
        if not any(self.folder.glob("model*.safetensors")):
            raise OSError(
                f"{self.name} holds no model.safetensors. Weights are read in that format only, as it cannot run "
                "code; official files of other formats go through `mmtrackers convert`."
            )
        return self.folder


def download(name: str, options: Mapping[str, Any], files: Iterable[str]) -> Path:
    """A repository's snapshot folder with certain files in it, from the Hub, else from the cache; OSError for no such
    repository, revision or right to read it, or where it cannot be reached and is not in the cache."""
    options = dict(options)
    subfolder, revision = options.pop("subfolder", ""), options.get("revision")
    options["allow_patterns"] = [f"{subfolder}/{file}" if subfolder else file for file in files]
    where = f"{name!r}{f' at revision {revision!r}' if revision else ''}"
    try:
        with _patience():
            return Path(snapshot_download(name, **options))
    except HFValidationError as error:
        raise OSError(f"{name!r} is neither an existing folder nor a Hub id of the form 'org/name'.") from error
    except RevisionNotFoundError as error:
        raise OSError(f"Repository {name!r} has no revision {revision!r} (branch, tag or commit).") from error
    except Exception as error:  # whatever a connection, a proxy or half an answer comes to
        try:
            root = Path(snapshot_download(name, **options | {"local_files_only": True, "force_download": False}))
        except Exception:
            raise OSError(_why_not(where, error)) from error
        logger.warning(f"The Hub did not answer for {where} ({first_line(error)}): loading the cached copy.")
        return root


_impatient = ContextVar("impatient", default=False)


@contextmanager
def _patience() -> Iterator[None]:
    """Within the block a server that accepts a question and never answers is given up after the Hub's own timeout,
    which huggingface_hub keeps for files and not for the list of them."""
    hooks = get_session().event_hooks
    if _give_up not in hooks["request"]:
        get_session().event_hooks = hooks | {"request": [*hooks["request"], _give_up]}
    before = _impatient.set(True)
    try:
        yield
    finally:
        _impatient.reset(before)


def _give_up(request: Any) -> None:
    if _impatient.get():
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            name: constants.HF_HUB_ETAG_TIMEOUT if limit is None else limit for name, limit in limits.items()
        }


def _why_not(where: str, error: Exception) -> str:
    answers = (getattr(cause, "response", None) for cause in (error, error.__cause__))
    status = next((answer.status_code for answer in answers if answer is not None), None)
    if isinstance(error, GatedRepoError) or status in (401, 403):
        unknown = ", or there is none of this name" if status == 401 else ""
        return (
            f"Repository {where} is gated or private{unknown} (the Hub answers {status}). Ask for access on its page, "
            "then log in with `hf auth login`, or pass token=."
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"No repository {where} on the Hub (nor a folder here). A private one needs token= or `hf auth login`."
    return (
        f"Cannot reach {where} on the Hub and it is not in the local cache ({first_line(error)}). Connect once, or "
        "pass a local folder."
    )


def check_tensors(expected: dict[str, Any], found: dict[str, Any], source: str) -> None:
    """Raises ValueError, naming them (the first few of many), where names or shapes of tensors are not those expected;
    both arguments map names to tensors or shapes."""

    def shape(value: Any) -> list[int]:
        return list(getattr(value, "shape", value))

    def plain_float(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point() and value.itemsize > 1

    both = [(key, expected[key], found[key]) for key in sorted(set(expected) & set(found))]
    floats = [(key, there) for key, wanted, there in both if plain_float(wanted) and isinstance(there, torch.Tensor)]
    faults = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "of another shape": [f"{k} {shape(f)} (expected {shape(e)})" for k, e, f in both if shape(f) != shape(e)],
        "quantized": [f"{key} ({there.dtype})" for key, there in floats if not plain_float(there)],
    }
    if problems := [f"{len(names)} {what}: {shorten(names)}" for what, names in faults.items() if names]:
        raise ValueError(
            f"{source} does not fit the model ({len(expected)} tensors expected, {len(found)} in the file): "
            f"{'; '.join(problems)}. Nothing was loaded: the file is incomplete, or made for another base or another "
            "configuration."
        )


def check_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises ValueError where tensors hold NaN or infinity."""
    if broken := sorted(n for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()):
        raise ValueError(f"{source} holds NaN or infinity in {shorten(broken)}: it cannot be used.")


def check_filled(parameters: Iterable[tuple[str, torch.Tensor]], source: str) -> None:
    """Raises RuntimeError where weights stayed without numbers, which torch does not say, or only warns of."""
    if empty := [name for name, parameter in parameters if parameter.is_meta]:
        raise RuntimeError(
            f"{source}: {len(empty)} weights were left without numbers (on the meta device): {shorten(empty)}. "
            "accelerate's init_empty_weights() acts on all threads of a process: load when no thread is in it, and "
            "make empty models under torch.device('meta'), which is a thread's own."
        )


def check_floating(folder: Path, model: torch.nn.Module, source: str) -> None:
    """Raises ValueError for weights that are no plain floating numbers: transformers would cast them without a word.
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


def check_fields(content: dict[str, Any], where: str, **types: Any) -> None:
    """Raises ValueError, naming file and field, where a field of a JSON file has another type than it should."""
    for name, expected in types.items():
        if name in content and not isinstance(content[name], expected):
            wanted = getattr(expected, "__name__", str(expected))
            raise ValueError(
                f"{where}: {name!r} is a {type(content[name]).__name__}, expected {wanted}. Download or copy it again."
            )


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shorten(names: list[str], limit: int = 6) -> str:
    """A list of names as text, cut after `limit` entries."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names) - limit} more)"


def read_safetensors(path: Path, source: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; OSError where it is missing, empty, truncated or none."""
    source = source or str(path)
    if not path.is_file():
        raise OSError(f"{source}: {path.name} is missing. An adapter keeps its tensors there, in safetensors format.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"{source}: {path.name} ({path.stat().st_size} bytes) is corrupt or truncated ({error}). Download or "
            "copy it again."
        ) from error


def read_json(path: Path, source: str | None = None) -> dict[str, Any]:
    """A JSON object from a file; OSError where it is missing or holds none."""
    source = source or str(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OSError(f"{source}: {path.name} is missing.") from error
    except OSError as error:
        raise OSError(f"{source}: {path.name} cannot be read ({error.strerror or error}).") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise OSError(f"{source}: {path.name} is not valid JSON ({error}). Download or copy it again.") from error
    if not isinstance(content, dict):
        raise OSError(f"{source}: {path.name} holds a {type(content).__name__}, expected a JSON object.")
    return content


def strings_of(value: Any) -> Iterator[str]:
    """All strings inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_of(item)


def is_relative_base(name: str) -> bool:
    """Whether a recorded base is a folder relative to the adapter's own ("../ostrack-tiny") and not a Hub id."""
    return name in (".", "..") or name.startswith(("./", "../", ".\\", "..\\"))


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
