"""Enters this package's classes into the tables of transformers and peft, as soon as those are loaded.

`import mmtrackers` alone loads neither. What is entered imports the configs only: trunks and tuners are imported by
whoever takes one out of a table, trackers with `AutoTracker`.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

# folders in models/ and in tuners/, and how the names of their classes begin
SYSTEMS = {
    "lorat": "LoRAT",
    "odtrack": "ODTrack",
    "ostrack": "OSTrack",
    "spmtrack": "SPMTrack",
    "patrack": "PATrack",
    "sdmoea": "SDMoEA",
    "seatrack": "SEATrack",
}
TRUNKS = ("lorat", "odtrack", "ostrack", "spmtrack")
TUNERS = {"amg_lora": "AMGLora", "progressive": "Progressive", "sdmoe": "SDMoE", "tmoe": "TMoE"}


class Late:
    """Stands for a class in a table, and imports it when somebody uses it.

    Args:
        module, name (`str`): where the class is, and its name.
        known: attributes that can be asked for without importing it.
    """

    def __init__(self, module: str, name: str, **known: Any) -> None:
        self.__dict__.update(known, _place=(module, name))

    def load(self) -> type:
        """The class itself."""
        module, name = self.__dict__["_place"]
        return getattr(import_module(module), name)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.load(), attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.load()(*args, **kwargs)


def _config(system: str) -> type:
    module = import_module(f"mmtrackers.models.{system}.configuration_{system}")
    return getattr(module, f"{SYSTEMS[system]}Config")


def _model(system: str, kind: str) -> Late:
    place = f"mmtrackers.models.{system}.modeling_{system}"
    return Late(place, SYSTEMS[system] + kind, config_class=_config(system))


def _register_configs() -> None:
    from transformers import AutoConfig

    for config in map(_config, SYSTEMS):
        AutoConfig.register(config.model_type, config)


def _register_trunks() -> None:
    from transformers import AutoModel

    for system in TRUNKS:
        AutoModel.register(_config(system), _model(system, "Model"))


def _register_trackers() -> None:
    from mmtrackers.hub.auto import AutoTracker

    for system in SYSTEMS:
        AutoTracker.register(_config(system), _model(system, "ForTracking").load())


def _register_image_processor() -> None:
    from transformers import AutoImageProcessor

    from mmtrackers.processing.image_processing import TrackerImageProcessor

    for config in map(_config, SYSTEMS):
        AutoImageProcessor.register(config, image_processor_classes={"pil": TrackerImageProcessor})


def _register_tuners() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    for folder, name in TUNERS.items():
        module = f"mmtrackers.tuners.{folder}"
        PEFT_TYPE_TO_CONFIG_MAPPING[folder.upper()] = Late(f"{module}.config", f"{name}Config")
        PEFT_TYPE_TO_TUNER_MAPPING[folder.upper()] = Late(f"{module}.model", f"{name}Model", prefix=f"{folder}_")
        PEFT_TYPE_TO_PREFIX_MAPPING[folder.upper()] = f"{folder}_"


WHEN_LOADED: dict[str, Callable[[], object]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_trunks,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
    "transformers.pipelines": lambda: import_module("mmtrackers.pipeline"),  # which does it itself
    "peft": _register_tuners,
    "mmtrackers.hub.auto": _register_trackers,
}


class _AfterLoading(MetaPathFinder):
    """Finds nothing by itself: lets the other finders find a module, and calls `WHEN_LOADED` when it has run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in WHEN_LOADED:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: Any) -> None:
                run(module)
                WHEN_LOADED[name]()

            spec.loader.exec_module = run_and_register
        return spec


def register_when_loaded() -> None:
    """Enters everything now where its table is loaded already, and the rest when it will be."""
    sys.meta_path.insert(0, _AfterLoading())
    for name, register in WHEN_LOADED.items():
        if name in sys.modules:
            register()
