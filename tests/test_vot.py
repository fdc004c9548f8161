"""Trackers under the VOT toolkit: the TraX process, the registry entry, result files, and the toolkit itself.

The toolkit runs in an environment of its own, named by MMTRACKERS_VOT (the path of its `vot` command), else found on
the PATH.
"""

import configparser
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tracking_stub import RedPatchModel, frame, processor

from mmtrackers import Tracker
from mmtrackers.data.annotations import read_boxes
from mmtrackers.evaluation.protocols import PROTOCOLS
from mmtrackers.evaluation.raw import score_folder
from mmtrackers.evaluation.scoring import Truth
from mmtrackers.evaluation.vot import register, serve
from mmtrackers.pretrained import FOLDER

ROOT = Path(__file__).resolve().parent.parent

STUB = """
from tracking_stub import RedPatchModel, processor
from mmtrackers import Tracker
from mmtrackers.evaluation.vot import serve

class Loud(RedPatchModel):
    def embed_template(self, template):
        print("100%|██████████|", flush=True)  # TraX shares this stream, and its client breaks off at such a byte
        return super().embed_template(template)

serve(Tracker(Loud(streams={streams}, modality="{modality}"), processor()), "stub")
"""


class Driver:
    """Plays the toolkit: TraX over the pipes of a process that serves the stub tracker."""

    def __init__(self, **stub) -> None:
        self.trax = pytest.importorskip("trax", reason="vot-trax is not installed")
        from trax.client import Client

        environment = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}", TRAX="1")
        script = STUB.format(**({"streams": 1, "modality": "rgb"} | stub))
        self.process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, env=environment, bufsize=0)
        self.log: list[str] = []
        pipes = (self.process.stdin.fileno(), self.process.stdout.fileno())
        self.client = Client(stream=pipes, log=self.log.append)

    def start(self, files: dict[str, Path], box: tuple[float, ...]) -> tuple[np.ndarray, float]:
        from trax.region import Rectangle

        return self._read(self.client.initialize(self._images(files), [(Rectangle.create(*box), {})], {}))

    def update(self, files: dict[str, Path]) -> tuple[np.ndarray, float]:
        return self._read(self.client.frame(self._images(files), {}, []))

    @staticmethod
    def _images(files: dict[str, Path]) -> dict:
        from trax.image import FileImage

        return {channel: FileImage.create(str(file)) for channel, file in files.items()}

    @staticmethod
    def _read(answer: tuple) -> tuple[np.ndarray, float]:
        ((region, properties),), _ = answer
        return np.array(region.bounds()), float(properties["confidence"])

    def close(self) -> int:
        self.client.quit()
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(60)


def write(folder: Path, index: int, picture: dict[str, np.ndarray]) -> dict[str, Path]:
    """A frame as files, under the channels' names."""
    files = {}
    for modality, image in picture.items():
        channel = {"rgb": "color", "depth": "depth", "thermal": "ir"}[modality]
        (folder / channel).mkdir(parents=True, exist_ok=True)
        files[channel] = folder / channel / f"{index:08d}.png"
        cv2.imwrite(str(files[channel]), image[:, :, ::-1] if modality == "rgb" else image)
    return files


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_the_process_answers_as_a_session_does(tmp_path: Path, modality: str) -> None:
    streams = 1 if modality == "rgb" else 2
    boxes = [(40 + 2 * i, 50 + i, 24, 20) for i in range(4)]
    second = None if modality == "rgb" else modality
    frames = [frame(box, modality=second) for box in boxes]
    files = [write(tmp_path, i, picture) for i, picture in enumerate(frames)]
    driver = Driver(streams=streams, modality=modality)
    assert set(driver.client.channels) == set(files[0]) and driver.client.tracker_name == "stub"
    for _ in range(2):  # a second run begins anew in the same process
        session = Tracker(RedPatchModel(streams=streams, modality=modality), processor()).start(frames[0], boxes[0])
        box, confidence = driver.start(files[0], boxes[0])
        np.testing.assert_allclose(box, boxes[0])
        assert confidence == 1
        for picture, paths in zip(frames[1:], files[1:], strict=True):
            expected = session.update(picture)
            box, confidence = driver.update(paths)
            np.testing.assert_allclose(box, expected.box, atol=1e-3)  # TraX carries four decimals
            assert confidence == pytest.approx(0.8)
    assert driver.close() == 0


def test_the_toolkit_is_told_why_a_run_ends(tmp_path: Path) -> None:
    driver = Driver()
    with pytest.raises(driver.trax.TraxException):
        driver.start(write(tmp_path, 0, frame((40, 50, 24, 20))), (400, 50, 24, 20))
    driver.process.wait(60)
    assert "lies outside the picture of 160 x 120 pixels" in "".join(driver.log)


def test_events_have_no_channel() -> None:
    with pytest.raises(ValueError, match="none for event: evaluate such a tracker with `mmtrackers evaluate`"):
        serve(Tracker(RedPatchModel(streams=2, modality="event"), processor()))


def test_registry_entries_are_what_the_toolkit_reads(tmp_path: Path) -> None:
    registry, model = tmp_path / "trackers.ini", tmp_path / "100% mine, really"
    model.mkdir()
    register(registry, "ours", str(model), modality="depth", device="cuda", pack=False)
    register(registry, "hub-one", "org/seatrack-depth", dtype="bfloat16", label="SEATrack")
    read = configparser.ConfigParser()  # with interpolation, as the toolkit does
    read.read(registry)
    assert read.sections() == ["ours", "hub-one"] and read["hub-one"]["label"] == "SEATrack"
    command = shlex.split(read["ours"]["command"])
    assert command[:4] == [sys.executable, "-m", "mmtrackers.evaluation.vot", "serve"]
    assert command[4] == str(model) and command[5:] == [
        "--name", "ours", "--modality", "depth", "--device", "cuda", "--dtype", "float32"
    ]  # fmt: skip
    assert shlex.split(read["hub-one"]["command"])[-3:] == ["--dtype", "bfloat16", "--pack"]
    assert Path(read["ours"]["env_pythonpath"]) == ROOT
    with pytest.raises(ValueError, match="has a tracker ours already"):
        register(registry, "ours", "other")
    with pytest.raises(ValueError, match="letters, digits, _ and -"):
        register(registry, "ours 2", "other")


# ------------------------------------------------------------------------------------------------------- the toolkit

VOT = os.environ.get("MMTRACKERS_VOT") or shutil.which("vot")
BAG = ROOT.parent / "shared" / "data" / "rgb" / "VOT" / "bag"
LOW, HIGH = 4, 16
STACK = f"""title: tiny
experiments:
  multistart:
    type: multistart
    analyses:
      - {{type: multistart_eao_score, name: eao, low: {LOW}, high: {HIGH}}}
      - {{type: multistart_average_ar, name: ar}}
  longterm:
    type: unsupervised
    repetitions: 1
    analyses:
      - {{type: average_tpr, name: tpr}}
"""


def workspace(folder: Path, sequences: list[Truth], **trackers: str) -> None:
    (folder / "config.yaml").write_text("registry: [./trackers.ini]\nstack: ./stack.yaml\n")
    (folder / "stack.yaml").write_text(STACK)
    (folder / "sequences" / "list.txt").write_text("".join(f"{truth.name}\n" for truth in sequences))
    for truth in sequences:
        place, (width, height) = folder / "sequences" / truth.name, truth.image_size
        rows = [",".join(f"{value:.4f}" for value in row) for row in truth.boxes_xywh]
        (place / "groundtruth.txt").write_text("\n".join(rows) + "\n")
        (place / "anchor.value").write_text("".join(f"{value}\n" for value in truth.anchors))
        depth = "channels.depth=depth/%08d.png\n" if (place / "depth").is_dir() else ""
        suffix = next((place / "color").iterdir()).suffix
        (place / "sequence").write_text(
            f"channels.color=color/%08d{suffix}\n{depth}fps=30\nformat=default\nname={truth.name}\n"
            f"width={width}\nheight={height}\nlength={len(truth)}\n"
        )
    for name, model in trackers.items():
        register(folder / "trackers.ini", name, model)


def toolkit(folder: Path, *arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([VOT, *arguments, "--workspace", str(folder)], capture_output=True, text=True, timeout=900,
                          env=environment | {"OMP_NUM_THREADS": "1"}, cwd=folder)
    logs = [log.read_text() for log in folder.glob("logs/*")]
    assert done.returncode == 0 and not logs, (done.stdout + done.stderr + "".join(logs))[-3000:]


def lose(folder: Path, source: str, target: str) -> None:
    """A second tracker's results: the first one's, which jump away some frames after each start."""
    for file in (folder / "results" / source).rglob("*.bin"):
        boxes = read_boxes(file)
        boxes[6:, :2] += 400
        name = file.relative_to(folder / "results" / source).with_suffix(".txt")
        out = folder / "results" / target / name
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("1\n" + "".join(",".join(f"{value:.3f}" for value in row) + "\n" for row in boxes[1:]))
        confidence = "".join(f"{value}\n" for value in np.linspace(1, 0.2, len(boxes) - 1))
        out.with_name(f"{out.stem}_confidence.value").write_text("\n" + confidence)


def our_numbers(folder: Path, tracker: str, truths: list[Truth]) -> dict[str, float]:
    """Our protocols on the toolkit's own folders of results."""
    place = folder / "results" / tracker
    protocol = replace(PROTOCOLS["vot22rgbd"], low=LOW, high=HIGH)
    found = [score_folder(place / "multistart", truths, protocol), score_folder(place / "longterm", truths, "cdtb")]
    return found[0].scores | found[1].scores


def toolkit_numbers(folder: Path) -> dict[str, dict[str, float]]:
    report = json.loads((folder / "analysis" / "report.json").read_text())
    eao, ar = report["results"]["multistart"]["results"]
    (tpr,) = report["results"]["longterm"]["results"]
    return {
        tracker: {"EAO": eao[i][0], "A": ar[i][0], "R": ar[i][1], "Pr": tpr[i][0], "Re": tpr[i][1], "F": tpr[i][2]}
        for i, tracker in enumerate(report["trackers"])
    }


def anchors(length: int, forward: tuple[int, ...], backward: tuple[int, ...]) -> np.ndarray:
    values = np.zeros(length, dtype=int)
    values[list(forward)], values[list(backward)] = 1, -1
    return values


def real_rgb(folder: Path) -> Truth:
    """The first frames of VOT2018's `bag`, with the rectangles round its polygons."""
    if not BAG.is_dir():
        pytest.skip("the sample sequences (../shared/data) are not here")
    place = folder / "sequences" / "bag"
    place.mkdir(parents=True)
    (place / "color").symlink_to(BAG / "color")
    boxes = read_boxes(BAG / "groundtruth.txt")[:18]
    return Truth("bag", boxes.round(4), image_size=(480, 360), anchors=anchors(18, (0,), (17,)))


def generated_rgbd(folder: Path) -> Truth:
    """A red patch that crosses the picture, with a stretch where nothing is annotated."""
    boxes = np.array([(20 + 3.4 * i, 40 + 1.3 * i, 26, 22) for i in range(20)])
    for i, box in enumerate(boxes):
        write(folder / "sequences" / "patch", i + 1, frame(tuple(box.astype(int)), modality="depth"))
    boxes[12:15] = np.nan
    return Truth("patch", boxes.round(4), image_size=(160, 120), anchors=anchors(20, (0,), (19,)))


@pytest.mark.slow
@pytest.mark.skipif(VOT is None, reason="the VOT toolkit is not installed (MMTRACKERS_VOT or `vot` on the PATH)")
@pytest.mark.parametrize(("made", "model"), [(real_rgb, "ostrack-tiny"), (generated_rgbd, "seatrack-tiny-depth")])
def test_the_toolkit_drives_a_tracker_and_reports_our_numbers(tmp_path: Path, made, model: str) -> None:
    truths = [made(tmp_path)]
    workspace(tmp_path, truths, ours=str(FOLDER / model), lost="results-only")
    toolkit(tmp_path, "evaluate", "ours")
    lose(tmp_path, "ours", "lost")
    toolkit(tmp_path, "analysis", "ours", "lost", "--name", "report")
    theirs = toolkit_numbers(tmp_path)
    assert theirs["lost"]["R"] < theirs["ours"]["R"] and theirs["ours"]["A"] > 0.1
    for tracker, numbers in theirs.items():
        assert our_numbers(tmp_path, tracker, truths) == pytest.approx(numbers, abs=1e-6)
