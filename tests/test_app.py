"""The app from end to end, in a headless browser: what a visitor does, and what one must not be able to do.

gradio asks for an older Pillow than the rest of the project, so it lives in an environment of its own, whose Python
`MMTRACKERS_APP` names; without it, the environment of the tests is tried.
"""

import importlib.util
import itertools
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_browser import drag

from mmtrackers.pretrained import SAMPLE_CLIP as CLIP
from mmtrackers.tracking.sources import open_source
from mmtrackers.tracking.video import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
PYTHON = os.environ.get("MMTRACKERS_APP") or (sys.executable if importlib.util.find_spec("gradio") else None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="MMTRACKERS_APP names no Python with gradio"),
]
# at its own rate the sample is over before a click arrives
SLOWLY = """
import sys, time
from mmtrackers.cli import main
from mmtrackers.tracking.targets import Targets
update = Targets.update
Targets.update = lambda self, frame: (time.sleep(0.1), update(self, frame))[1]
sys.argv = ["mmtrackers", "app", "--no-browser"]
main()
"""
PEDESTRIAN = (353, 396), (406, 544)
SIZE = (768, 576)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The command, its address, and the folder that its own files must stay in and leave again."""
    temporary = tmp_path_factory.mktemp("server")
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [PYTHON, "-c", SLOWLY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    told: list[str] = []
    threading.Thread(target=lambda: told.extend(iter(process.stdout.readline, "")), daemon=True).start()
    end = time.monotonic() + 240
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", "".join(told))):
        assert process.poll() is None and time.monotonic() < end, "".join(told)
        time.sleep(0.2)
    yield found[0], temporary
    process.terminate()
    process.wait(60)
    assert not list(temporary.glob("mmtrackers-app-*")), "files were left behind"


@pytest.fixture
def page(served: tuple[str, Path], browser: Any) -> Iterator[Any]:
    """The app, loaded; a call to anywhere else and an error of the page's own fail the test."""
    address, _ = served
    context = browser.new_context(viewport={"width": 1400, "height": 950}, accept_downloads=True)
    page, elsewhere, errors = context.new_page(), [], []
    page.set_default_timeout(90_000)
    page.on("request", lambda call: elsewhere.append(call.url)
            if not call.url.startswith((address, "data:", "blob:")) else None)  # fmt: skip
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#sample")
    yield page
    context.close()
    assert elsewhere == [] and errors == []


def said(page: Any, pattern: str) -> str:
    page.wait_for_function("(p) => new RegExp(p).test(document.querySelector('#said').innerText)", arg=pattern)
    return page.locator("#said").inner_text()


def take_sample(page: Any) -> None:
    page.click("#sample")
    page.wait_for_selector("#picture .stage img[src^=data]")
    said(page, "Draw a box")


def boxes_of(page: Any) -> list[str]:
    return page.locator("#picture .box span").all_inner_texts()


def download(page: Any, ending: str) -> str:
    link = next(a for a in page.locator("#files a").all() if ending in (a.get_attribute("href") or ""))
    answer = page.request.get(link.get_attribute("href"))
    assert answer.status == 200
    return answer.text()


def test_the_sample_is_followed(page: Any) -> None:
    take_sample(page)
    drag(page, *PEDESTRIAN, SIZE)
    assert boxes_of(page) == ["1"]
    page.click("#go")
    assert "per second in the tracker" in said(page, "Done")
    page.wait_for_selector("#done video")
    page.wait_for_function("() => document.querySelector('#done video').videoWidth > 0")
    assert page.evaluate("() => document.querySelector('#done video').videoWidth") == 768
    rows = np.array([line.split(",") for line in download(page, ".txt").split()], dtype=float)
    assert len(rows) == len(list(open_source(CLIP))) and np.allclose(rows[0], [353, 396, 53, 148], atol=2)
    assert '"scores"' in download(page, ".json")


def test_two_targets_are_followed_corrected_and_stopped(page: Any) -> None:
    take_sample(page)
    drag(page, *PEDESTRIAN, SIZE)
    drag(page, (100, 100), (150, 180), SIZE)
    page.click("#go")
    said(page, "frame [1-9]")
    page.click("#pause")
    said(page, "Paused")
    at = int(re.search(r"frame (\d+)", page.locator("#said").inner_text())[1])
    assert boxes_of(page) == ["1", "2"] and at < 90
    page.locator("#picture .box button").nth(1).click()
    drag(page, (600, 300), (650, 400), SIZE)
    page.wait_for_timeout(500)
    assert len(boxes_of(page)) == 2
    page.click("#go")
    said(page, f"frame (?!{at} )")
    page.click("#pause")
    said(page, "Paused")
    page.click("#stop")
    assert "stopped" in said(page, "Done")
    rows = [line.split(",") for line in download(page, ".txt").split()]
    assert at <= len(rows) <= 100


def test_a_pair_and_another_first_frame(page: Any, tmp_path: Path) -> None:
    frames = [frame["rgb"] for frame in itertools.islice(open_source(CLIP), 12)]
    with VideoWriter(tmp_path / "rgb.mp4") as rgb, VideoWriter(tmp_path / "thermal.mp4") as thermal:
        for frame in frames:
            rgb.write(frame)
            thermal.write(255 - frame)
    page.set_input_files("#video input[type=file]", tmp_path / "rgb.mp4")
    said(page, "Draw a box")
    page.click("#pair button")
    page.get_by_label("thermal").check()
    page.set_input_files("#other input[type=file]", tmp_path / "thermal.mp4")
    page.wait_for_selector("#picture img.second[src^=data]")
    page.locator("#frame input[type=number]").fill("4")
    page.locator("#frame input[type=number]").blur()
    page.wait_for_timeout(1500)
    drag(page, *PEDESTRIAN, SIZE)
    page.click("#go")
    assert "8 frames" in said(page, "Done")
    rows = np.array([line.split(",") for line in download(page, ".txt").split()], dtype=float)
    assert len(rows) == 12 and not rows[:4].any() and rows[4:].any(axis=1).all()


def test_what_cannot_be_used_is_said_without_paths(page: Any, served: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video at all" * 100)
    page.set_input_files("#video input[type=file]", tmp_path / "bad.mp4")
    # gradio's own may stand beside
    ours = page.locator(".toast-body").filter(has_text="bad.mp4 cannot be read as a video")
    ours.wait_for()
    assert str(served[1]) not in ours.inner_text()
    take_sample(page)
    page.click("#go")
    page.get_by_text("draw a box on the picture first").wait_for()


def test_a_visitor_reads_no_file_of_the_server(page: Any, served: tuple[str, Path]) -> None:
    for path in ("/etc/passwd", str(ROOT / "pyproject.toml")):
        assert page.request.get(f"{served[0]}/gradio_api/file={path}").status == 403


def test_zips_are_bounded(tmp_path: Path) -> None:
    from mmtrackers.browser.pictures import unpack_pictures

    png = cv2.imencode(".png", np.full((4, 4), 1500, np.uint16))[1].tobytes()
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        for name in ("../../a.png", "deep/b.PNG", "readme.txt"):
            archive.writestr(name, png)
    unpack_pictures(tmp_path / "good.zip", tmp_path / "frames", 5, 10_000)
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == ["a.png", "b.PNG"]
    for most, most_bytes in ((1, 10_000), (5, 100)):
        with pytest.raises(ValueError, match="holds more than"):
            unpack_pictures(tmp_path / "good.zip", tmp_path / "more", most, most_bytes)
    (tmp_path / "bad.zip").write_bytes(b"PK no")
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the second picture is damaged
        with zipfile.ZipFile(tmp_path / f"{kind}.zip", "w", kind) as archive:
            for name in ("a.png", "b.png"):
                archive.writestr(name, 99 * b"depth")
        data = bytearray((tmp_path / f"{kind}.zip").read_bytes())
        at = data.index(b"b.png") + 5
        data[at : at + 8] = 8 * b"\xff"
        (tmp_path / f"{kind}.zip").write_bytes(data)
    for name in ("bad", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with pytest.raises(ValueError, match="cannot be read as a zip"):
            unpack_pictures(tmp_path / f"{name}.zip", tmp_path / "more", 5, 10_000)
        assert not (tmp_path / "more").exists(), "the next look would take what was unpacked for the whole"
