"""Reading of parity fixtures: `<system>-<case>.json` beside `.safetensors`, weights drawn by tensor name.

The folder is `MMTRACKERS_FIXTURES`, else `../shared/parity` beside the checkout, else `tests/fixtures/parity`; what is
only in the last is found there all the same.
"""

import json
import os
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

_HERE = Path(__file__).resolve().parent
_OWN = _HERE / "fixtures" / "parity"


def fixtures_folder() -> Path:
    """The folder that parity fixtures are read from."""
    if folder := os.environ.get("MMTRACKERS_FIXTURES"):
        return Path(folder)
    shared = _HERE.parent.parent / "shared" / "parity"
    return shared if shared.is_dir() else _OWN


def cases(pattern: str) -> list[str]:
    """Names of the fixtures whose file name matches the regular expression `pattern` from its start to its end."""
    names = {path.stem for folder in (fixtures_folder(), _OWN) for path in folder.glob("*.json")}
    return sorted(name for name in names if re.fullmatch(pattern, name))


def load_case(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """The JSON description of a fixture and its tensors."""
    folder = fixtures_folder() if (fixtures_folder() / f"{name}.json").is_file() else _OWN
    description = json.loads((folder / f"{name}.json").read_text())
    return description, load_file(folder / f"{name}.safetensors")


def _normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    generator = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    return generator.standard_normal(size=tuple(shape)).astype(np.float32)


def _said(description: dict, what: str) -> str:
    said = description.get("weights", "") if what == "weights" else description["inputs"][what]
    return said["made_by"] if isinstance(said, dict) else said


def seed_of(description: dict, what: str = "weights") -> int:
    """The seed that a fixture states for its weights, or for the input `what`."""
    if found := re.search(r"seed=(\d+)", _said(description, what)):
        return int(found[1])
    return description["seed"] if "seed" in description else description["weight_seed"]


def stated_input(description: dict, name: str) -> torch.Tensor:
    """The input `name`, of the shape and with the seed that the fixture states."""
    shape = re.search(r"[\[(]([\d, ]+)[\])]", _said(description, name))
    return seeded_input(name, tuple(map(int, shape[1].split(","))), seed_of(description, name))


def seeded_input(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """An input tensor drawn from its name."""
    return torch.from_numpy(_normal(name, shape, seed))


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A weight drawn from its name, with a scale that its name and shape decide."""
    values, leaf = _normal(name, shape, seed), name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        values = 0.5 + np.abs(values)
    elif leaf == "weight" and len(shape) == 1:
        values = 1.0 + 0.1 * values
    elif leaf != "running_mean" and len(shape) >= 2:
        values = values / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.1 * values
    return torch.from_numpy(np.ascontiguousarray(values.astype(np.float32)))
