"""AutoTracker: one door for full checkpoints and for adapters that share a base.

The only file that uses transformers' private names (``_BaseAutoModelClass``, ``_LazyAutoMapping``).
"""

import dataclasses
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping

from .adapters import AdapterFolder, PeftModel, adapter_names, fingerprint_difference
from .folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    HUB_OPTIONS,
    MODEL_CONFIG,
    TRACKER_CONFIG,
    check_floating,
    find_files,
    first_line,
    is_relative_base,
    read_json,
    shorten,
)

WAY_OUT = "base_model= (Hub id, folder or loaded model)"


class AutoTracker(_BaseAutoModelClass):
    """Loads any tracker of this package, from a full checkpoint or from an adapter.

    A repository or folder with ``config.json`` is a full model: its ``model_type`` chooses the class. One with
    ``adapter_config.json`` instead is an adapter: ``tracker_config.json`` beside it says which tracker it makes, the
    base comes from ``base_model=`` or from the name recorded in ``adapter_config.json``.

    Example:

        >>> import tempfile
        >>> from mmtrackers import AutoTracker, OSTrackConfig, OSTrackForTracking
        >>> config = OSTrackConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_channels=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     OSTrackForTracking(config).save_pretrained(folder)
        ...     type(AutoTracker.from_pretrained(folder)).__name__
        'OSTrackForTracking'
    """

    # An empty config mapping keeps "Model type should be one of ..." short: only what is registered below is listed
    _model_mapping = _LazyAutoMapping(OrderedDict(), OrderedDict())

    @classmethod
    def register(
        cls, config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], exist_ok: bool = False
    ) -> None:
        """Make a tracker known: its ``model_type`` to ``AutoConfig``, its class to ``AutoTracker``.

        Raises:
            ValueError: the ``model_type`` belongs to transformers itself, or is registered already.
        """
        AutoConfig.register(config_class.model_type, config_class, exist_ok=exist_ok)
        super().register(config_class, model_class, exist_ok=exist_ok)

    @classmethod
    def registered(cls) -> dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]]:
        """Every known tracker: ``model_type`` -> (config class, model class)."""
        return {config.model_type: (config, model) for config, model in cls._model_mapping.items()}

    @classmethod
    def from_base(cls, base: str | os.PathLike[str], **kwargs: Any) -> PreTrainedModel:
        """`from_base` of the base's own class: its weights, frozen, with a fresh adapter.

        Args:
            base: Hub id or folder of a full model.
            **kwargs: as for `TrackerPreTrainedModel.from_base`, such as ``modality`` and ``adapter_config``.

        Raises:
            OSError: there is no model at `base`.
            ValueError: its ``model_type`` is unknown, or what `TrackerPreTrainedModel.from_base` raises.

        Example:
            >>> from peft import LoraConfig
            >>> lora = LoraConfig(target_modules=["q_proj", "v_proj"])
            >>> AutoTracker.from_base("org/base", modality="thermal", adapter_config=lora)  # doctest: +SKIP
        """
        model_type = getattr(AutoConfig.from_pretrained(base), "model_type", None)
        return _tracker_class(cls, model_type, f"{base}/{MODEL_CONFIG}")[1].from_base(base, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        base_model: str | os.PathLike[str] | PreTrainedModel | None = None,
        revision: str | None = None,
        base_revision: str | None = None,
        is_trainable: bool = False,
        adapter_name: str = "default",
        subfolder: str = "",
        **kwargs: Any,
    ) -> PreTrainedModel:
        """Load a tracker in evaluation mode.

        Args:
            pretrained_model_name_or_path: Hub id or folder, of a full model or of an adapter.
            base_model: for an adapter: Hub id, folder or loaded model to use in place of the recorded base. A loaded
                model is not changed; the tracker shares its weights.
            revision: branch, tag or commit of *this* repository.
            base_revision: branch, tag or commit of the base's repository (default: the recorded one, else "main").
            is_trainable: for an adapter: let its parameters (modules-to-save included) require gradients. Otherwise
                every parameter is frozen.
            adapter_name: for an adapter: its name in the loaded model.
            subfolder: folder inside the repository.
            **kwargs: ``cache_dir``, ``force_download``, ``local_files_only``, ``token``; ``dtype`` (of the base;
                adapters stay float32), ``device_map``, ``attn_implementation``; config fields to override.

        Raises:
            OSError: repository, revision or base not found or unreachable; files missing, corrupt or truncated.
            ValueError: tensors missing, unexpected or of another shape; the adapter was trained on another base;
                unknown model or adapter type; unsafe adapter name.
        """
        if kwargs.pop("trust_remote_code", None):
            raise ValueError("mmtrackers never runs code from a repository: leave trust_remote_code out.")
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if kwargs.get(name) is not None}
        source = os.fspath(pretrained_model_name_or_path)
        root = find_files(source, revision, subfolder, hub)
        folder = root / subfolder
        if (folder / ADAPTER_CONFIG).is_file() and not (folder / MODEL_CONFIG).is_file():
            with_info = kwargs.pop("output_loading_info", False)
            adapter = AdapterFolder.read(folder, source)
            base = _find_base(adapter.peft_config.base_model_name_or_path, base_model, folder, source)
            base_revision = base_revision or (adapter.peft_config.revision if base_model is None else None)
            model = _base_as_tracker(cls, folder, source, base, base_revision, hub, kwargs)
            model._put_on(adapter, adapter_name, is_trainable)
            return (model, {"missing_keys": set(), "unexpected_keys": set()}) if with_info else model
        if base_model is not None or base_revision is not None or is_trainable or adapter_name != "default":
            raise ValueError(
                f"{source} is a full model, not an adapter: base_model, base_revision, is_trainable and adapter_name "
                "do not apply."
            )
        _check_full_model(folder, source, cls)
        if not os.path.isdir(source):
            revision = root.name  # the snapshot's commit: weights come from the state that was just looked at
        where = {"revision": revision, "subfolder": subfolder, **hub}
        loaded = _load_checked(super().from_pretrained, source, **where, **kwargs)
        check_floating(folder, loaded[0] if isinstance(loaded, tuple) else loaded, source)
        return loaded


def _check_full_model(folder: Path, source: str, auto: type[AutoTracker]) -> None:
    if not (folder / MODEL_CONFIG).is_file():
        raise OSError(
            f"{source} holds neither {MODEL_CONFIG} (a full model) nor {ADAPTER_CONFIG} (an adapter): not a tracker."
        )
    if (folder / ADAPTER_WEIGHTS).is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{source} holds an adapter and also a {MODEL_CONFIG}, so it could be either. Remove {MODEL_CONFIG}: an "
            f"adapter's tracker is described by {TRACKER_CONFIG}."
        )
    _tracker_class(auto, read_json(folder / MODEL_CONFIG, source).get("model_type"), f"{source}/{MODEL_CONFIG}")


def _tracker_class(
    auto: type[AutoTracker], model_type: str | None, where: str
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    known = auto.registered()
    if model_type not in known:
        way_out = "Upgrade mmtrackers, or import the package that registers it"
        if model_type == "dinov2":
            way_out = "A plain DINOv2 becomes one by LoRATForTracking.from_base or SPMTrackForTracking.from_base"
        raise ValueError(
            f"{where} says model_type {model_type!r}; known trackers: {', '.join(sorted(known))}. {way_out}."
        )
    return known[model_type]


def _find_base(
    recorded: str | None, given: str | os.PathLike[str] | PreTrainedModel | None, folder: Path, source: str
) -> str | PreTrainedModel:
    """The base to load: what the caller gave, else the recorded name, relative names resolved against ``folder``."""
    if given is not None:
        return given if isinstance(given, torch.nn.Module) else os.fspath(given)
    if not recorded:
        raise ValueError(f"{source}/{ADAPTER_CONFIG} names no base. Pass {WAY_OUT}.")
    if not is_relative_base(recorded):
        return recorded
    path = Path(os.path.normpath(folder.absolute() / recorded))
    if not path.is_dir():
        raise OSError(
            f"{source} was trained on the base {recorded!r}, relative to its own folder, but there is no {path}. Pass "
            f"{WAY_OUT}."
        )
    return str(path)


def _base_as_tracker(
    auto: type[AutoTracker],
    folder: Path,
    source: str,
    base: str | PreTrainedModel,
    revision: str | None,
    hub: dict[str, Any],
    kwargs: dict[str, Any],
) -> PreTrainedModel:
    """The tracker's class with its own config and the base's weights; no adapter yet."""
    loaded = isinstance(base, torch.nn.Module)
    if loaded and (isinstance(base, PeftModel) or adapter_names(base)):
        raise ValueError(
            f"base_model= is a {type(base).__name__} with adapters in it. Pass a plain base; to add a second adapter "
            "to a tracker, call its load_adapter(folder, adapter_name=...)."
        )
    if (folder / TRACKER_CONFIG).is_file():
        record = read_json(folder / TRACKER_CONFIG, source)
        config_class, model_class = _tracker_class(auto, record.get("model_type"), f"{source}/{TRACKER_CONFIG}")
        config = config_class.from_dict(record.get("config", {}))
    elif loaded:
        model_class, config, record = type(base), type(base.config).from_dict(base.config.to_dict()), {}
    else:  # written by peft alone: the base itself is the tracker
        base_files = _base_folder(base, revision, hub, source)
        model_type = read_json(base_files / MODEL_CONFIG, base).get("model_type")
        config_class, model_class = _tracker_class(auto, model_type, f"{base}/{MODEL_CONFIG}")
        config, record = config_class.from_pretrained(base_files), {}
    kwargs = _override_config(config, kwargs)
    if loaded:
        kwargs.setdefault("dtype", base.dtype)
        model = _load_checked(model_class.from_pretrained, None, config=config, state_dict=base.state_dict(), **kwargs)
        model.name_or_path = model.config.name_or_path = base.name_or_path
    else:
        base_files = _base_folder(base, revision, hub, source)
        try:
            model = _load_checked(
                model_class.from_pretrained, base, config=config, revision=revision or "main", **hub, **kwargs
            )
        except ValueError as error:
            raise ValueError(f"{base} is no base for adapter {source} ({config.model_type}): {error}") from error
        check_floating(base_files, model, base)
    different = fingerprint_difference(record.get("base_fingerprint", {}), model)
    if different:
        name = base.name_or_path if loaded else base
        raise ValueError(
            f"Adapter {source} was trained on another base than {name or 'the given model'}: {different}. Pass the "
            "right one with base_model= (or base_revision=)."
        )
    return model


def _base_folder(base: str, revision: str | None, hub: dict[str, Any], source: str) -> Path:
    """The base's small files, or an error that says what to do when the base cannot be had."""
    try:
        if os.path.isabs(base) and not os.path.isdir(base):
            raise OSError(f"there is no folder {base}")
        folder = find_files(base, revision, "", hub)
    except OSError as error:
        raise OSError(
            f"Adapter {source} needs its base {base!r}, which cannot be loaded: {error} Pass {WAY_OUT}."
        ) from error
    if not (folder / MODEL_CONFIG).is_file():
        what = "is itself an adapter" if (folder / ADAPTER_CONFIG).is_file() else f"has no {MODEL_CONFIG}"
        raise ValueError(f"The base {base!r} of adapter {source} {what}. Pass a full model with base_model=.")
    return folder


def _override_config(config: PreTrainedConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Put keywords that are fields of the tracker's config into it; the rest goes to ``from_pretrained``."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(config)} - inherited
    for name in own & set(kwargs):
        setattr(config, name, kwargs[name])
    return {name: value for name, value in kwargs.items() if name not in own}


@contextmanager
def _without_report() -> Iterator[None]:
    """Keeps back transformers' table of tensors that did not fit: it advises training where an error follows."""

    def wanted(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _load_checked(load: Any, source: str | None, **kwargs: Any) -> Any:
    """``from_pretrained`` that raises where transformers only reports: every tensor must be there and fit."""
    name = source or "The given model"
    with_info = kwargs.pop("output_loading_info", False)
    kwargs["ignore_mismatched_sizes"] = True  # all of them are named below, instead of the first
    try:
        with _without_report():
            model, info = load(source, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise OSError(
            f"{name}: a weight file is corrupt or truncated ({first_line(error)}). Download or copy it again."
        ) from error
    wrong = {f"{key} {list(found)} (expected {list(wanted)})" for key, found, wanted in info["mismatched_keys"]}
    kinds = {"missing": info["missing_keys"], "unexpected": info["unexpected_keys"], "of another shape": wrong}
    problems = [f"{len(keys)} {kind}: {shorten(sorted(keys))}" for kind, keys in kinds.items() if keys]
    if problems:
        raise ValueError(
            f"{name} does not fit {type(model).__name__}: {'; '.join(problems)}. The file is incomplete or belongs to "
            "another model."
        )
    return (model, info) if with_info else model


