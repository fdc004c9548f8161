"""The package as a whole: what an import brings in, what it registers, and what its files may hold."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON_FILES = sorted(path for folder in ("mmtrackers", "examples", "tests") for path in (ROOT / folder).rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Imported in a process of its own: other tests of this run may have brought anything in.
PROBE = """
import json, sys
import mmtrackers
from transformers import AutoConfig

heavy = ("torchvision", "torchaudio", "timm", "matplotlib", "datasets", "tensorboard", "av", "typer")
print(json.dumps({
    "loaded": [name for name in heavy if name in sys.modules],
    "missing": [name for name in mmtrackers.__all__ if not hasattr(mmtrackers, name)],
    "version": mmtrackers.__version__,
    "configs": {n: type(AutoConfig.for_model(n)).__name__ for n in ("mmt_ostrack", "mmt_patrack", "mmt_seatrack")},
}))
"""


@pytest.fixture(scope="module")
def imported() -> dict:
    """What a fresh interpreter reports after `import mmtrackers`."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_leaves_out_what_it_does_not_need(imported: dict) -> None:
    assert imported["loaded"] == []


def test_public_names_are_there(imported: dict) -> None:
    assert imported["missing"] == []


def test_import_registers_the_trackers_with_transformers(imported: dict) -> None:
    assert imported["configs"] == {
        "mmt_ostrack": "OSTrackConfig",
        "mmt_patrack": "PATrackConfig",
        "mmt_seatrack": "SEATrackConfig",
    }


def test_version_is_the_one_of_the_project_file(imported: dict) -> None:
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated is not None and imported["version"] == stated[1]


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 600, f"{path.relative_to(ROOT)} has {lines} lines: split it"


def test_package_holds_no_path_of_one_machine() -> None:
    pattern = re.compile(r"""["'](?:/(?:home|root|work|opt|mnt|tmp|usr|data)/|[A-Z]:\\)""")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "mmtrackers").rglob("*"))
        if path.suffix in (".py", ".md", ".json")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m venv .venv",
        "pip install -e .",
        "mmtrackers track sample --box",
        "pip install -e '.[dev]'",
        "python -m pytest",
    ],
)
def test_readme_states_the_command(command: str) -> None:
    assert command in README


def test_readme_options_exist() -> None:
    """Every `--option` in the README's shell blocks is one that the named program has."""
    sources = {
        "mmtrackers": "".join(p.read_text(encoding="utf-8") for p in (ROOT / "mmtrackers" / "cli").glob("*.py")),
        **{path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")},
    }
    sources["finetune.py"] += (ROOT / "mmtrackers" / "training" / "recipes.py").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    seen = 0
    for line in blocks.splitlines():
        program = next((name for name in sources if re.search(rf"(?:^|/){name}\b", line)), None)
        for option in re.findall(r"--([a-z-]+)", line) if program else ():
            seen += 1
            assert option == "help" or re.search(rf"\b{option.replace('-', '_')}: ", sources[program]), (line, option)
    assert seen > 10


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_readme_python_is_python(block: str) -> None:
    compile(block, "README.md", "exec")


def test_readme_names_only_files_that_exist() -> None:
    named = set(re.findall(r"\]\(([^)#:]+)\)", README))
    named |= set(re.findall(r"\b(?:examples|mmtrackers)/[\w/]+\.\w+", README))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "python -m pytest"
    assert any(re.search(r"^(?:.*&& )?python -m pytest$", line) for line in README.splitlines())
