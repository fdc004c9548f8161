"""The built package: what is in it, and the main job from another folder, without a checkout and without a network."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

# in front of everything else that Python imports
NO_NETWORK = """
import pathlib
import socket

def refused(*arguments, **options):
    raise OSError("the network is blocked")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
pathlib.Path(__file__).with_name("blocked").touch()
"""


def ended(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    pytest.importorskip("build", reason="build is not installed (dev extra)")
    place = tmp_path_factory.mktemp("built")
    beside = (".git", ".venv", "build", "dist", "out", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, place / "tree", ignore=shutil.ignore_patterns(*beside))
    ended(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "tree", cwd=place)
    return place / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


def test_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = {path for path in (ROOT / "mmtrackers").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {name for name in held if ".dist-info/" not in name} == {str(path.relative_to(ROOT)) for path in files}
    assert wheel.stat().st_size < 9e6


def test_source_distribution_holds_what_the_tests_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [*ROOT.glob("*.md"), *ROOT.glob("tests/**/*"), *ROOT.glob("examples/**/*"), ROOT / ".ci" / "run"]
    wanted += [ROOT / "pyproject.toml", ROOT / "setup.py", ROOT / "constraints.txt"]
    files = {str(p.relative_to(ROOT)) for p in wanted if p.is_file() and "__pycache__" not in p.parts}
    assert files - held == set()


def test_metadata_and_links_stand_in_a_package_index(built: Path, wheel: Path) -> None:
    name = next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".dist-info/METADATA"))
    facts = Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())
    assert facts["Author"] and facts["License-Expression"] == "Apache-2.0" and len(facts.get_all("Project-URL")) >= 3
    links = re.findall(r"\]\(([^)]+)\)", facts.get_payload())
    assert len(links) > 5 and [link for link in links if not link.startswith("https://")] == []
    pytest.importorskip("twine", reason="twine is not installed (dev extra)")
    ended(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=built)


def test_the_main_job_from_another_folder_without_a_network(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    ended(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel, cwd=work
    )
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    shutil.copy(next(site.rglob("pedestrians.mp4")), work / "my.mp4")
    command = (site / "bin" / "mmtrackers", "track", "my.mp4", "--box", "353,396,53,148", "--max-frames", "20")
    clean = {"PYTHONPATH": str(site), "HF_HOME": str(tmp_path / "hf")}
    assert "my: 20 frames" in ended(sys.executable, *command, "--output", "out", cwd=work, **clean)
    assert (site / "blocked").exists()
    model = Path(json.loads((work / "out" / "my_tracked.json").read_text())["settings"]["model"])
    assert model == site / "mmtrackers" / "pretrained" / "ostrack-tiny"
    x, y, width, height = map(float, (work / "out" / "my_tracked.txt").read_text().split()[-1].split(","))
    assert 200 < x < 400 and 250 < y < 420 and 20 < width < 70 and 80 < height < 170
