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


_OFFICIAL = [
    (r"model\.layers\.(\d+)\.attention\.o_proj", r"backbone.blocks.\1.attn.proj"),
    (r"model\.layers\.(\d+)", r"backbone.blocks.\1"),
    (r"model\.embeddings\.patch", "backbone.patch_embed.proj"),
    (r"model\.embeddings\.template_position", "backbone.pos_embed_z"),
    (r"model\.embeddings\.search_position", "backbone.pos_embed_x"),
    (r"model\.track_token\.start", "backbone.cls_token"),
    (r"model\.track_token\.position", "backbone.cls_pos_embed"),
    (r"model\.norm", "backbone.norm"),
]


def official_ostrack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of this package's OSTrack or ODTrack under the official names, with what no forward pass reads."""
    table = state["model.embeddings.template_position"]
    net = {"backbone.cls_token": table.new_zeros(1, 1, table.shape[2]), "backbone.pos_embed": table[:, :1]}
    for name, tensor in state.items():
        if match := re.fullmatch(r"model\.layers\.(\d+)\.attention\.([qkv])_proj\.(\w+)", name):
            parts = [state[name.replace(f"{match[2]}_proj", f"{part}_proj")] for part in "qkv"]
            net[f"backbone.blocks.{match[1]}.attn.qkv.{match[3]}"] = torch.cat(parts)
        elif match := re.fullmatch(r"head\.(\w+)\.(\d)\.(?:(conv|norm)\.)?(\w+)", name):
            branch, stage = {"score": "ctr"}.get(match[1], match[1]), {"conv": "0.", "norm": "1."}.get(match[3], "")
            net[f"box_head.conv{int(match[2]) + 1}_{branch}.{stage}{match[4]}"] = tensor
        else:
            for ours, theirs in _OFFICIAL:
                name = re.sub(f"^{ours}", theirs, name)
            net[name] = tensor
    return net


def merged_official(net: dict[str, Tensor], sign: int = 1) -> dict[str, Tensor]:
    """An official SEATrack state dict as its layers leave it in evaluation mode: BA added to the rows of k and v."""
    changed = dict(net)
    for name in net:
        if name.endswith(".attn.qkv.lora_A"):
            place = name.removesuffix("lora_A")
            (a_k, a_v), (b_k, b_v) = net[name].double().chunk(2), net[f"{place}lora_B"].double().chunk(2)
            product = torch.cat([b_k @ a_k, b_v @ a_v])
            weight = net[f"{place}weight"].clone()
            weight[-len(product) :] = (weight[-len(product) :].double() + sign * product).float()
            changed[f"{place}weight"] = weight
    return changed


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
