"""Official state dicts and checkpoint files, made from the name lists of the parity fixtures."""

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parity_tools import seed_of, seeded_tensor
from torch import Tensor


def shapes(description: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official state dict that a fixture describes."""
    entries = description["state_dict"].items()
    return {name: tuple(entry["shape"] if isinstance(entry, dict) else entry[0]) for name, entry in entries}


def meta_net(description: dict) -> dict[str, Tensor]:
    """The official state dict with shapes only."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes(description).items()}


_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "t": lambda t: t,
    "1 + t": lambda t: 1 + t,
    "0.6 + 2*t": lambda t: 0.6 + 2 * t,
    "t * sqrt(2)": lambda t: t * 2**0.5,
    "t * sqrt(shape[2])": lambda t: t * t.shape[2] ** 0.5,
    "t * sqrt(shape[1]/shape[0])": lambda t: t * (t.shape[1] / t.shape[0]) ** 0.5,
    "t * 0.5*sqrt(shape[1]*shape[2])": lambda t: t * 0.5 * (t.shape[1] * t.shape[2]) ** 0.5,
}


def _adjusted(name: str, tensor: Tensor, rules: list[dict]) -> Tensor:
    for rule in rules:
        if rule["name_regex"] == "(anything else)" or re.search(rule["name_regex"], name):
            return _RULES[rule["value"]](tensor)
    return tensor


def seeded_net(description: dict) -> dict[str, Tensor]:
    """The official state dict with the fixture's numbers."""
    seed, rules = seed_of(description), description.get("adjust", [])
    net = {}
    for name, shape in shapes(description).items():
        if name.endswith("num_batches_tracked"):
            net[name] = torch.zeros(shape, dtype=torch.int64)
        else:
            net[name] = _adjusted(name, seeded_tensor(name, shape, seed), rules)
    return net


class Settings:
    """Content of the settings object that the official training code pickles."""

    def __init__(self) -> None:
        self.project_path = "seatrack"
        self.local = {"workspace": [1, 2.5, None]}


def save_official(path: Path, net: dict[str, Tensor], legacy: bool = False, **more: Any) -> Path:
    """A checkpoint file in the form of the official trainers, with a settings object of a class nobody else has."""
    module = types.ModuleType("lib.train.admin.settings")
    module.Settings = type("Settings", (Settings,), {"__module__": module.__name__})
    content = {
        "epoch": 60,
        "actor_type": "SEATrackActor",
        "net_type": "SEATrack",
        "net": net,
        "net_info": None,
        "constructor": None,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 4e-4}]},
        "stats": {"Loss/total": [0.5]},
        "settings": module.Settings(),
        **more,
    }
    packages = {name: types.ModuleType(name) for name in ("lib", "lib.train", "lib.train.admin")}
    sys.modules.update({**packages, module.__name__: module})
    try:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    finally:
        for name in (*packages, module.__name__):
            del sys.modules[name]
    return path
