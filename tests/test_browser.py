"""The page of a first frame: what it lets in, and boxes drawn on it in a real browser."""

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from mmtrackers.browser.first_frame import ask_boxes

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
