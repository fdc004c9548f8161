"""What an adapter folder holds, and the checks that both sides of it share.

``hub.py`` writes adapter folders, ``auto.py`` reads them. Both need the same four answers: which tensors of a model
belong to an adapter, which belong to the base, was the adapter trained on *this* base, and is an adapter's name safe.
"""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from torch import nn

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRACKER_CONFIG = "tracker_config.json"
MODEL_CONFIG = "config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
KEY_PREFIX = "base_model.model."

FINGERPRINT_TENSORS = 8
FINGERPRINT_VALUES = 8
# bfloat16 rounds by at most 2**-9 of a value: a base re-saved in bfloat16 still is the same base
FINGERPRINT_RTOL = 2.0**-8
FINGERPRINT_ATOL = 1e-6


def inner_model(model: nn.Module) -> nn.Module:
    """The tracker itself: ``model``, or what a ``PeftModel`` wraps."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters injected into ``model`` (empty list: none)."""
    return list(getattr(inner_model(model), "peft_config", None) or {})


def active_adapter(model: nn.Module) -> str:
    """Name of the one active adapter.

    Raises:
        ValueError: no adapter is injected, or several are active at once.
    """
    names = adapter_names(model)
    if not names:
        raise ValueError(
            f"{type(inner_model(model)).__name__} has no adapter. Inject one with add_adapter(config), or "
            "load one with load_adapter(folder)."
        )
    active: set[str] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            active.update(module.active_adapters)
    if len(active) == 1:
        return active.pop()
    if len(names) == 1:
        return names[0]
    raise ValueError(
        f"{len(active)} of the adapters {sorted(names)} are active, a file holds one: choose it with "
        "model.set_adapter(name) or adapter_name=."
    )


def bound_copy(model: nn.Module, adapter_name: str) -> nn.Module:
    """A model of its own that shares all weights with ``model`` and in which one adapter is active.

    Only modules are copied, no tensor: what is switched on ``model`` afterwards does not reach the copy, and the other
    way round, so that several can be used at a time.

    Args:
        model: a tracker with injected adapters, not packed.
        adapter_name: the adapter that is active in the copy.

    Raises:
        ValueError: there is no such adapter.
    """
    if adapter_name not in adapter_names(model):
        known = ", ".join(sorted(adapter_names(model))) or "none"
        raise ValueError(f"There is no adapter {adapter_name!r}; loaded: {known}. Tracker.add_adapter loads another.")
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    for module in twin.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            # not by set_adapter, which would change requires_grad of the shared tensors
            module._active_adapter = [adapter_name]
            module._disable_adapters = False
    return twin


def adapter_state_dict(model: nn.Module, adapter_name: str) -> dict[str, torch.Tensor]:
    """Tensors of one adapter (modules-to-save included) under the names that they have in its file."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {KEY_PREFIX + key.removeprefix(KEY_PREFIX): value for key, value in state.items()}


def base_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of the base under the base's own names, whether or not adapters are injected."""
    model = inner_model(model)
    skipped: list[str] = []
    for name, module in model.named_modules():
        kept = {"base_layer"} if isinstance(module, BaseTunerLayer) else set()
        if isinstance(module, AuxiliaryTrainingWrapper):
            kept = {"original_module"}
        if kept:
            parts = [*dict(module.named_children()), *dict(module.named_parameters(recurse=False))]
            parts += list(dict(module.named_buffers(recurse=False)))
            skipped += [f"{name}.{part}" for part in parts if part not in kept]
    prefixes = tuple(f"{name}." for name in skipped)
    names = set(skipped)
    state = {}
    for key, value in model.state_dict().items():
        if key not in names and not key.startswith(prefixes):
            state[key.replace(".base_layer.", ".").replace(".original_module.", ".")] = value
    return state


def _samples(tensor: torch.Tensor) -> list[float]:
    step = max(1, tensor.numel() // FINGERPRINT_VALUES)
    return tensor.detach().reshape(-1)[::step][:FINGERPRINT_VALUES].float().cpu().tolist()


def base_fingerprint(model: nn.Module) -> dict[str, dict[str, list]]:
    """A few numbers by which a base is recognised: shape and eight values of eight weights spread over the model.

    Values instead of a hash, so that the same base in bfloat16, float16 or float32 is still the same base.
    """
    state, new = base_state_dict(model), getattr(inner_model(model), "new_tensors", ())
    names = sorted(
        name for name, t in state.items()
        if t.ndim >= 2 and t.is_floating_point() and not t.is_meta and name not in new
    )  # fmt: skip
    chosen = names[:: max(1, math.ceil(len(names) / FINGERPRINT_TENSORS))]
    return {name: {"shape": list(state[name].shape), "values": _samples(state[name])} for name in chosen}


def fingerprint_difference(recorded: dict[str, dict[str, list]], model: nn.Module) -> str | None:
    """First way in which ``model``'s base differs from a recorded fingerprint, in words; None if it agrees."""
    state = base_state_dict(model)
    for name, facts in recorded.items():
        tensor = state.get(name)
        if tensor is None:
            return f"it has no tensor {name!r}"
        if list(tensor.shape) != list(facts["shape"]):
            return f"its {name!r} has shape {list(tensor.shape)}, the adapter's base had {list(facts['shape'])}"
        if tensor.is_meta:
            continue
        for mine, theirs in zip(_samples(tensor), facts["values"], strict=True):
            if not abs(mine - theirs) <= FINGERPRINT_RTOL * abs(theirs) + FINGERPRINT_ATOL:
                return f"its {name!r} holds {mine:.6g} where the adapter's base held {theirs:.6g}"
    return None


def check_adapter_name(model: nn.Module, adapter_name: str) -> None:
    """Refuse adapter names that peft would confuse with names inside the model.

    peft marks adapter tensors by putting the adapter's name into the dotted parameter name, so a name that equals a
    module's name ("head") or lies inside a tuner's prefix ("lora" in "amg_lora_") is later removed at the wrong place.

    Raises:
        ValueError: the name is empty, has a dot, equals a module's name or is part of a tuner's prefix.
    """
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
            raise ValueError(
                f"Adapter name {adapter_name!r} is part of the parameter prefix {prefix!r}. Choose another one, "
                "such as 'thermal'."
            )


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
    problems = [
        f"{len(names)} {what}: {shorten(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise ValueError(
            f"{source} does not fit the model ({len(expected)} tensors expected, {len(found)} in the file): "
            + "; ".join(problems)
            + ". Nothing was loaded: the file is incomplete, or made for another base or another configuration."
        )


def cast_saved_modules(model: nn.Module, adapter_name: str) -> None:
    """Puts modules that train in full with an adapter in float32, as its own tensors are, whatever the base is in.

    Only modules that take tokens of another precision: embeddings, and those that say so by `takes_any_dtype`.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            saved = module.modules_to_save[adapter_name]
            if isinstance(saved, nn.Embedding) or getattr(saved, "takes_any_dtype", False):
                saved.float()


def check_new_tensors(model: nn.Module, base: str) -> None:
    """Refuse an adapter that leaves tensors random which its base, a plain backbone, does not hold.

    Raises:
        ValueError: some of `model.new_tensors` are not among the adapter's modules-to-save; they are named.
    """
    replaced = tuple(f"{n}." for n, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))
    left = sorted(name for name in getattr(model, "new_tensors", ()) if not name.startswith(replaced))
    if left:
        modules = sorted({name.rpartition(".")[0] for name in left})
        raise ValueError(
            f"{base} is a plain backbone without {shorten(modules)}, and the adapter does not hold them: they would "
            "stay random. Name them in the adapter's modules_to_save, or use a whole tracker as base."
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
