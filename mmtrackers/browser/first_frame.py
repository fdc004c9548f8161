"""One page on loopback that shows a first frame and takes the boxes drawn on it: standard library only."""

import html
import json
import os
import secrets
import string
import sys
import threading
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from mmtrackers.processing.boxes import check_box_xywh
from mmtrackers.tracking.drawing import data_url

HERE = Path(__file__).parent
LONGEST_ANSWER = 10_000
SAFE = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def ask_boxes(picture: np.ndarray, name: str, say: Callable[[str], None] = print) -> list[list[float]]:
    """Shows a picture (RGB, `[H, W, 3]` uint8) in the browser and waits for the boxes that a person draws on it: x, y,
    width, height in pixels, one per target.

    The page is served to this machine only, under an address with a secret in it, which `say` is told; a browser is
    opened where there is a desktop. Ctrl-C ends the waiting.
    """
    server = _Server(page(picture, name), picture.shape[:2])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        say(f"draw a box round the target in a browser on this machine: {server.address}")
        if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            webbrowser.open(server.address)
        # in steps, so that Ctrl-C is heard on Windows too
        while not server.answered.wait(0.2):
            pass
    finally:
        server.shutdown()
        server.server_close()
    return server.boxes


def page(picture: np.ndarray, name: str) -> str:
    """The page as one text: picture, script and style inside, nothing fetched from anywhere."""
    height, width = picture.shape[:2]
    text, css, js = ((HERE / f).read_text(encoding="utf-8") for f in ("first_frame.html", "stage.css", "stage.js"))
    image = data_url(picture, widest=width, quality=92)
    return string.Template(text).substitute(
        name=html.escape(name), width=width, height=height, image=image, css=css, js=js
    )


class _Server(ThreadingHTTPServer):
    """Gives the page to whoever has the token, until boxes come back."""

    daemon_threads = True

    def __init__(self, text: str, size: tuple[int, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.text, self.size, self.token = text, size, secrets.token_urlsafe(16)
        self.address = f"http://127.0.0.1:{self.server_port}/?token={self.token}"
        self.boxes: list[list[float]] = []
        self.answered = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 20

    def do_GET(self) -> None:
        if self._allowed():
            self._answer(200, self.server.text, "text/html")

    def do_POST(self) -> None:
        if not self._allowed():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST_ANSWER:
            return self._answer(413, "too long an answer")
        try:
            given = json.loads(self.rfile.read(int(length)))
            boxes = [check_box_xywh(np.asarray(box, dtype=np.float64), *self.server.size).tolist() for box in given]
        except (ValueError, TypeError) as error:
            return self._answer(400, str(error))
        if not boxes:
            return self._answer(400, "draw a box first")
        self._answer(200, "Thank you. Tracking goes on in the terminal; this page may be closed.")
        self.server.boxes = boxes
        self.server.answered.set()

    def _allowed(self) -> bool:
        """Only the address that was printed: another host name would be a page elsewhere that reaches in by DNS."""
        hosts = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        token = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        if self.headers.get("Host") in hosts and secrets.compare_digest(token.encode(), self.server.token.encode()):
            return True
        self._answer(403, "take the address with its token from the terminal")
        return False

    def _answer(self, status: int, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(status)
        about = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        for header, value in (SAFE | about).items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the terminal belongs to the command."""
