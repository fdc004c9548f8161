"""What every tracker model shares: its output and its base class."""

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from mmtrackers.hub.adapters import AdapterMixin, PeftConfig, check_uninitialized
from mmtrackers.hub.folders import (
    HUB_OPTIONS,
    MODEL_CONFIG,
    TrackerFiles,
    check_fields,
    check_filled,
    check_floating,
    first_line,
    one_line,
    shorten,
)
from mmtrackers.processing.crops import hann_window
from mmtrackers.tracking.memory import TemplatePolicy


@dataclass
class TrackingOutput(ModelOutput):
    """What a tracker model returns; lengths are fractions of the search crop.

    Args:
        loss (`()`): training loss, auxiliary loss included; only with `labels`.
        loss_parts (`dict[str, Tensor]`): the unweighted terms of the loss and the mean overlap, detached.
        boxes (`[B, 4]`): center x, center y, width, height, decoded without a window.
        score_map (`[B, 1, g, g]`): a cell's score, 0 to 1: center heads, whether it holds the target's center; MLP
            heads, how well its box fits.
        score_logits (`[B, 1, g, g]`): MLP heads: the scores before the sigmoid.
        size_map (`[B, 2, g, g]`): center heads: width and height.
        offset_map (`[B, 2, g, g]`): center heads: x and y offset of the center in its cell, in cells.
        box_map (`[B, 4, g, g]`): MLP heads: every cell's box, x1, y1, x2, y2.
        state (`Tensor`): what the next frame's forward takes as `state`, for trackers that carry one; detached.
        auxiliary_loss (`()`): the tuners' own losses, summed over layers.
        hidden_states, attentions (`tuple[Tensor]`): on request, as in transformers.
    """

    loss: Tensor | None = None
    loss_parts: dict[str, Tensor] | None = None
    boxes: Tensor | None = None
    score_map: Tensor | None = None
    score_logits: Tensor | None = None
    size_map: Tensor | None = None
    offset_map: Tensor | None = None
    box_map: Tensor | None = None
    state: Tensor | None = None
    auxiliary_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def refuse_kernel(attn_implementation: Any) -> None:
    """Raises ValueError where an attention implementation is a kernel from a Hub repository."""
    if "/" in str(attn_implementation):
        raise ValueError(
            f"attn_implementation {attn_implementation!r} is a kernel from the Hub. mmtrackers never runs code from a "
            "repository: take 'sdpa', 'eager' or another one that is installed."
        )


class TrackerPreTrainedModel(AdapterMixin, PreTrainedModel):
    """Base class of all tracker models: loading and saving with an adapter, packing, batch norms of a frozen base."""

    base_model_prefix = "model"
    main_input_name = "search"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # parts of a tracker's checkpoint that a class, a trunk, leaves out
    parts_left_out: tuple[str, ...] = ()
    # whether embed_template reads which cells of a template show the target
    reads_template_mask = False
    # arguments of `compile`
    compiled_with: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __init__(self, config: PreTrainedConfig, *args, **kwargs):
        refuse_kernel(config._attn_implementation)
        super().__init__(config, *args, **kwargs)

    def get_input_embeddings(self) -> None:
        """None: pictures are projected, not looked up. Whoever shards a model asks for it."""

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """As in transformers, but for kernels of Hub repositories, which are code: they raise ValueError."""
        refuse_kernel(attn_implementation)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    @classmethod
    def from_base(
        cls, base: str | Path, modality: str | None = None, adapter_config: PeftConfig | None = None,
        adapter_name: str = "default", **kwargs: Any,
    ) -> "TrackerPreTrainedModel":
        """A base's weights with a fresh, trainable adapter; everything else is frozen.

        Args:
            base (`str` or `Path`): repository or folder of a base of this class's family.
            modality (`str`, *optional*): "rgb" (one stream), or the second stream's "thermal", "depth" or "event"; by
                default what the class's config says.
            adapter_config (`PeftConfig`, *optional*), adapter_name (`str`): the adapter, by default the class's
                published one; its name.
            kwargs: fields of the class's config that replace the base's, or arguments of `from_pretrained`
                (`revision`, `cache_dir`, `dtype`, ...).

        Raises:
            ValueError: a base of another family, tensors of it that are missing or unknown, or no adapter is given and
                the class has none of its own.
        """
        if adapter_config is None and cls.default_adapter is None:
            raise ValueError(f"{cls.__name__} has no adapter of its own: say which, with adapter_config=.")
        loading = {name: kwargs.pop(name) for name in set(kwargs) - own_fields(cls.config_class)}
        loading.setdefault("dtype", "float32")
        config = cls._config_on(TrackerFiles.find(base, loading), modality, kwargs)
        model = cls.from_pretrained(base, config=config, **loading, output_loading_info=True)[0].requires_grad_(False)
        model.add_adapter(adapter_config or cls.default_adapter(), adapter_name=adapter_name)
        check_uninitialized(model, str(base))
        return model.train()

    @classmethod
    def _config_on(cls, base: TrackerFiles, modality: str | None, overrides: dict[str, Any]) -> PreTrainedConfig:
        """The class's config with the fields of a base's, for a modality."""
        values = cls._fields_of(base, overrides)
        modality = modality or overrides.get("modality") or cls.config_class().modality
        values |= {"streams": 1 if modality == "rgb" else 2, "modality": modality}
        if modality != "rgb" and "elimination_layers" in values:
            values["elimination_layers"] = []
        return cls.config_class(**(values | overrides))

    @classmethod
    def _fields_of(cls, base: TrackerFiles, overrides: dict[str, Any]) -> dict[str, Any]:
        """The fields of a base's config; ValueError where it is no base for this class."""
        config = read_config(base, PreTrainedConfig)
        if not issubclass(cls.config_class, type(config)):
            raise ValueError(f"{base.name} is a {config.model_type}, no base for {cls.__name__}.")
        if overrides.get("search_size", config.search_size) != config.search_size:
            raise ValueError(
                f"search_size is {overrides['search_size']}, but {base.name} was made for {config.search_size}, "
                "and its positions with it: leave it out, or take a base of that size."
            )
        return {name: getattr(config, name) for name in own_fields(config)}

    def window(self) -> torch.Tensor:
        """What `decode` takes while tracking: weights `[g, g]` that favor places near the last position."""
        return torch.from_numpy(hann_window(self.config.search_grid))

    @property
    def template_policy(self) -> TemplatePolicy:
        """Which frames of a video are the templates: the first one, unless a model says otherwise."""
        return TemplatePolicy()

    def pack(self) -> None:
        """Prepares the model for inference, in place: see `mmtrackers.modeling.packing.pack_model`."""
        from .packing import pack_model

        pack_model(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args, **kwargs) -> "TrackerPreTrainedModel":
        probe = torch.zeros(1, dtype=self.dtype, device=self.device)
        moved = fn(probe)
        if (moved.dtype, moved.device) != (probe.dtype, probe.device):
            self._refuse_packed("another device or precision (to(), half(), ...)")
        return self if self.is_packed else super()._apply(fn, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_packed("copying or pickling")
        return {name: value for name, value in super().__getstate__().items() if name != "compiled_with"}

    def compile(self, *args, **kwargs) -> None:
        """As torch's; what a `Tracker` makes of the model for a session with an adapter is compiled likewise."""
        super().compile(*args, **kwargs)
        self.compiled_with = (args, kwargs)

    def train(self, mode: bool = True) -> "TrackerPreTrainedModel":
        if mode:
            self._refuse_packed("train()")
        super().train(mode)
        for module in self.modules() if mode else ():
            # frozen batch norms keep their statistics: those belong to the base, not the adapter
            if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Saves the model, or only its adapter when one is injected, to a folder that is made if need be; RuntimeError
        where it is packed. Further arguments go to `mmtrackers.hub.publish.save_adapter` or to transformers."""
        self._refuse_packed("save_pretrained()")
        if self.has_adapter:
            from mmtrackers.hub.publish import save_adapter

            save_adapter(self, save_directory, **kwargs)
        else:
            super().save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, private: bool = False, base_model: str | None = None, **kwargs) -> str:
        """Publishes the model, or its adapter, with a model card; see `mmtrackers.hub.publish.push`. Returns the
        address."""
        from mmtrackers.hub.publish import push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push(folder, repo_id, private=private, base_model=base_model, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "TrackerPreTrainedModel":
        """A model in evaluation mode, from a full checkpoint or an adapter (Hub id, folder, None with `state_dict=`),
        compared tensor by tensor; `kwargs` as for `AutoTracker.from_pretrained`, and `config` (`PreTrainedConfig`).

        Raises:
            OSError: repository or files not found, unreachable, corrupt or truncated.
            ValueError: a checkpoint of another class; tensors missing, unexpected or of another shape; an option by
                which code of a repository would run.
            RuntimeError: another thread is in accelerate's `init_empty_weights()`.
        """
        refused = {"trust_remote_code", "use_kernels", "kernel_config", "allow_all_kernels"}
        if given := sorted(name for name in refused if kwargs.pop(name, None)):
            raise ValueError(f"mmtrackers never runs code from a repository: leave {', '.join(given)} out.")
        if pretrained_model_name_or_path is None:
            return cls._load(None, kwargs)
        files = TrackerFiles.find(pretrained_model_name_or_path, kwargs)
        if files.is_adapter:
            from mmtrackers.hub.auto import AutoTracker

            model = AutoTracker.from_pretrained(files.name, **kwargs)
            if not isinstance(model, cls):
                raise ValueError(f"{files.name} is an adapter for {type(model).__name__}, not for {cls.__name__}.")
            return model
        return cls._load(files, {name: value for name, value in kwargs.items() if name not in HUB_OPTIONS})

    @classmethod
    def _load(cls, files: TrackerFiles | None, options: dict[str, Any]) -> Any:
        """The model of a full checkpoint, or of `options["state_dict"]`."""
        config = options.pop("config", None)
        config = copy.deepcopy(config) if config is not None else read_config(files, cls.config_class)
        if not isinstance(config, cls.config_class):
            raise ValueError(
                f"{files.name if files else 'The given config'} is a {config.model_type}, not for {cls.__name__}: "
                "AutoTracker.from_pretrained finds the class, from_base makes another tracker of a base."
            )
        for name in own_fields(config) & set(options):
            setattr(config, name, options.pop(name))
        return cls._load_checked(files, config, options)

    @classmethod
    def _load_checked(
        cls, files: TrackerFiles | None, config: PreTrainedConfig, options: dict[str, Any],
        may_miss: Callable[[str], bool] | None = None,
    ) -> Any:
        """transformers' loading, which reports at most, with errors."""
        with_info, name = options.pop("output_loading_info", False), files.name if files else "The given model"
        options |= {"config": config, "output_loading_info": True, "use_safetensors": True}
        options["ignore_mismatched_sizes"] = True  # all of them are named below, instead of the first
        folder = files.with_weights() if files and "state_dict" not in options else None
        try:
            with quiet_loading():
                model, info = super().from_pretrained(folder, **options)
        except SafetensorError as error:
            raise OSError(
                f"{name}: a weight file is corrupt or truncated ({first_line(error)}). Download or copy it again."
            ) from error
        if files:
            model.name_or_path = model.config.name_or_path = files.name
            model.processor_config = files.processor_config()
        info["unexpected_keys"] = {key for key in info["unexpected_keys"] if not key.startswith(cls.parts_left_out)}
        model.uninitialized_keys = frozenset(filter(may_miss, info["missing_keys"]) if may_miss else ())
        info["missing_keys"] = set(info["missing_keys"]) - model.uninitialized_keys
        wrong = {f"{key} {list(found)} (expected {list(wanted)})" for key, found, wanted in info["mismatched_keys"]}
        kinds = {"missing": info["missing_keys"], "unexpected": info["unexpected_keys"], "of another shape": wrong}
        if problems := [f"{len(keys)} {kind}: {shorten(sorted(keys))}" for kind, keys in kinds.items() if keys]:
            raise ValueError(
                f"{name} does not fit {cls.__name__}: {'; '.join(problems)}. The file is incomplete or belongs to "
                "another model."
            )
        if folder is not None:
            check_floating(folder, model, name)
        if not getattr(model, "hf_device_map", None):  # which may leave weights on disk
            check_filled(model.named_parameters(), name)
        return (model, info) if with_info else model


def read_config(files: TrackerFiles, config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The config of a full model, of its own class; of `config_class` where its `model_type` is that one's."""
    content = files.json(MODEL_CONFIG)
    check_fields(content, f"{files.name}/{MODEL_CONFIG}", model_type=str)
    try:
        if content.get("model_type") == config_class.model_type:
            return config_class.from_dict(content)
        return AutoConfig.from_pretrained(files.folder, trust_remote_code=False)
    except (TypeError, ValueError, ArithmeticError, StrictDataclassError) as error:
        raise ValueError(f"{files.name}/{MODEL_CONFIG}: {one_line(error)}") from error


def own_fields(config: PreTrainedConfig | type[PreTrainedConfig]) -> set[str]:
    """Names of the fields that a config has beside those of every config."""
    return {field.name for field in fields(config)} - {field.name for field in fields(PreTrainedConfig)}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' warnings on loading, such as its table of tensors that do not fit, which advises training:
    what does not fit is an error here."""
    log = logging.getLogger("transformers.modeling_utils")

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    log.addFilter(errors_only)
    try:
        yield
    finally:
        log.removeFilter(errors_only)
