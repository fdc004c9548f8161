"""Adapters and models as folders and Hub repositories: saving, checking, pushing.

An adapter folder holds `adapter_config.json` (with the base's Hub id, or its folder relative to this one),
`tracker_config.json` (the tracker's config and a fingerprint of the base), `adapter_model.safetensors`,
`preprocessor_config.json` and `README.md`; no `config.json`, which a full model has, and no absolute path.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import save_file
from torch import nn
from transformers.image_processing_utils import BaseImageProcessor

from mmtrackers.processing.files import write_json

from .adapters import (
    KEY_PREFIX,
    active_adapter,
    adapter_state_dict,
    base_state_dict,
    check_adapter_name,
    check_loaded,
    inner_model,
    is_sharded,
)
from .card import CARD, TrainingFacts, is_own_text, read_facts, write_card, write_results
from .fingerprints import fingerprint
from .folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MODEL_CONFIG,
    PREPROCESSOR_CONFIG,
    TRACKER_CONFIG,
    TrackerFiles,
    check_finite,
    is_relative_base,
    read_json,
    read_safetensors,
    sha256,
    shorten,
    strings_of,
)

__all__ = ["TrainingFacts", "check_folder", "push", "save_adapter", "write_card"]

WAY_OUT = 'base_model="org/name" (its Hub id) or base_model="../folder" (relative to the adapter\'s folder)'
UPLOADED = {".json", ".safetensors", ".md", ".png", ".jpg", ".gif", ".mp4", ".txt"}
# What transformers' save_pretrained and push_to_hub hand on; none of it means anything for one small safetensors file
TRANSFORMERS_OPTIONS = {
    "max_shard_size", "safe_serialization", "save_embedding_layers", "save_original_format", "save_peft_format",
    "token", "variant",
}  # fmt: skip
NORM_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
ABSOLUTE = re.compile(r"^(/[^/\s]|~/|file:|[A-Za-z]:[\\/]|\\\\)")


def save_adapter(
    model: nn.Module, folder: str | Path, image_processor: BaseImageProcessor | None = None,
    base_model: str | None = None, card: TrainingFacts | None = None, adapter_name: str | None = None,
    is_main_process: bool = True, **kwargs: Any,
) -> Path | None:
    """Saves the active adapter of a tracker as a folder that `AutoTracker` loads and `push` uploads.

    Args:
        model (`nn.Module`): a tracker with an injected adapter, or a `PeftModel` round one.
        folder (`str` or `Path`): made if missing; a `config.json` in it is an error.
        image_processor (`BaseImageProcessor`, *optional*): saved beside it; by default the one beside the base.
        base_model (`str`, *optional*): Hub id of the base, or its folder relative to `folder`; by default where the
            base was loaded from.
        card ([`TrainingFacts`], *optional*): what is known of the training, for the model card.
        adapter_name (`str`, *optional*): the active one by default.
        is_main_process (`bool`): False writes nothing (other processes of a distributed run), and returns None.
        kwargs: options of transformers' `save_pretrained`, without effect here.

    Raises:
        ValueError: no adapter; the base has no name that others could use; the adapter holds NaN or infinity, or is in
            shards.
    """
    if unknown := set(kwargs) - TRANSFORMERS_OPTIONS:
        raise TypeError(f"save_adapter does not know {', '.join(sorted(unknown))}.")
    if not is_main_process:
        return None
    tracker = inner_model(model)
    if is_sharded(tracker):
        raise ValueError(
            "The tracker is in shards (FSDP2), and each process holds a part of every tensor: nothing is saved. "
            "`mmtrackers finetune` gathers them; in a loop of your own, copy `parameter.full_tensor()`, called on all "
            "processes, into a whole tracker on one of them, and save that."
        )
    name = adapter_name or active_adapter(model)
    check_loaded(model, name)
    check_adapter_name(tracker, name)
    folder = Path(folder)
    if (folder / MODEL_CONFIG).exists():
        raise ValueError(f"{folder} already holds a {MODEL_CONFIG}, of a full model: choose another folder.")
    recorded = tracker.peft_config[name]
    loaded_from = recorded.base_model_name_or_path
    if not loaded_from or is_relative_base(loaded_from):  # relative to the folder it was read from, which peft forgets
        loaded_from = getattr(tracker, "name_or_path", None) or loaded_from
    base = _base_name(base_model, loaded_from, folder)
    tensors = {
        key: value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype).clone().contiguous()
        for key, value in adapter_state_dict(model, name).items()
    }
    check_finite(tensors, "The adapter")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    made_by = {"base_model_class": type(tracker).__name__, "parent_library": type(tracker).__module__}
    said = {"inference_mode": True, "base_model_name_or_path": base, "auto_mapping": made_by}
    write_json(folder / ADAPTER_CONFIG, recorded.to_dict() | said)
    service = {"transformers_version", "dtype", "torch_dtype", "model_type", "architectures"}
    fields = tracker.config.to_diff_dict().items()
    base_tensors = {n: t for n, t in base_state_dict(tracker).items() if n not in tracker.uninitialized_keys}
    record = {
        "model_type": tracker.config.model_type,
        "config": {field: value for field, value in fields if field not in service and not field.startswith("_")},
        "parameters": sum(value.numel() for key, value in tensors.items() if not key.endswith(NORM_STATISTICS)),
        "base_fingerprint": fingerprint(base_tensors),
        "adapter_sha256": sha256(folder / ADAPTER_WEIGHTS),
    }
    write_json(folder / TRACKER_CONFIG, record)
    _save_processor(tracker, image_processor, folder)
    if card is not None or not is_own_text(folder):
        write_card(folder, card)
    return folder


def _base_name(given: str | None, loaded_from: str | None, folder: Path) -> str:
    """The base's name as it goes into the file: a Hub id, or a folder relative to the adapter's."""
    if given is not None:
        given = os.fspath(given)
        if is_relative_base(given):
            return given.replace("\\", "/")
        return _checked_id(given, f"base_model={given!r} is an absolute local path that exists on this machine only")
    if not loaded_from:
        raise ValueError(f"The base was made from a config, not loaded: nobody could find it again. Pass {WAY_OUT}.")
    if os.path.isdir(loaded_from):
        try:
            relative = os.path.relpath(os.path.realpath(loaded_from), os.path.realpath(folder)).replace("\\", "/")
        except ValueError as error:  # another drive
            raise ValueError(f"No relative path from {folder} to the base {loaded_from}. Pass {WAY_OUT}.") from error
        return relative if is_relative_base(relative) else f"./{relative}"
    if is_relative_base(loaded_from):
        raise ValueError(f"The base was loaded from {loaded_from!r}, which is gone. Pass {WAY_OUT}.")
    return _checked_id(loaded_from, f"The base was loaded from {loaded_from!r}, a local path that is gone")


def _checked_id(name: str, problem: str) -> str:
    if os.path.isabs(name) or ABSOLUTE.match(name):
        raise ValueError(f"{problem}. Pass {WAY_OUT}.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"The base {name!r} is no Hub id. Pass {WAY_OUT}.") from error
    return name


def _save_processor(tracker: nn.Module, processor: BaseImageProcessor | None, folder: Path) -> None:
    """The given processor; else keep what lies there; else what lay beside the weights; else, where those were a plain
    backbone's, the one that the tracker was published with."""
    if processor is not None:
        processor.save_pretrained(folder)
    elif not (folder / PREPROCESSOR_CONFIG).exists():
        if tracker.processor_config is not None:
            write_json(folder / PREPROCESSOR_CONFIG, tracker.processor_config)
        elif hasattr(tracker, "image_processor"):
            tracker.image_processor().save_pretrained(folder)


def check_folder(folder: str | Path, base_model: str | None = None) -> str | None:
    """Checks that a saved folder can be published: complete, readable, nothing in it that only works here. Returns the
    Hub id of an adapter's base, `base_model` in the place of the recorded one; None for a full model.

    Raises:
        OSError: a file is missing, corrupt or truncated.
        ValueError: a relative or absolute base, an absolute path in a file, an unknown tracker, NaN in the weights.
    """
    from .auto import AutoTracker

    folder = Path(folder)
    files = TrackerFiles(str(folder), folder, {})
    is_adapter = files.has(ADAPTER_CONFIG)
    if not folder.is_dir():
        raise OSError(f"There is no folder {folder}: give one that save_pretrained wrote.")
    if is_adapter and files.has(MODEL_CONFIG):
        raise ValueError(f"{folder} holds both an adapter and a {MODEL_CONFIG}. Remove {MODEL_CONFIG}.")
    if not is_adapter and not files.has(MODEL_CONFIG):
        raise OSError(f"{folder} holds neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}: nothing to publish.")
    record = files.json(TRACKER_CONFIG if is_adapter else MODEL_CONFIG)
    AutoTracker.classes_of(record.get("model_type"), str(folder))
    base = None
    if is_adapter:
        base = base_model or files.json(ADAPTER_CONFIG).get("base_model_name_or_path")
        if not base or is_relative_base(base):
            raise ValueError(
                f"The adapter in {folder} names its base {base!r}, which means nothing on the Hub. Push the base "
                'first, then pass base_model="org/name".'
            )
        base = _checked_id(base, f"The adapter in {folder} names its base by the local path {base!r}")
    elif base_model is not None:
        raise ValueError(f"{folder} is a full model: base_model= does not apply.")
    weights = [folder / ADAPTER_WEIGHTS] if is_adapter else sorted(folder.glob("*.safetensors"))
    if not weights:
        raise OSError(f"{folder} holds no *.safetensors: weights are published in that format only.")
    for path in weights:
        tensors = read_safetensors(path, str(folder))
        check_finite(tensors, str(path))
        if foreign := sorted(key for key in tensors if is_adapter and not key.startswith(KEY_PREFIX)):
            raise ValueError(f"{path}: these are no names of an adapter's tensors: {shorten(foreign)}.")
    _check_paths(folder, replaced=base_model is not None)
    return base


def _check_paths(folder: Path, replaced: bool) -> None:
    """No file may name a place on this machine."""
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if replaced and path.name == ADAPTER_CONFIG:
            content.pop("base_model_name_or_path", None)
        for text in strings_of(content):
            if ABSOLUTE.match(text):
                raise ValueError(f"{path} holds the local path {text!r}. Remove it before publishing.")
    if is_own_text(folder):
        text = (folder / CARD).read_text(encoding="utf-8")
        for place in {str(folder.resolve().parent), str(Path.home())} - {"/", "/root"}:
            if place in text:
                raise ValueError(f"{folder / CARD} holds the local path {place}. Remove it before publishing.")


def push(
    folder: str | Path, repo_id: str, private: bool = False, base_model: str | None = None,
    card: TrainingFacts | None = None, token: str | None = None, message: str | None = None,
    license: str | None = None,
) -> str:
    """Publishes an adapter or a full model as a Hub repository, with a model card; returns the repository's address.

    Only top-level weights, JSON, text and picture files go up; the folder is not changed. A card that a person wrote
    (ours without its last line) is kept.

    Args:
        folder (`str` or `Path`): what `save_pretrained` or `save_adapter` wrote.
        repo_id (`str`): "org/name"; made if it does not exist, `private` or not.
        base_model (`str`, *optional*): Hub id of the base, for an adapter that names its base relative to its folder.
        card ([`TrainingFacts`], *optional*): what is known of the training; by default what was saved with the model.
        token, message (`str`, *optional*): of the Hub; of the commit.
        license (`str`, *optional*): of the weights, such as "apache-2.0"; none is claimed unless somebody says one.

    Raises:
        OSError, ValueError: as `check_folder`; or an adapter's base that is not on the Hub, where nobody could load
            the adapter.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    folder = Path(folder)
    base = check_folder(folder, base_model)
    api = HfApi(token=token, library_name="mmtrackers")
    if base is not None and not api.repo_exists(base):
        raise ValueError(
            f"the adapter's base {base!r} is not on the Hub (or you cannot see it), so nobody could load the adapter: "
            'push the base first, or name the repository that holds it with base_model="org/name"'
        )
    facts = card or read_facts(folder) or TrainingFacts()
    if license is not None:
        card = facts = dataclasses.replace(facts, license=license)
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary, repo_id.rsplit("/", 1)[-1])
        stage.mkdir()
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in UPLOADED and not path.name.startswith("."):
                _place(path, stage / path.name)
        if base is not None:
            write_json(stage / ADAPTER_CONFIG, read_json(folder / ADAPTER_CONFIG) | {"base_model_name_or_path": base})
        if card is not None or not is_own_text(stage):
            write_card(stage, card, repo_id=repo_id)
        write_results(stage, facts)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        what = f"Upload {'adapter' if base is not None else 'model'} with mmtrackers"
        api.upload_folder(repo_id=url.repo_id, folder_path=stage, commit_message=message or what)
    return str(url)


def _place(source: Path, target: Path) -> None:
    """Weights are linked, not copied (they may be large); what may be rewritten is copied."""
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):
            target.symlink_to(source.resolve())
            return
    shutil.copyfile(source, target)
