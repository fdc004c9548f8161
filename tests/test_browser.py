"""The page of a first frame: what it lets in, and boxes drawn on it in a real browser."""

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from mmtrackers.browser.first_frame import ask_boxes

try:
    import pty
except ImportError:
    pty = None

PICTURE = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)


class Asking:
    """`ask_boxes` in a thread: its address, and what it returns."""

    def __init__(self, name: str = "a <clip>") -> None:
        self.told, self.boxes = [], []
        ready = threading.Event()

        def say(line: str) -> None:
            self.told.append(line)
            ready.set()

        self.thread = threading.Thread(target=lambda: self.boxes.extend(ask_boxes(PICTURE, name, say)), daemon=True)
        self.thread.start()
        assert ready.wait(20)
        self.address = self.told[0].split()[-1]

    def send(self, method: str, body: str | None = None, path: str | None = None, host: str | None = None) -> tuple:
        where = urlsplit(self.address)
        line = HTTPConnection(where.hostname, where.port, timeout=20)
        line.request(method, path or f"/?{where.query}", body, {"Host": host or where.netloc})
        answer = line.getresponse()
        return answer.status, answer.read().decode(), answer.headers

    def end(self) -> list[list[float]]:
        self.thread.join(20)
        return self.boxes


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    asking = Asking()
    yield asking
    if not asking.boxes:
        asking.send("POST", "[[1, 2, 30, 40]]")
        asking.end()


def test_only_the_address_with_its_token_is_answered(asking: Asking) -> None:
    status, text, headers = asking.send("GET")
    assert status == 200 and "a &lt;clip&gt;" in text and "<clip>" not in text
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["Cache-Control"] == "no-store"
    for path, host in (("/", None), ("/?token=guess", None), (None, "evil.example"), ("/etc/passwd", None)):
        assert asking.send("GET", path=path, host=host)[0] == 403
        assert asking.send("POST", "[[1, 2, 3, 4]]", path=path, host=host)[0] == 403
    assert asking.thread.is_alive() and asking.boxes == []


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("nothing", 400, "Expecting value"),
        ("[]", 400, "draw a box first"),
        ("[[1, 2, 3]]", 400, "4 numbers"),
        ("[[1, 2, 3, null]]", 400, "not finite"),
        ('[["a", 2, 3, 4]]', 400, "could not convert"),
        ("[[900, 2, 3, 4]]", 400, "outside the picture"),
        ("7", 400, "not iterable"),
        (json.dumps([[1, 2, 30, 40]] * 1000), 413, "too long"),
    ],
)
def test_answers_that_are_no_boxes_are_refused(asking: Asking, body: str, status: int, reason: str) -> None:
    found, text, _ = asking.send("POST", body)
    assert found == status and reason in text
    assert asking.thread.is_alive()


def test_boxes_end_the_waiting(asking: Asking) -> None:
    assert asking.send("POST", "[[1, 2, 30, 40], [5.5, 6, 70, 80]]")[0] == 200
    assert asking.end() == [[1, 2, 30, 40], [5.5, 6, 70, 80]]


def drag(page: Any, start: tuple[float, float], end: tuple[float, float], size: tuple[int, int]) -> None:
    """Draws from one corner to another, given in pixels of the picture."""
    seen = page.locator(".stage img").bounding_box()
    across, down = seen["width"] / size[0], seen["height"] / size[1]
    page.mouse.move(seen["x"] + start[0] * across, seen["y"] + start[1] * down)
    page.mouse.down()
    page.mouse.move(seen["x"] + end[0] * across, seen["y"] + end[1] * down, steps=4)
    page.mouse.up()


def test_boxes_are_drawn_corrected_and_removed(asking: Asking, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 900, "height": 700})
    page, errors, calls = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda call: calls.append(urlsplit(call.url).netloc))
    page.goto(asking.address)
    assert page.locator(".go").is_disabled()
    drag(page, (40, 50), (100, 130), (320, 240))
    drag(page, (110, 140), (42, 52), (320, 240))  # from the other corner, over the first: it is corrected
    assert page.locator(".box").count() == 1
    drag(page, (200, 30), (260, 90), (320, 240))
    drag(page, (20, 170), (22, 171), (320, 240))  # too small: a click
    drag(page, (10, 180), (90, 230), (320, 240))
    assert page.locator(".box span").all_inner_texts() == ["1", "2", "3"]
    page.locator(".box button").nth(1).click()
    page.locator(".box span").nth(1).click()  # the third, now second: the next box is its place, wherever that is
    drag(page, (250, 100), (310, 160), (320, 240))
    assert page.locator(".box span").all_inner_texts() == ["1", "3"]
    page.locator(".go").click()
    page.wait_for_selector("output.good")
    context.close()
    first, third = asking.end()
    assert np.allclose(first, [42, 52, 68, 88], atol=1.5)
    assert np.allclose(third, [250, 100, 60, 60], atol=1.5)
    assert errors == [] and set(calls) <= {urlsplit(asking.address).netloc, ""}


def test_a_finger_draws_too(asking: Asking, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(asking.address)
    seen = page.locator(".stage img").bounding_box()
    assert seen["width"] <= 360
    touch = context.new_cdp_session(page)
    for kind, points in (("Start", [(0.25, 0.25)]), ("Move", [(0.75, 0.5)]), ("End", [])):
        at = [{"x": seen["x"] + seen["width"] * x, "y": seen["y"] + seen["height"] * y} for x, y in points]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": at})
    page.locator(".go").click()
    page.wait_for_selector("output.good")
    context.close()
    assert np.allclose(asking.end(), [[80, 60, 160, 60]], atol=2)


@pytest.mark.skipif(pty is None, reason="no terminals of POSIX here")
def test_track_without_a_box_asks_in_the_browser(browser: Any, tmp_path: Path) -> None:
    """The command at a terminal: its address, a box drawn there, the run, and the command that would have done it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mmtrackers", "track", "sample", "--max-frames", "3", "--output", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.Popen(command, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True, env=environment)
    os.close(theirs)
    told = read_until(ours, r"http://\S+(?=\s)")
    page = browser.new_page()
    page.goto(re.search(r"http://\S+", told)[0])
    size = tuple(page.evaluate("[state.width, state.height]"))
    drag(page, (353, 396), (406, 544), size)
    page.locator(".go").click()
    page.wait_for_selector("output.good")
    page.close()
    told = read_until(ours, r"the same without a browser: .*(?=\s)")
    output, _ = done.communicate(timeout=120)
    assert done.returncode == 0 and "3 frames" in output
    same = re.search(r"mmtrackers track sample --max-frames 3 --output \S+ --box ([\d.,]+)", told)
    (text,) = tmp_path.glob("*_tracked.txt")
    first = [float(value) for value in text.read_text().splitlines()[0].split(",")]
    assert [float(value) for value in same[1].split(",")] == pytest.approx(first, abs=1e-3)
    assert np.allclose(first, [353, 396, 53, 148], atol=2)


def read_until(terminal: int, pattern: str, seconds: float = 120) -> str:
    """What a terminal shows until a pattern is there."""
    text, end = "", time.monotonic() + seconds
    while not re.search(pattern, text):
        assert time.monotonic() < end, text
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 4096).decode()
    return text


def test_without_a_terminal_the_way_out_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmtrackers", "track", "sample", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 2 and "or run the command at a terminal to draw it in a browser" in done.stderr
