"""The versions that the package stands on, for constraints.txt and for `.ci/run`.

    python .ci/versions.py exact     # what is installed here of all that mmtrackers[dev] needs: constraints.txt
    python .ci/versions.py lowest    # the lower bounds of pyproject.toml, as exact versions
    python .ci/versions.py moved     # a sentence: what is installed here in another version than in constraints.txt
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def exact(name: str = "mmtrackers", extras: frozenset[str] = frozenset({"dev"})) -> dict[str, str]:
    """Name and version of every installed distribution that `name` needs, without itself."""
    found: dict[str, str] = {}
    asked = [(name, extras)]
    seen = set()
    while asked:
        name, extras = asked.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue  # needed elsewhere only
        found[name] = here.version.partition("+")[0]
        for text in here.requires or []:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                asked.append((canonicalize_name(need.name), frozenset(need.extras)))
    found.pop("mmtrackers")
    return dict(sorted(found.items()))


def lowest() -> dict[str, str]:
    """The lower bound of every direct requirement."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = [Requirement(text) for text in project["dependencies"]]
    return {n.name: each.version for n in needs for each in n.specifier if each.operator == ">="}


def moved() -> str:
    """What differs from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    stated = dict(line.split("==") for line in lines if "==" in line)
    changes = [f"{n} {stated[n]} -> {v}" for n, v in exact().items() if n in stated and stated[n] != v]
    new = [f"{n} {v} (new)" for n, v in exact().items() if n not in stated]
    return ", ".join(changes + new) or "nothing: the versions are those of constraints.txt"


if __name__ == "__main__":
    if sys.argv[1:] == ["moved"]:
        print("moved against constraints.txt:", moved())
    else:
        print(f"# python .ci/versions.py {sys.argv[1]}, on Python {sys.version_info[0]}.{sys.version_info[1]}")
        for name, version in {"exact": exact, "lowest": lowest}[sys.argv[1]]().items():
            print(f"{name}=={version}")
