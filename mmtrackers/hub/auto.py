"""AutoTracker: one door for full checkpoints and for adapters that share a base."""

import os
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .adapters import AdapterFolder, PeftModel, adapter_names
from .folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    HUB_OPTIONS,
    MODEL_CONFIG,
    TRACKER_CONFIG,
    TrackerFiles,
    is_relative_base,
)

WAY_OUT = "base_model= (Hub id, folder or loaded model)"
Classes = tuple[type[PreTrainedConfig], type[PreTrainedModel]]
Tracker = tuple[type[PreTrainedModel], PreTrainedConfig]


class AutoTracker:
    """Loads any tracker of this package: a repository or folder with `config.json` is a full model, one with
    `adapter_config.json` an adapter, of the tracker in its `tracker_config.json`, on the base that it names.

    Example:

        >>> import tempfile
        >>> from mmtrackers import AutoTracker, OSTrackConfig, OSTrackForTracking
        >>> config = OSTrackConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_channels=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     OSTrackForTracking(config).save_pretrained(folder)
        ...     type(AutoTracker.from_pretrained(folder)).__name__
        'OSTrackForTracking'
    """

    _known: ClassVar[dict[str, Classes]] = {}

    def __init__(self) -> None:
        raise TypeError("AutoTracker has no instances: AutoTracker.from_pretrained(repo) gives the tracker itself.")

    @classmethod
    def register(
        cls, config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], exist_ok: bool = False
    ) -> None:
        """Makes a tracker known: its `model_type` to `AutoConfig`, its class to `AutoTracker`. ValueError where the
        `model_type` is transformers' own, or registered already and not to be replaced (`exist_ok`)."""
        name = config_class.model_type
        if name in cls._known and cls._known[name] != (config_class, model_class) and not exist_ok:
            raise ValueError(f"model_type {name!r} is {cls._known[name][1].__name__} already.")
        AutoConfig.register(name, config_class, exist_ok=exist_ok)
        cls._known[name] = (config_class, model_class)

    @classmethod
    def registered(cls) -> dict[str, Classes]:
        """Every known tracker: `model_type` -> (config class, model class)."""
        return dict(cls._known)

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """An untrained tracker; ValueError for the config of no tracker."""
        return cls.classes_of(config.model_type, type(config).__name__)[1](config)

    @classmethod
    def from_base(cls, base: str | os.PathLike[str], **kwargs: Any) -> PreTrainedModel:
        """`from_base` of the base's own class: its weights, frozen, with a fresh adapter."""
        return cls._class_of(TrackerFiles.find(base, kwargs))[1].from_base(base, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *,
        base_model: str | os.PathLike[str] | PreTrainedModel | None = None, base_revision: str | None = None,
        is_trainable: bool = False, adapter_name: str = "default", **kwargs: Any,
    ) -> PreTrainedModel:
        """Loads a tracker in evaluation mode.

        Args:
            pretrained_model_name_or_path (`str` or `PathLike`): Hub id or folder, of a full model or of an adapter.
            base_model (`str`, `PathLike` or `PreTrainedModel`, *optional*), base_revision (`str`, *optional*): of an
                adapter, the base to use in place of the recorded one (a loaded model is not changed; the tracker
                shares its weights), and its branch, tag or commit (by default the recorded one, else "main").
            is_trainable (`bool`), adapter_name (`str`): of an adapter, let its parameters (modules-to-save included)
                require gradients, otherwise every parameter is frozen; its name in the loaded model.
            kwargs: `revision` (of *this* repository), `subfolder`, `cache_dir`, `force_download`, `local_files_only`,
                `token`; `dtype` (of the base; adapters stay float32), `device_map`, `attn_implementation`; config
                fields to override.

        Raises:
            OSError: repository, revision or base not found or unreachable; files missing, corrupt or truncated.
            ValueError: tensors missing, unexpected or of another shape; the adapter was trained on another base;
                unknown model or adapter type; unsafe adapter name.
        """
        files = TrackerFiles.find(pretrained_model_name_or_path, kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in HUB_OPTIONS}
        if not files.is_adapter:
            if base_model is not None or base_revision is not None or is_trainable or adapter_name != "default":
                raise ValueError(f"{files.name} is a full model, not an adapter: options of adapters do not apply.")
            return cls._class_of(files)[1].from_pretrained(files.name, **files.options, **kwargs)
        with_info = kwargs.pop("output_loading_info", False)
        adapter = AdapterFolder.read(files)
        tracker = None  # of an adapter that peft alone wrote, the base itself
        if adapter.record:
            config_class, model_class = cls.classes_of(adapter.record["model_type"], adapter.where(TRACKER_CONFIG))
            tracker = model_class, adapter.config(config_class)
        if isinstance(base_model, torch.nn.Module):
            model = cls._on_loaded(tracker, base_model, kwargs)
        else:
            revision = base_revision or (adapter.peft_config.revision if base_model is None else None)
            options = files.options | {"revision": revision, "subfolder": None}
            model = cls._on_named(tracker, adapter, base_model, options, kwargs)
        try:
            model._put_on(adapter, adapter_name, is_trainable)
        except ValueError as error:
            if adapter.record:
                raise
            raise ValueError(
                f"{files.name} has no {TRACKER_CONFIG} (peft's own save_pretrained writes none), so it was put on its "
                f"base as that is: {error} Save it with mmtrackers.hub.publish.save_adapter(peft_model, folder), or "
                "pass base_model= a loaded tracker of the class that it was trained in."
            ) from error
        model.adapter_modalities = {adapter_name: model.config.modality}
        model.processor_config = files.processor_config() or model.processor_config
        return (model, {"missing_keys": set(), "unexpected_keys": set()}) if with_info else model

    @staticmethod
    def _on_loaded(tracker: Tracker | None, base: PreTrainedModel, kwargs: dict[str, Any]) -> PreTrainedModel:
        """The adapter's tracker with a loaded base's weights, which stay its own too."""
        if isinstance(base, PeftModel) or adapter_names(base):
            raise ValueError(
                f"base_model= is a {type(base).__name__} with adapters in it. Pass a plain base; to add a second "
                "adapter to a tracker, call its load_adapter(folder, adapter_name=...)."
            )
        model_class, config = tracker or (type(base), type(base.config).from_dict(base.config.to_dict()))
        options = {"dtype": base.dtype} | kwargs | {"config": config, "state_dict": base.state_dict()}
        model = model_class.from_pretrained(None, **options)
        model.name_or_path = model.config.name_or_path = base.name_or_path
        model.processor_config = getattr(base, "processor_config", None)
        return model

    @classmethod
    def _on_named(
        cls, tracker: Tracker | None, adapter: AdapterFolder, given: str | os.PathLike[str] | None,
        options: dict[str, Any], kwargs: dict[str, Any],
    ) -> PreTrainedModel:
        """The adapter's tracker with the weights of the given or recorded base, in a folder or on the Hub."""
        base = given or adapter.peft_config.base_model_name_or_path
        if not base:
            raise ValueError(f"{adapter.where(ADAPTER_CONFIG)} names no base. Pass {WAY_OUT}.")
        base = os.fspath(base)
        if given is None and is_relative_base(base):
            base = os.path.normpath(adapter.files.folder.absolute() / base)
        try:
            if os.path.isabs(base) and not os.path.isdir(base):
                raise OSError(f"there is no {base}.")
            files = TrackerFiles.find(base, options)
        except OSError as error:
            raise OSError(
                f"Adapter {adapter.files.name} needs its base {base!r}, which cannot be loaded: {error} Pass "
                f"{WAY_OUT}."
            ) from error
        if not files.has(MODEL_CONFIG):
            what = "is itself an adapter" if files.is_adapter else f"has no {MODEL_CONFIG}"
            raise ValueError(f"The base {base!r} of {adapter.files.name} {what}: pass a full model with base_model=.")
        kwargs = kwargs | files.options
        if tracker is None:
            return cls._class_of(files)[1].from_pretrained(base, **kwargs)
        model_class, config = tracker
        try:
            # with its loading info a class leaves it to us to see that an adapter holds what is new on a backbone
            return model_class.from_pretrained(base, config=config, output_loading_info=True, **kwargs)[0]
        except ValueError as error:
            kind = f"{adapter.files.name} ({config.model_type})"
            raise ValueError(f"{base} is no base for adapter {kind}: {error}") from error

    @classmethod
    def _class_of(cls, files: TrackerFiles) -> Classes:
        """The classes of a full model."""
        if not files.has(MODEL_CONFIG):
            raise OSError(f"{files.name} is no tracker: it holds neither {MODEL_CONFIG} nor {ADAPTER_CONFIG}.")
        if files.has(ADAPTER_WEIGHTS) and files.has(ADAPTER_CONFIG):
            raise ValueError(f"{files.name} holds an adapter and a model's {MODEL_CONFIG}. Remove {MODEL_CONFIG}.")
        return cls.classes_of(files.json(MODEL_CONFIG).get("model_type"), f"{files.name}/{MODEL_CONFIG}")

    @classmethod
    def classes_of(cls, model_type: Any, where: str) -> Classes:
        """Config and model of a type; ValueError, which says `where` it stands, for an unknown one."""
        if not isinstance(model_type, str) or model_type not in cls._known:
            way_out = "Upgrade mmtrackers, or import the package that registers it"
            if model_type == "dinov2":
                way_out = "A plain DINOv2 becomes one by LoRATForTracking.from_base or SPMTrackForTracking.from_base"
            raise ValueError(
                f"{where} says model_type {model_type!r}; known trackers: {', '.join(sorted(cls._known))}. {way_out}."
            )
        return cls._known[model_type]
