"""Adapters on a tracker, by peft's public functions: besides `tuners/` the only file that knows how peft works.

`AdapterMixin` stands where transformers has a mixin of its own, which checks at every call for a peft of its choice.
"""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel
from peft.functional import (
    cast_adapter_dtype,
    delete_adapter,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_adapter,
    set_peft_model_state_dict,
)
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from .fingerprints import check_fingerprint, fingerprint_difference
from .folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    TRACKER_CONFIG,
    TrackerFiles,
    check_fields,
    check_filled,
    check_tensors,
    first_line,
    one_line,
    read_safetensors,
    sha256,
    shorten,
)
from .patterns import check_patterns

KEY_PREFIX = "base_model.model."
# no rank, number of experts or seed is larger; one in a file is broken, or meant to fill the memory
LARGEST_NUMBER = 16_384
# of peft's own types those that folders may name: some of the others compile code, and no tracker uses them
LOADED_TYPES = {"LORA"}


def adapter_config_class(peft_type: str | None) -> type[PeftConfig] | None:
    """The config class of a type of adapter, as `adapter_config.json` names it; None for an unknown one."""
    return PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter in a folder, not yet on a model: what `adapter_config.json` says, and the `record` in
    `tracker_config.json`, empty where peft alone wrote the folder."""

    files: TrackerFiles
    peft_config: PeftConfig
    record: dict[str, Any]

    @classmethod
    def read(cls, files: TrackerFiles) -> "AdapterFolder":
        """Reads the two JSON files; OSError where one is missing or broken, ValueError for a field that cannot be
        meant, or a type of adapter that is not loaded from folders."""
        where, content = f"{files.name}/{ADAPTER_CONFIG}", files.json(ADAPTER_CONFIG)
        check_fields(content, where, peft_type=str, base_model_name_or_path=str | None, revision=str | None)
        if huge := sorted(name for name, value in content.items() if type(value) is int and value > LARGEST_NUMBER):
            raise ValueError(f"{where}: {huge[0]!r} is {content[huge[0]]}, more than {LARGEST_NUMBER}.")
        check_patterns(content, where)
        kind = content.get("peft_type")
        ours = {str(n) for n, of in PEFT_TYPE_TO_CONFIG_MAPPING.items() if not of.__module__.startswith("peft.")}
        if kind not in (known := LOADED_TYPES | ours):  # with those that packages entered into peft
            raise ValueError(
                f"{where} says peft_type {kind!r}; loaded are {', '.join(sorted(known))}, "
                "as some of peft's types compile code. Upgrade mmtrackers, import the package that registers it, or "
                "add a type of peft's own that you trust to mmtrackers.hub.adapters.LOADED_TYPES."
            )
        try:
            peft_config = PeftConfig.from_pretrained(str(files.folder))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{where} describes no {kind} adapter: {first_line(error)}") from error
        record = {}
        if files.has(TRACKER_CONFIG):
            record, where = files.json(TRACKER_CONFIG), f"{files.name}/{TRACKER_CONFIG}"
            check_fields(record, where, model_type=str, config=dict, base_fingerprint=dict, adapter_sha256=str)
            record = {"model_type": None, "config": {}, "base_fingerprint": {}} | record
            check_fingerprint(record["base_fingerprint"], where)
        return cls(files, peft_config, record)

    def where(self, file: str) -> str:
        """A file of it, as errors name it."""
        return f"{self.files.name}/{file}"

    def config(self, config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
        """The tracker's config; ValueError for fields of it that cannot be meant."""
        try:
            return config_class.from_dict(dict(self.record["config"]))
        except (TypeError, ValueError, ArithmeticError, StrictDataclassError) as error:
            where = f"{self.where(TRACKER_CONFIG)}: 'config'"
            raise ValueError(f"{where} is no {config_class.__name__}: {one_line(error)}") from error

    def check_whole(self) -> None:
        """Raises OSError where the file of tensors is another one than was saved."""
        found = sha256(self.files.folder / ADAPTER_WEIGHTS)
        if self.record.get("adapter_sha256", found) != found:
            raise OSError(
                f"{self.where(ADAPTER_WEIGHTS)} has changed since it was saved ({TRACKER_CONFIG} holds its SHA-256). "
                "Download or copy it again, or save the adapter anew."
            )


class AdapterMixin:
    """What a tracker model does with adapters, in place of transformers' `PeftAdapterMixin`.

    Several adapters of one type may be loaded; one is active at a time.
    """

    # the adapter that the system was published with, if it has one
    default_adapter: Callable[[], PeftConfig] | None = None
    is_packed = False
    # second streams of loaded adapters, where they are told
    adapter_modalities: Mapping[str, str] = MappingProxyType({})
    # crop settings that lay beside the weights, or beside the adapter
    processor_config: dict[str, Any] | None = None
    # tensors that loading did not find in a plain backbone: random until they are trained or come with an adapter
    uninitialized_keys: frozenset[str] = frozenset()

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is injected."""
        return bool(getattr(self, "peft_config", None))

    def active_adapters(self) -> list[str]:
        """Names of the active adapters."""
        layers = (module for module in self.modules() if isinstance(module, BaseTunerLayer))
        return list(next((layer.active_adapters for layer in layers), []))

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """Injects a fresh adapter in float32, named "default" by default, makes it the active one and lets it train;
        the base is frozen. ValueError where the name is taken or unsafe, or the adapter cannot stand on this model,
        which stays as it was."""
        self._refuse_packed("add_adapter()")
        if not isinstance(adapter_config, PeftConfig):
            raise TypeError(f"adapter_config is a {type(adapter_config).__name__}, expected a PeftConfig.")
        name = adapter_name or "default"
        adapter_config.base_model_name_or_path = self.__dict__.get("name_or_path")
        with self._injected(adapter_config, name):
            set_adapter(self, name)

    def load_adapter(
        self, source: str | os.PathLike[str], adapter_name: str = "default", revision: str | None = None,
        is_trainable: bool = False, **hub: Any,
    ) -> str:
        """Puts a saved adapter on this model, compared tensor by tensor; an adapter that is active stays active.

        Args:
            source (`str` or `PathLike`): folder or Hub id of an adapter for this kind of tracker and this base.
            adapter_name (`str`): its name in the model.
            is_trainable (`bool`): let the adapter's parameters require gradients.
            revision (`str`, *optional*), hub: branch, tag or commit; `cache_dir`, `local_files_only`, `token`, ...

        Returns:
            `str`: modality of the adapter's second stream.

        Raises:
            OSError: not found; a file is missing, corrupt or truncated.
            ValueError: another kind of adapter or tracker, another base, a name that is taken or unsafe, tensors that
                do not fit. The model is then as before.
        """
        self._refuse_packed("load_adapter()")
        adapter = AdapterFolder.read(TrackerFiles.find(source, hub | {"revision": revision}))
        model_type = adapter.record.get("model_type", self.config.model_type)
        mine = {config.peft_type for config in getattr(self, "peft_config", {}).values()}
        kind = adapter.peft_config.peft_type
        if model_type != self.config.model_type or mine - {kind}:
            raise ValueError(
                f"{adapter.files.name} is a {kind.value} adapter for {model_type}; this tracker is a "
                f"{self.config.model_type}{' with ' + min(mine).value if mine else ''}. Load it as a tracker of its "
                "own that shares the base: Tracker.from_pretrained(repo, base_model=base), with the loaded base."
            )
        self._put_on(adapter, adapter_name, is_trainable)
        return self.adapter_modalities[adapter_name]

    def _put_on(self, adapter: AdapterFolder, name: str, is_trainable: bool) -> None:
        """Injects an adapter, compares base, names and shapes with its files, and only then copies the tensors in."""
        if different := fingerprint_difference(adapter.record.get("base_fingerprint", {}), base_state_dict(self)):
            base = self.name_or_path or "the given model"
            raise ValueError(
                f"Adapter {adapter.files.name} was trained on another base than {base}: {different}. Pass the right "
                "one with base_model= (or base_revision=)."
            )
        tensors = read_safetensors(adapter.files.folder / ADAPTER_WEIGHTS, adapter.files.name)
        config = copy.copy(adapter.peft_config)
        config.inference_mode = not is_trainable
        active, enabled = self.active_adapters(), self.adapters_enabled
        before = {id(parameter): parameter.requires_grad and bool(active) for parameter in self.parameters()}
        with self._injected(config, name):
            fill_adapter(self, name, tensors, adapter.where(ADAPTER_WEIGHTS))
            adapter.check_whole()
            check_uninitialized(self, self.name_or_path)
        config.base_model_name_or_path = self.name_or_path
        modality = adapter.record.get("config", {}).get("modality", self.config.modality)
        self.adapter_modalities = self.adapter_modalities | {name: modality}
        set_adapter(self, active or [name])
        for parameter in self.parameters():  # of the base and of other adapters as before
            parameter.requires_grad_(before.get(id(parameter), is_trainable))
        if not enabled:
            self._switch(False)

    @contextmanager
    def _injected(self, config: PeftConfig, name: str) -> Iterator[None]:
        """peft's layers for a new adapter round the block, with their mode; out again where an error leaves it."""
        if name in adapter_names(self):
            raise ValueError(f"The model has an adapter {name!r} already: choose another name.")
        check_adapter_name(self, name)
        active, modes = self.active_adapters(), {id(module): module.training for module in self.modules()}
        trained = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        try:
            with warnings.catch_warnings():
                # two adapters on one model are what this call is for
                warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
                inject_adapter_in_model(config, self, name)
            if self.device.type != "meta":
                known = {id(parameter) for parameter, _ in trained}
                new = ((n, p) for n, p in self.named_parameters() if id(p) not in known)
                check_filled(new, f"Adapter {name!r}")
            cast_adapter_dtype(self, name)  # float32 whatever the base is in, as get_peft_model does
            for module in self.modules():
                module.training = modes.get(id(module), self.training)
                if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
                    saved = module.modules_to_save[name]
                    # others would not take tokens of another precision
                    if isinstance(saved, nn.Embedding) or getattr(saved, "takes_any_dtype", False):
                        saved.float()
            yield
        except BaseException:
            if active:
                set_adapter(self, active)
            self._take_off(name)
            for parameter, flag in trained:
                parameter.requires_grad_(flag)
            raise

    def _take_off(self, name: str) -> None:
        configs = getattr(self, "peft_config", {})
        if name in configs:
            delete_adapter(self, name, prefix=PEFT_TYPE_TO_PREFIX_MAPPING[configs.pop(name).peft_type])
        if not configs:
            self.__dict__.pop("peft_config", None)
        for module in list(self.modules()):  # plain modules again where peft's layers hold no adapter any more
            for place, child in list(module.named_children()):
                if isinstance(child, BaseTunerLayer) and not any(getattr(child, n) for n in child.adapter_layer_names):
                    setattr(module, place, child.get_base_layer())
                elif isinstance(child, ModulesToSaveWrapper) and not child.modules_to_save:
                    setattr(module, place, child.original_module)

    def set_adapter(self, adapter_name: str) -> None:
        """Makes a loaded adapter the active one; it trains if it was added or loaded to be trained. ValueError where
        there is none of this name; RuntimeError where the model is packed (so for all that changes its adapters)."""
        self._refuse_packed("set_adapter()")
        check_loaded(self, adapter_name)
        set_adapter(self, adapter_name, inference_mode=self.peft_config[adapter_name].inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Takes an adapter out; without the last one the model is the base again."""
        self._refuse_packed("delete_adapter()")
        check_loaded(self, adapter_name)
        self._take_off(adapter_name)

    def enable_adapters(self) -> None:
        """Switches the adapters on again, with the modules that they trained in full."""
        self._switch(True)

    def disable_adapters(self) -> None:
        """The base alone, bit for bit, until `enable_adapters`."""
        self._switch(False)

    def _switch(self, on: bool) -> None:
        self._refuse_packed("enable_adapters()" if on else "disable_adapters()")
        if not self.has_adapter:
            raise ValueError(f"{type(self).__name__} has no adapter to switch on or off.")
        for module in self.modules():
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                module.enable_adapters(enabled=on)

    @property
    def adapters_enabled(self) -> bool:
        """Whether its adapters act, if it has any: False after `disable_adapters`."""
        return not any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in self.modules())

    def get_adapter_state_dict(self, adapter_name: str | None = None) -> dict[str, torch.Tensor]:
        """Tensors of an adapter, by default the active one, under the names that they have in its file."""
        return adapter_state_dict(self, adapter_name or active_adapter(self))

    def merge_and_unload(self) -> "AdapterMixin":
        """Adds the active adapter to the weights and takes it away, in place: a plain model with the same numbers, in
        evaluation mode. ValueError for no adapter, several active ones, or one whose effect no weight can hold."""
        self._refuse_packed("merge_and_unload()")
        name = active_adapter(self)
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[self.peft_config[name].peft_type]
        getattr(tuner, "refuse_merge", lambda: None)()
        with torch.no_grad():
            for module in list(self.modules()):
                for place, child in list(module.named_children()):
                    if isinstance(child, (BaseTunerLayer, ModulesToSaveWrapper)):
                        setattr(module, place, merged(child))
        del self.peft_config
        self.uninitialized_keys = frozenset()
        return self.eval()

    def _refuse_packed(self, what: str) -> None:
        if self.is_packed:
            raise RuntimeError(
                f"{what} on a packed model: its weights are merged, and laid out for this machine. Load the model "
                "again; pack() comes last."
            )


def merged(layer: nn.Module) -> nn.Module:
    """The plain layer that computes what `layer` does with its active adapters; `layer` itself stays as it is."""
    if isinstance(layer, ModulesToSaveWrapper):
        active = [] if layer.disable_adapters else layer.active_adapters
        return layer.modules_to_save[active[0]] if active else layer.original_module
    if not isinstance(layer, BaseTunerLayer):
        return layer
    if layer.disable_adapters or layer.merged:
        return layer.get_base_layer()
    names = [name for name in layer.active_adapters if name in getattr(layer, layer.adapter_layer_names[0])]
    layer = copy.deepcopy(layer)
    if type(layer).merge is not BaseTunerLayer.merge:
        layer.merge(adapter_names=names)
        return layer.get_base_layer()
    base = layer.get_base_layer()
    for name in names:
        base.weight.data = (base.weight.float() + layer.get_delta_weight(name).float()).to(base.weight.dtype)
    return base


def fill_adapter(model: nn.Module, adapter_name: str, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copies tensors, by the names of an adapter's file, into an injected adapter: all of them, or none after a
    ValueError for names or shapes that do not fit."""
    check_tensors(adapter_state_dict(model, adapter_name), tensors, source)
    # without peft's prefix, as the model is no PeftModel: modules-to-save are looked up by their bare names
    bare = {key.removeprefix(KEY_PREFIX): value for key, value in tensors.items()}
    set_peft_model_state_dict(model, bare, adapter_name=adapter_name)


def inner_model(model: nn.Module) -> nn.Module:
    """The tracker itself: `model`, or what a `PeftModel` wraps."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters injected into `model` (empty list: none)."""
    return list(getattr(inner_model(model), "peft_config", None) or {})


def check_loaded(model: nn.Module, adapter_name: str) -> None:
    """Raises ValueError where a model has no adapter of this name."""
    if adapter_name not in adapter_names(model):
        known = ", ".join(sorted(adapter_names(model))) or "none"
        raise ValueError(f"There is no adapter {adapter_name!r}; loaded: {known}. Load it first, by load_adapter.")


def active_adapter(model: nn.Module) -> str:
    """Name of the one active adapter; ValueError where none is injected, or several are active at once."""
    names = adapter_names(model)
    if not names:
        raise ValueError(
            f"{type(inner_model(model)).__name__} has no adapter. Inject one with add_adapter(config), or "
            "load one with load_adapter(folder)."
        )
    active = {n for layer in model.modules() if isinstance(layer, BaseTunerLayer) for n in layer.active_adapters}
    if len(active) == 1:
        return active.pop()
    if len(names) == 1:
        return names[0]
    raise ValueError(f"{len(active)} of the adapters {sorted(names)} are active: choose one with set_adapter(name).")


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the parameters only (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def copy_of_modules(model: nn.Module) -> nn.Module:
    """A copy of a model's modules, round the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def weight_sharing_copy(model: nn.Module, adapter_name: str | None) -> nn.Module:
    """A model of its own that shares all weights with `model`, in which one adapter is active for good, or none
    (None): what is switched on `model` afterwards does not reach it."""
    if adapter_name is not None:
        check_loaded(model, adapter_name)
    twin = copy_of_modules(model)
    for module in twin.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            # not by set_adapter, which would change requires_grad of the shared tensors
            module._disable_adapters = adapter_name is None
            if adapter_name is not None:
                module._active_adapter = [adapter_name]
    if compiled := getattr(model, "compiled_with", None):
        twin.compile(*compiled[0], **compiled[1])
    return twin


def adapter_state_dict(model: nn.Module, adapter_name: str) -> dict[str, torch.Tensor]:
    """Tensors of one adapter, modules-to-save included, under the names that they have in its file."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {KEY_PREFIX + key.removeprefix(KEY_PREFIX): value for key, value in state.items()}


def base_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of the base under the base's own names, whether or not adapters are injected."""
    model, state = inner_model(model), {}
    plain = {
        name: "base_layer" if isinstance(module, BaseTunerLayer) else "original_module"
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }
    for key, value in model.state_dict().items():
        parts = key.split(".")
        wrapped = {i: plain[place] for i in range(len(parts)) if (place := ".".join(parts[:i])) in plain}
        if all(parts[i] == inner for i, inner in wrapped.items()):
            state[".".join(part for i, part in enumerate(parts) if i not in wrapped)] = value
    return state


def check_adapter_name(model: nn.Module, adapter_name: str) -> None:
    """Refuses names that peft, which marks an adapter's tensors by its name in their dotted ones, would remove at the
    wrong place: one that equals a module's ("head") or lies in a tuner's prefix ("lora")."""
    if not adapter_name or "." in adapter_name:
        raise ValueError(f"Adapter name {adapter_name!r}: expected a non-empty name without dots, such as 'thermal'.")
    modules = {part for name, _ in inner_model(model).named_modules() for part in name.split(".")}
    modules -= set(adapter_names(model))
    if adapter_name in modules:
        raise ValueError(
            f"Adapter name {adapter_name!r} is also the name of a module of {type(inner_model(model)).__name__}; peft "
            "could not tell them apart in saved files. Choose another one, such as 'thermal'."
        )
    for prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values():
        if adapter_name in prefix:
            raise ValueError(f"The name {adapter_name!r} is part of the parameter prefix {prefix!r}, choose another.")


def check_uninitialized(model: nn.Module, base: str) -> None:
    """Refuse an adapter that leaves tensors random which its base, a plain backbone, does not hold."""
    replaced = tuple(f"{n}." for n, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))
    left = sorted(name for name in getattr(model, "uninitialized_keys", ()) if not name.startswith(replaced))
    if left:
        modules = sorted({name.rpartition(".")[0] for name in left})
        raise ValueError(
            f"{base} is a plain backbone without {shorten(modules)}, and the adapter does not hold them: they would "
            "stay random. Name them in the adapter's modules_to_save, or use a whole tracker as base."
        )
