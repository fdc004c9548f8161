"""Registration of own tuners with peft, whose own registry is closed to third parties, and their common base."""

from enum import StrEnum

from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from torch import nn


class TrackerPeftType(StrEnum):
    """Tuners of this package; a member's name equals its value, as peft looks types up by the string."""

    AMG_LORA = "AMG_LORA"
    PROGRESSIVE = "PROGRESSIVE"
    SDMOE = "SDMOE"
    TMOE = "TMOE"


def register_tuner(peft_type: TrackerPeftType, config_class: type[PeftConfig], tuner_class: type[BaseTuner]) -> None:
    """Enters a tuner into peft's tables; calling it again with the same classes is harmless.

    Args:
        peft_type (`TrackerPeftType`): the type that `adapter_config.json` names.
        config_class, tuner_class: its config and its tuner.

    Raises:
        ValueError: the prefix is not the lower-case type and an underscore, or another tuner has this type.
    """
    prefix = f"{peft_type.value.lower()}_"
    if tuner_class.prefix != prefix:
        raise ValueError(f"The prefix of {tuner_class.__name__} must be {prefix!r}, got {tuner_class.prefix!r}.")
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type, tuner_class)
    if known is not tuner_class:
        raise ValueError(f"peft type {peft_type.value} is taken by {known.__name__}.")
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_class
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner_class
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = prefix


class TrackerTuner(BaseTuner):
    """What this package's tuners share: targets without weights, nested adapter modules, and no merging.

    Seams have no parameters, so the device of a new layer is taken from the parent's nearest parameter.
    """

    no_merge_reason = "its adapters mix tokens or streams"

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)
        reference = next(child.parameters(), None)
        if reference is None:
            reference = next(self.model.parameters())
        if reference.device.type != "meta":
            for name, module in new_module.named_modules():
                if name != "base_layer" and not name.startswith("base_layer."):
                    for parameter in module.parameters(recurse=False):
                        if not parameter.is_meta:  # low_cpu_mem_usage: filled when the file is read
                            parameter.data = parameter.data.to(reference.device)

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            f"A {type(self).__name__} adapter cannot be merged into the base: {self.no_merge_reason}. Keep the "
            "adapter, call unload() to get the base back, or model.pack() for fast inference."
        )

    def merge_and_unload(self, *args, **kwargs) -> nn.Module:
        self._check_merge_allowed()

    def add_weighted_adapter(self, *args, **kwargs) -> None:
        """Not defined for these tuners."""
        raise NotImplementedError(f"{type(self).__name__} adapters cannot be combined by weights.")
