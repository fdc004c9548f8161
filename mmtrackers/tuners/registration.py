"""Types of this package's tuners, and what their layers and the tuners have in common."""

import itertools
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn


class TrackerPeftType(StrEnum):
    """Tuners of this package; a member's name equals its value, as peft looks types up by the string."""

    AMG_LORA = "AMG_LORA"
    PROGRESSIVE = "PROGRESSIVE"
    SDMOE = "SDMOE"
    TMOE = "TMOE"


@dataclass
class TrackerTunerConfig(PeftConfig):
    """Fields of all adapters of this package, as in peft; `target_modules` follow from the others by default."""

    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None

    own_type: ClassVar[TrackerPeftType]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.own_type
        self.check()
        if self.target_modules is None:
            self.target_modules = self.default_targets()
        elif isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)

    def check(self) -> None:
        """Raises ValueError where fields are out of range or contradict each other."""

    def default_targets(self) -> str:
        """A pattern of the modules that the adapter goes to."""
        raise NotImplementedError


class TrackerTunerLayer(nn.Module, BaseTunerLayer):
    """What the layers of this package's tuners share: one active adapter at a time, in float32.

    A subclass names its parameters in `adapter_layer_names` (containers keyed by adapter name), makes them in
    `make_parameters`, and does in `adapted` what the base layer's `forward` does without an adapter. `dim` is the
    width of the tokens, for targets that do not tell; `place` the target's dotted name in the model.
    """

    container: type[nn.Module] = nn.ParameterDict
    other_param_names = ("configs",)
    needs_all_rows = False  # as of a junction, see `ResidualJunction`

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: PeftConfig, dim: int | None = None, place: str = ""
    ):
        super().__init__()
        self.base_layer = base_layer
        self.dim, self.place = dim, place
        self._disable_adapters = False
        self.merged_adapters = []
        for name in self.adapter_layer_names:
            setattr(self, name, self.container())
        self.configs: dict[str, PeftConfig] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: PeftConfig) -> None:
        """Creates an adapter's parameters at their initial values."""
        self.configs[adapter_name] = config
        self.make_parameters(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def make_parameters(self, adapter_name: str, config: PeftConfig) -> None:
        raise NotImplementedError

    def forward(self, *args, **kwargs) -> Any:
        name = self.active_name
        return self.base_layer(*args, **kwargs) if name is None else self.adapted(name, *args, **kwargs)

    def adapted(self, name: str, *args, **kwargs) -> Any:
        """The forward pass under an adapter."""
        raise NotImplementedError

    def packed(self, dtype: torch.dtype) -> nn.Module:
        """What computes the same for inference, on tokens of `dtype`: this layer, unless its tuner knows better."""
        return self

    @property
    def active_name(self) -> str | None:
        """The adapter that acts in this layer, None if there is none or adapters are off."""
        if self.disable_adapters:
            return None
        names = [name for name in self.active_adapters if name in getattr(self, self.adapter_layer_names[0])]
        if len(names) > 1:
            raise ValueError(f"Adapters {names} are active at once; {type(self).__name__} uses one: set_adapter(name)")
        return names[0] if names else None


class ModuleTunerLayer(TrackerTunerLayer):
    """A layer whose adapter is one module, made by `new_adapter`."""

    container = nn.ModuleDict

    def make_parameters(self, adapter_name: str, config: PeftConfig) -> None:
        adapters = getattr(self, self.adapter_layer_names[0])
        adapters[adapter_name] = self.new_adapter(config).train(self.training)

    def new_adapter(self, config: PeftConfig) -> nn.Module:
        raise NotImplementedError


class TrackerTuner(BaseTuner):
    """What this package's tuners share: targets without weights, nested adapter modules, and no merging. A subclass
    names the layer for each kind of target in `layer_classes`, and the kinds in words in `targets`.

    Raises:
        ValueError: the model has one stream where the tuner needs two (`config.streams`), or sizes, layers or blocks
            that the config does not fit.
        TypeError: a target that is none of `targets`.
    """

    tuner_layer_cls = TrackerTunerLayer
    target_module_mapping: dict[str, list[str]] = {}
    layer_classes: ClassVar[dict[type[nn.Module], type[TrackerTunerLayer]]] = {}
    targets = "nothing"
    no_merge_reason = "its adapters mix tokens or streams"

    def _create_and_replace(
        self, peft_config: PeftConfig, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module,
        current_key: str, **kwargs,
    ) -> None:
        self._check_base(peft_config)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer_class = next((layer for kind, layer in self.layer_classes.items() if isinstance(target, kind)), None)
        if layer_class is None:
            raise TypeError(
                f"{self.prefix.rstrip('_').upper()} cannot adapt {current_key} ({type(target).__name__}): expected "
                f"{self.targets}."
            )
        width = getattr(getattr(self.model, "config", None), "hidden_size", None)
        layer = layer_class(target, adapter_name, peft_config, width, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_base(self, config: PeftConfig) -> None:
        """Raises ValueError where a config does not fit the model; a subclass knows how."""

    def _check_two_streams(self) -> None:
        streams = getattr(self.model.config, "streams", 1)
        if streams != 2:
            raise ValueError(
                f"{self.prefix.rstrip('_').upper()} mixes two streams, but this model's config has streams={streams}. "
                "Build the base with streams=2, for example by SEATrackForTracking.from_base(base)."
            )

    def _check_layers(self, config: PeftConfig, field: str) -> None:
        depth = self.model.config.num_hidden_layers
        if beyond := [i for i in getattr(config, field) or () if not 0 <= i < depth]:
            raise ValueError(f"{field} {beyond} do not exist: the base has layers 0 to {depth - 1}.")

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # nested adapter modules: "...amg_lora_hmoe.default.gate" is saved as "...amg_lora_hmoe.gate"
        nested = re.compile(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}\.")
        if nested.search(key):
            return nested.sub(r"\1.", key)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if getattr(child, "bypassed_in_training", False):
            raise ValueError(
                f"{type(self).__name__} cannot stand on {child_name}: with drop_path_rate {child.drop_path_rate} this "
                "base draws a part of the batch for each sub-layer, which passes the junctions by in training. Load "
                "the base with drop_path_rate=0.1 or less."
            )
        setattr(parent, child_name, new_module)
        reference = next(itertools.chain(child.parameters(), self.model.parameters()))  # seams have no parameters
        for name, parameter in new_module.named_parameters():
            # low_cpu_mem_usage: filled when the file is read
            if not (name.startswith("base_layer.") or parameter.is_meta or reference.is_meta):
                parameter.data = parameter.data.to(reference.device)

    @classmethod
    def refuse_merge(cls) -> None:
        """Raises ValueError with the reason why this tuner's adapters cannot be merged."""
        raise ValueError(
            f"A {cls.__name__} adapter cannot be merged into the base: {cls.no_merge_reason}. Keep the "
            "adapter, call unload() to get the base back, or model.pack() for fast inference."
        )

    _check_merge_allowed = refuse_merge

    def add_weighted_adapter(self, *args, **kwargs) -> None:
        """Not defined for these tuners."""
        raise NotImplementedError(f"{type(self).__name__} adapters cannot be combined by weights.")
