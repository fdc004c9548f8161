"""The house: which wing may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mmtrackers"

# from the top down; a wing may import those below it that are named here, inside functions too
BELOW = {
    "cli": {"browser", "finetune", "evaluation", "conversion", "models", "training", "tracking", "data", "hub",
            "pretrained", "processing"},
    "browser": {"tracking", "processing", "pretrained"},
    "finetune": {"hub", "synthetic", "training", "data", "pretrained", "processing"},
    "pipeline": {"tracking", "processing"},
    "evaluation": {"tracking", "data", "hub", "processing"},
    "conversion": {"models", "tuners", "modeling", "tracking", "hub", "processing"},
    "models": {"tuners", "modeling", "tracking", "hub", "processing"},
    "synthetic": {"training", "data", "processing"},
    "training": {"modeling", "tracking", "data", "hub", "processing"},
    "tuners": {"modeling", "hub"},
    "modeling": {"tracking", "hub", "processing"},
    "tracking": {"data", "hub", "processing"},
    "data": {"processing"},
    "hub": {"processing"},
    "pretrained": set(),
    "processing": set(),
}


def wing_of(module: str) -> str:
    """The wing that a dotted module belongs to; a converter beside its model is part of `conversion`."""
    parts = module.split(".")
    if len(parts) > 3 and parts[1] == "models" and parts[3].startswith("convert_"):
        return "conversion"
    return parts[1] if len(parts) > 1 else "top"


def imports() -> list[tuple[str, str]]:
    """All pairs (importing module, imported module) inside the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        package = module.rpartition(".")[0].split(".")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                start = package[: len(package) + 1 - node.level] if node.level else []
                target = ".".join(start + (node.module.split(".") if node.module else []))
                names = [f"{target}.{alias.name}" for alias in node.names] if target == "mmtrackers" else [target]
                found += [(module, name) for name in names if name.startswith("mmtrackers.")]
    return found


@pytest.mark.parametrize("wing", BELOW)
def test_arrows_point_down(wing: str) -> None:
    wings = {(a, b) for a, b in imports() if wing_of(a) == wing and wing_of(b) in BELOW}
    wrong = [f"{a} imports {b}" for a, b in sorted(wings)
             if wing_of(b) not in BELOW[wing] | {wing}]  # fmt: skip
    assert wrong == []


def test_every_folder_is_a_wing_with_a_place() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(BELOW) - {"finetune", "pipeline"}
    order = list(BELOW)
    assert all(order.index(b) > order.index(a) for a, below in BELOW.items() for b in below)
