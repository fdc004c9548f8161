"""What we stand on that is not ours: where it is touched, and that it is still there."""

import ast
import pickle
from pathlib import Path

import peft.functional
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from mmtrackers import TrackerPreTrainedModel

PACKAGE = Path(__file__).resolve().parents[1] / "mmtrackers"


def imports(package: str) -> dict[str, set[str]]:
    """Module of ours -> dotted names that it imports from another package."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == package:
                found.setdefault(module, set()).update(f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names if alias.name.split(".")[0] == package}
                found.setdefault(module, set()).update(names)
    return {module: names for module, names in found.items() if names}


def private(names: set[str]) -> set[str]:
    return {name for name in names if any(part.startswith("_") for part in name.split("."))}


def test_peft_is_known_in_one_file_and_the_tuners() -> None:
    files = {module for module in imports("peft") if not module.startswith("tuners/")}
    assert files == {"hub/adapters.py", "register.py"}


def test_nothing_private_is_imported() -> None:
    for package in ("peft", "transformers", "accelerate", "datasets", "huggingface_hub", "safetensors"):
        assert {m: p for m, names in imports(package).items() if (p := private(names))} == {}, package


def test_peft_still_has_what_its_functions_and_tuners_are_used_by() -> None:
    assert set(peft.functional.__all__) >= {
        "cast_adapter_dtype", "delete_adapter", "get_peft_model_state_dict", "inject_adapter_in_model", "set_adapter",
        "set_peft_model_state_dict",
    }  # fmt: skip
    for table in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
        assert type(table) is dict and {"LORA", "AMG_LORA", "TMOE"} <= {str(getattr(k, "value", k)) for k in table}
    hooks = ("_create_and_replace", "_prepare_adapter_config", "_replace_module", "_check_merge_allowed")
    for hook in (*hooks, "_remove_adapter_name_from_key"):
        assert hasattr(BaseTuner, hook), hook
    for name in ("_move_adapter_to_device_of_base_layer", "get_base_layer", "active_adapters", "merge", "set_adapter"):
        assert hasattr(BaseTunerLayer, name), name
    layer = ModulesToSaveWrapper(nn.Linear(1, 1), "default")
    assert isinstance(layer, AuxiliaryTrainingWrapper)
    # set by hand in copies that share weights, where `set_adapter` would change what requires gradients
    assert layer._active_adapter == ["default"] and layer._disable_adapters is False


def test_transformers_mixin_is_replaced_method_by_method() -> None:
    """A method of its adapter mixin that ours does not replace would act on an integration that is not used."""
    theirs = next(kind for kind in PreTrainedModel.__mro__ if kind.__name__ == "PeftAdapterMixin")
    methods = {name for name, value in vars(theirs).items() if callable(value) and not name.startswith("_")}
    ours = {name for kind in TrackerPreTrainedModel.__mro__ if kind.__module__.startswith("mmtrackers.")
            for name in vars(kind)}  # fmt: skip
    assert methods - ours == {"enable_peft_hotswap"}  # of LoRA alone, and of no use here


def test_python_still_has_the_reader_of_pickles() -> None:
    assert pickle._Unpickler.dispatch
