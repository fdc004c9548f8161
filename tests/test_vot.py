"""Trackers under the VOT toolkit: the TraX process, the registry entry, result files, and the toolkit itself.

The toolkit runs in an environment of its own, named by MMTRACKERS_VOT (the path of its `vot` command), else found on
the PATH.
"""

import configparser
import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tracking_stub import RedPatchModel, frame, processor

from mmtrackers import Tracker
from mmtrackers.evaluation.vot import read_trajectory, register, serve

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
        trax = pytest.importorskip("trax.client", reason="vot-trax is not installed")
        environment = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}", TRAX="1")
        script = STUB.format(**({"streams": 1, "modality": "rgb"} | stub))
        self.process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, env=environment, bufsize=0)
        self.log: list[str] = []
        pipes = (self.process.stdin.fileno(), self.process.stdout.fileno())
        self.client = trax.Client(stream=pipes, log=self.log.append)

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
    from trax import TraxException

    driver = Driver()
    with pytest.raises(TraxException):
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


def test_trajectories_in_both_forms(tmp_path: Path) -> None:
    rows = [struct.pack("<BI", 0, 1), struct.pack("<Bffff", 1, 1.5, 2, 3, 4),
            struct.pack("<BH8f", 2, 4, 0, 0, 4, 1, 4, 3, 0, 2), struct.pack("<BhhHHH2H", 3, 5, 6, 7, 8, 2, 3, 53)]
    data = struct.pack("<hI", 1, len(rows)) + b"".join(rows)
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "a.txt").write_text("1\n1.5,2,3,4\n0,0,4,1,4,3,0,2\nm5,6,7,8,3,53\nnan,nan,nan,nan\n")
    expected = [[np.nan] * 4, [1.5, 2, 3, 4], [0, 0, 4, 3], [5, 6, 7, 8]]
    for name in ("a.bin", "a.txt"):
        found = read_trajectory(tmp_path / name)
        np.testing.assert_array_equal(found.boxes_xywh[:4], expected)
        assert found.codes.tolist()[:4] == [1, -1, -1, -1]
    assert found.codes[4] == 0 and np.isnan(found.boxes_xywh[4]).all()
    (tmp_path / "cut.bin").write_bytes(data[:-3])
    with pytest.raises(ValueError, match=r"cut.bin is truncated: it promises 4 rows and ends in row 3"):
        read_trajectory(tmp_path / "cut.bin")
    (tmp_path / "bad.txt").write_text("1\n1,2,3\n")
    with pytest.raises(ValueError, match=r"bad.txt, line 2: '1,2,3' is no region"):
        read_trajectory(tmp_path / "bad.txt")
