"""README and docs: every command and every piece of Python in them runs, unless a mark before it says why not.

`mmtrackers` commands and Python run in this process, in a folder with the files that the texts speak of, a document's
blocks in order. The mark is a comment on the line before the block: `<!-- not run: reason -->`.
"""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from mmtrackers import Tracker
from mmtrackers.pretrained import SAMPLE_CLIP, default_checkpoint
from mmtrackers.tracking.sources import open_source
from mmtrackers.tracking.video import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?"
FENCE = re.compile(MARK + r"^```(?P<kind>bash|python)\n(?P<text>.*?)^```$", re.M | re.S)
BOX = [353.0, 396.0, 53.0, 148.0]


@dataclass
class Block:
    """A fenced block, and why it is not run."""

    kind: str
    text: str
    reason: str | None


def blocks(document: Path) -> list[Block]:
    found = FENCE.finditer(document.read_text(encoding="utf-8"))
    return [Block(match["kind"], match["text"], match["reason"]) for match in found]


def commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of the sample clip as a video, as folders, as a pair, and as annotated sequences."""
    folder = tmp_path_factory.mktemp("docs")
    frames = [frame["rgb"] for frame in islice(open_source(SAMPLE_CLIP), 5)]
    with VideoWriter(folder / "clip.mp4", 25) as clip, VideoWriter(folder / "thermal.mp4", 25) as thermal:
        for k, frame in enumerate(frames):
            clip.write(frame)
            thermal.write(255 - frame)
            for name, picture in (("visible", frame), ("infrared", 255 - frame)):
                save(folder / name / f"{k:05d}.jpg", picture)
            save(folder / "depth" / f"{k:05d}.png", np.full(frame.shape[:2], 1500 + k, np.uint16))
            for walk in ("walk1", "walk2"):
                save(folder / "mine" / walk / "rgb" / f"{k:05d}.jpg", frame)
                save(folder / "mine" / walk / "thermal" / f"{k:05d}.jpg", 255 - frame)
    for walk in ("walk1", "walk2"):
        (folder / "mine" / walk / "groundtruth.txt").write_text("353,396,53,148\n" * len(frames))
    random = np.random.default_rng(0)
    events = {"t": np.sort(random.integers(0, 200_000, 5_000)), "x": random.integers(0, 768, 5_000)}
    np.savez(folder / "events.npz", **events, y=random.integers(0, 576, 5_000), p=random.integers(0, 2, 5_000))
    return folder


@pytest.fixture
def place(files: Path, tmp_path: Path) -> Path:
    """A copy of them for one document."""
    return Path(shutil.copytree(files, tmp_path / "files"))


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture[..., ::-1] if picture.ndim == 3 else picture)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_everything_in_it_runs(document: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmtrackers.cli import app

    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    seen, hot = (next(iter(open_source(place / name)))["rgb"] for name in ("visible", "infrared"))
    far = np.full(seen.shape[:2], 1500, np.uint16)
    known = {"rgb": seen, "thermal": hot, "depth": far, "box": BOX, "matrix": np.eye(3)}
    known["frames"] = [frame["rgb"] for frame in open_source(place / "visible")]
    if "tracker.start" in document.read_text() and "Tracker.from_pretrained" not in document.read_text():
        known["tracker"] = Tracker.from_pretrained(default_checkpoint("thermal"))
    for block in blocks(document):
        if block.reason is None and block.kind == "python":
            exec(compile(block.text, document.name, "exec"), known)
        elif block.reason is None:
            for words in commands(block.text):
                assert words[0] == "mmtrackers", f"say before the block why this is not run: {shlex.join(words)}"
                done = CliRunner().invoke(app, words[1:])
                assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}{done.stderr}\n{done.exception}"


def test_reasons_are_given_and_most_runs() -> None:
    found = [block for document in DOCUMENTS for block in blocks(document)]
    assert sum(block.reason is None for block in found) >= 15
    assert all(len(block.reason.split()) > 1 for block in found if block.reason)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_python_and_links_are_right_where_nothing_runs(document: Path) -> None:
    """Every `--option` is one that its program has, Python compiles, and every file that is linked is there."""
    def read(*paths: Path) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in paths)

    sources = {path.name: read(path) for path in (ROOT / "examples").glob("*.py")}
    sources["mmtrackers"] = read(*(ROOT / "mmtrackers" / "cli").glob("*.py"))
    training = read(*(ROOT / "mmtrackers" / "training" / f"{name}.py" for name in ("options", "recipes")))
    sources["finetune.py"] += training
    for block in blocks(document):
        if block.kind == "python":
            compile(block.text, document.name, "exec")
            continue
        for words in commands(block.text.replace("&&", "\n")):
            program = next((Path(w).name for w in words if Path(w).name in sources), None)
            known = sources.get(program, "") + (training if "finetune" in words else "")
            for option in (word[2:].partition("=")[0] for word in words if word.startswith("--") and program):
                named = rf"\b{option.replace('-', '_')}: |[\"/]--{option}\""
                assert option == "help" or re.search(named, known), (words, option)
    for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


def test_readme_stays_short() -> None:
    assert len(DOCUMENTS[0].read_text(encoding="utf-8").splitlines()) <= 130


def test_nothing_was_left_in_the_checkout() -> None:
    assert not [name for name in os.listdir(ROOT) if name in ("tracked", "two", "pair", "labels", "rig.txt")]


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    """From the first cell to the last, in a kernel of its own; what it claims of the night is so."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    book = nbformat.read(ROOT / "examples" / "track.ipynb", as_version=4)
    assert not [cell for cell in book.cells if cell.get("outputs")], "save it without outputs"
    client.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    printed = "".join(out.get("text", "") for cell in book.cells for out in cell.get("outputs", []))
    pattern = r"(\w+) *: mean overlap with the day's boxes ([\d.]+)"
    found = {name: float(value) for name, value in re.findall(pattern, printed)}
    assert set(found) == {"rgb", "thermal", "event"} and found["thermal"] > found["rgb"] + 0.2
