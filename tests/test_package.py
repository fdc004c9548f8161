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
{before}
import mmtrackers
import mmtrackers.cli

heavy = ("torch", "transformers", "peft", "cv2", "matplotlib", "datasets", "tensorboard", "av")
loaded = [name for name in heavy if name in sys.modules]

from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

early = [name for name in sys.modules if name.startswith("mmtrackers.") and ".modeling_" in name]
small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
config = {{name: AutoConfig.for_model(name, **small) for name in ("mmt_ostrack", "mmt_patrack", "mmt_spmtrack")}}
from transformers.pipelines import PIPELINE_REGISTRY
print(json.dumps({{
    "loaded": loaded,
    "early": early,
    "configs": {{name: type(found).__name__ for name, found in config.items()}},
    "model": type(AutoModel.from_config(config["mmt_spmtrack"])).__name__,
    "processor": IMAGE_PROCESSOR_MAPPING[type(config["mmt_patrack"])]["pil"].__name__,
    "tuner": [PEFT_TYPE_TO_CONFIG_MAPPING["TMOE"](r=3).r, PEFT_TYPE_TO_TUNER_MAPPING["TMOE"].tuner_layer_cls.__name__],
    "pipeline": PIPELINE_REGISTRY.check_task("visual-object-tracking")[1]["impl"].__name__,
    "trackers": sorted(mmtrackers.AutoTracker.registered()),
    "missing": [name for name in mmtrackers.__all__ if not hasattr(mmtrackers, name)],
    "torchvision": [name for name in ("torchvision", "torchaudio", "timm") if name in sys.modules],
    "version": mmtrackers.__version__,
}}))
"""


def report(before: str) -> dict:
    """What a fresh interpreter reports of `import mmtrackers`, after another import."""
    code = PROBE.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def imported() -> dict:
    return report("")


def test_import_and_command_line_load_nothing_heavy(imported: dict) -> None:
    assert imported["loaded"] == imported["torchvision"] == []


def test_public_names_are_there(imported: dict) -> None:
    assert imported["missing"] == []


@pytest.mark.parametrize("before", ["", "import peft; from transformers import AutoImageProcessor, pipeline"])
def test_classes_are_in_the_tables_whoever_is_imported_first(before: str, imported: dict) -> None:
    found = report(before) if before else imported
    assert found["early"] == []
    assert found["configs"] == {
        "mmt_ostrack": "OSTrackConfig",
        "mmt_patrack": "PATrackConfig",
        "mmt_spmtrack": "SPMTrackConfig",
    }
    assert (found["model"], found["processor"]) == ("SPMTrackModel", "TrackerImageProcessor")
    assert found["pipeline"] == "VisualObjectTrackingPipeline"
    assert found["tuner"] == [3, "TrackerTunerLayer"]
    assert len(found["trackers"]) == 7


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
        "pip install -e . -c constraints.txt",
        "mmtrackers track sample --box",
        "pip install -e '.[dev]' -c constraints.txt",
        "python -m pytest",
    ],
)
def test_readme_states_the_command(command: str) -> None:
    assert command in README


def test_ci_runs_the_test_command_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "python -m pytest" in lines
    assert any(re.search(r"^(?:.*&& )?python -m pytest$", line) for line in README.splitlines())
