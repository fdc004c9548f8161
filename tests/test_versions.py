"""Versions: what an import warns of, the exact set of the release, and what CI installs."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmtrackers import _versions

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BOUNDS = {need.name: need.specifier for need in map(Requirement, PROJECT["dependencies"])}
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
)

# the import in an interpreter of its own, with another peft
PROBE = """
import importlib.metadata, json, warnings
true = importlib.metadata.version
importlib.metadata.version = lambda name: "0.9.9" if name == "peft" else true(name)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import mmtrackers
    import mmtrackers._versions
print(json.dumps([str(each.message) for each in caught if "was tested with" in str(each.message)]))
"""


@pytest.fixture
def stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of this checkout, whatever was installed."""
    monkeypatch.setattr(_versions, "requires", lambda name: PROJECT["dependencies"])


@pytest.mark.parametrize(
    ("name", "other"),
    [("peft", "0.20.0"), ("peft", "0.22.0"), ("transformers", "5.22.2"), ("transformers", "5.25.0.dev0"),
     ("huggingface_hub", "2.5.0")],
)  # fmt: skip
def test_a_version_outside_the_bounds_is_named_beside_the_others(
    stated: None, monkeypatch: pytest.MonkeyPatch, name: str, other: str
) -> None:
    here = {each: CONSTRAINTS[canonicalize_name(each)] for each in _versions.CLOSEST} | {name: other}
    monkeypatch.setattr(_versions, "version", here.__getitem__)
    with pytest.warns(UserWarning, match="was tested with") as caught:
        _versions.warn_of_untested_versions()
    (said,) = [str(each.message) for each in caught]
    assert all(f"{each} {here[each]}" in said and f"{each} {BOUNDS[each]}" in said for each in here)


def test_versions_within_the_bounds_are_not_spoken_of(stated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = {"transformers": "5.24.9", "peft": "0.21.0", "huggingface_hub": "2.4.0"}
    monkeypatch.setattr(_versions, "version", edges.__getitem__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _versions.warn_of_untested_versions()


def test_an_import_warns_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout.splitlines()[-1])
    assert "peft 0.9.9" in said


def test_constraints_name_every_requirement_within_its_bounds() -> None:
    for need in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]):
        assert need.specifier.contains(CONSTRAINTS[canonicalize_name(need.name)]), need.name


def test_lower_bounds_are_what_ci_installs() -> None:
    lowest = runpy.run_path(str(ROOT / ".ci" / "versions.py"))["lowest"]()
    assert lowest.keys() == BOUNDS.keys()
    assert all(BOUNDS[name].contains(version) for name, version in lowest.items())


def test_ci_names_tests_that_exist_for_the_other_sets() -> None:
    lists = re.findall(r"^fragile\+?=\((.*)\)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    expanded = subprocess.run(["bash", "-c", f"echo {' '.join(lists)}"], capture_output=True, text=True, cwd=ROOT)
    files = expanded.stdout.split()
    assert len(files) > 15 and [name for name in files if not (ROOT / name).is_file()] == []


def test_ci_and_readme_install_the_exact_set() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install -e . -c constraints.txt" in readme and "pip install -e '.[dev]' -c constraints.txt" in readme
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^fresh exact -c constraints.txt$", script, re.MULTILINE)
    torch = re.findall(r"torch==([\d.]+)", readme + script)
    assert set(torch) == {CONSTRAINTS["torch"]}
