"""Cameras and streams, on a server that the tests start and cut."""

import io
import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import cv2
import numpy as np
import pytest
import tracking_stub
from tracking_stub import RedPatchModel
from typer.testing import CliRunner

from mmtrackers import Tracker, cli
from mmtrackers.tracking import live
from mmtrackers.tracking.live import NewestFrame, is_live, open_live
from mmtrackers.tracking.sources import open_source
from mmtrackers.tracking.video import VideoWriter


def jpeg(number: int) -> bytes:
    """A picture as bright as its number."""
    return cv2.imencode(".jpg", np.full((48, 64, 3), number % 250, np.uint8))[1].tobytes()


def number_of(picture: np.ndarray) -> int:
    return round(float(picture.mean()))


def behind(newer: int, older: int) -> int:
    """How many pictures lie between two numbers, which begin anew at 250."""
    return min((newer - older) % 250, (older - newer) % 250)


class Camera(BaseHTTPRequestHandler):
    """Motion JPEG, a picture every 10 ms; `/none` never answers, `/ts` is one piece of MPEG-TS."""

    def do_GET(self):
        server = self.server
        server.connections += 1
        if self.path == "/none":
            time.sleep(3)
            return
        self.send_response(200)
        if self.path in ("/ts", "/clip.mp4"):
            self.send_header("Content-Type", "video/mp2t" if self.path == "/ts" else "video/mp4")
            self.send_header("Content-Length", str(len(server.piece)))
            self.end_headers()
            self.wfile.write(server.piece)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        own = server.connections
        try:
            while not server.cut and own > server.cut_before:
                data = jpeg(server.number)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                self.wfile.write(head + data + b"\r\n")
                server.number += 1
                time.sleep(0.01)
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def camera():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    server.number, server.connections, server.cut, server.cut_before = 1, 0, False, 0
    server.url = f"http://127.0.0.1:{server.server_port}/live"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.cut = True
    server.shutdown()
    server.server_close()


def test_what_is_live():
    assert is_live("rtsp://user:pw@10.0.0.7:554/stream1") and is_live("http://host/video.cgi?res=1") and is_live("12")
    assert not is_live("http://host/a/clip.MP4?x=1") and not is_live("visible") and not is_live("c:/clip.mp4")


def test_only_the_newest_frame_counts(camera):
    with NewestFrame(camera.url) as reader:
        number, first = reader.newer_than(0)
        assert first.shape == (48, 64, 3) and first.dtype == np.uint8
        time.sleep(0.6)  # a slow tracker
        later, second = reader.newer_than(number)
        assert later > number + 5, "frames that came meanwhile are left out"
        while behind(camera.number, number_of(second)) > 8:  # a busy machine may need a moment
            later, second = reader.newer_than(later)
        again, _ = reader.newer_than(later)
        assert again > later, "no frame comes twice"


def test_a_pulled_cable_is_waited_for_and_said(camera, caplog):
    frames = iter(open_live(camera.url, patience=10))
    next(frames)
    camera.cut_before = camera.connections
    numbers = []
    for frame in frames:
        numbers.append(number_of(frame["rgb"]))
        if camera.connections >= 2 and len(numbers) > 12:
            break
    frames.close()
    assert camera.connections >= 2
    assert any("broke off" in r.message and "connecting again" in r.message for r in caplog.records)


def test_a_camera_that_stays_away_is_given_up(camera):
    frames = iter(open_live(camera.url, patience=3.0))
    next(frames)
    camera.cut = True
    with pytest.raises(ValueError, match=r"/live gives no more pictures within 3 s .*is the address right"):
        for _ in frames:
            pass


def test_a_stream_of_mpeg_ts_that_ends_is_connected_again(camera):
    camera.piece = mpeg_ts(30)
    frames = iter(open_live(camera.url.replace("/live", "/ts")))
    for _ in range(3):
        assert next(frames)["rgb"].shape == (48, 64, 3)
        time.sleep(0.1)
    while camera.connections < 2:
        next(frames)
    frames.close()


def test_a_recording_at_an_address_is_read_whole(camera, tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 25) as writer:
        for i in range(10):
            writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    camera.piece = (tmp_path / "clip.mp4").read_bytes()
    source = open_source(camera.url.replace("/live", "/clip.mp4"))
    assert (source.name, source.live, source.length) == ("clip", False, 10) and len(list(source)) == 10


def test_sources_that_never_answer(camera, monkeypatch):
    monkeypatch.setattr(live, "_ANSWER", 0.3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/live"
        with pytest.raises(ValueError, match=r"gave no picture \(.*\): is the address right, and the camera on"):
            next(iter(open_live(nobody)))
    with pytest.raises(ValueError, match="/none gave no picture"):
        next(iter(open_live(camera.url.replace("/live", "/none"))))
    with pytest.raises(ValueError, match=r"99 gave no picture \(it cannot be opened\): is it plugged in"):
        next(iter(open_source("99")))
    with pytest.raises(ValueError, match=r"is live and .*heat is not: a camera goes with a camera"):
        open_source(camera.url, {"thermal": "heat"})
    with pytest.raises(ValueError, match="is live and clip is not"):
        open_source("clip", {"thermal": camera.url})


def test_two_cameras_are_a_pair(camera):
    source = open_source(camera.url, {"thermal": camera.url})
    assert (source.modality, source.live) == ("thermal", True)
    frames = iter(source)
    for _ in range(5):
        frame = next(frames)
        assert behind(number_of(frame["rgb"]), number_of(frame["thermal"])) < 60  # on a busy machine
    frames.close()


def test_a_second_camera_that_stays_away_is_given_up(camera):
    camera.piece = mpeg_ts(40)
    frames = iter(open_live(camera.url, {"thermal": camera.url.replace("/live", "/ts")}, patience=4.0))
    next(frames)
    camera.piece = b""
    with pytest.raises(ValueError, match="/ts gives no more pictures within 4 s"):
        for _ in frames:
            pass


def test_nothing_but_the_newest_frame_is_kept(camera):
    with NewestFrame(camera.url) as reader:
        number, _ = reader.newer_than(0)
        time.sleep(0.5)
        held = [value for value in vars(reader).values() if isinstance(value, (list, dict, tuple))]
        assert held == [] and reader.newer_than(number)[0] > number
    reader._thread.join(3)
    assert not reader._thread.is_alive(), "the reader goes with its user"


# --------------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def track(camera, tmp_path, monkeypatch):
    """`mmtrackers track` on the camera, with a tracker of red patches."""

    def from_pretrained(repo, dtype=None, device=None, pack=False, base_model=None, **kwargs):
        return Tracker(RedPatchModel(), tracking_stub.processor(), **kwargs)

    monkeypatch.setattr(Tracker, "from_pretrained", from_pretrained)

    def call(*options, url=camera.url):
        place = ["track", url, "--model", "m", "--box", "10,10,20,20", "--output", str(tmp_path / "out")]
        return CliRunner().invoke(cli.app, [*place, *options])

    return call


def test_a_json_line_per_frame(track, tmp_path):
    result = track("--max-frames", "12", "--stream")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["frame"] for line in lines] == list(range(12))
    assert list(lines[3]["targets"][0]) == ["box", "score", "present"] and lines[3]["time"] <= time.time()
    assert "12 frames" in result.stderr
    assert not list((tmp_path / "out").glob("*.mp4")), "a video is written where it is asked for"


def test_a_camera_is_recorded_and_its_run_keeps_its_last_frames(track, tmp_path, monkeypatch):
    monkeypatch.setattr("mmtrackers.tracking.runs.KEPT", 5)
    result = track("--max-frames", "23", "--save")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    record = json.loads(next(out.glob("*_tracked.json")).read_text())
    assert record["frames"] == 23 and record["first_frame"] > 10
    assert len(record["targets"][0]["scores"]) == 23 - record["first_frame"] <= 10
    text = next(path for path in out.glob("*_tracked.txt"))
    assert len(text.read_text().splitlines()) == 23, "the files have all of them"
    with av.open(str(next(out.glob("*.mp4")))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 23


def test_a_run_ends_where_its_camera_is_gone(track, camera, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE", 3.0)
    threading.Timer(1.5, lambda: setattr(camera, "cut", True)).start()
    result = track()
    assert result.exit_code == 2 and "gives no more pictures within 3 s" in result.stderr
    assert "what was done until then" in result.stderr
    assert json.loads(next((tmp_path / "out").glob("*.json")).read_text())["frames"] > 3


def test_addresses_that_cannot_be_used(track):
    result = track(url="rtsp://127.0.0.1:9/x")
    assert result.exit_code == 2 and "rtsp://127.0.0.1:9/x gave no picture" in result.stderr
    assert "Traceback" not in result.output


# ------------------------------------------------------------------------------------------------------------- RTSP


class RTSPServer:
    """One client after the other gets MPEG-TS in RTP, interleaved on its connection; `cut` hangs up on it."""

    SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"

    def __init__(self, piece: bytes) -> None:
        self.piece, self.connections, self.cut, self.closed = piece, 0, False, False
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self.socket.getsockname()[1]}/stream"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self.closed:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            self.connections, self.cut = self.connections + 1, False
            with client, client.makefile("rb") as lines:
                try:
                    if self._agree(client, lines):
                        self._play(client)
                except OSError:
                    pass

    def _agree(self, client, lines) -> bool:
        while words := lines.readline().split():
            headers = {}
            while line := lines.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            body, more = "", {"CSeq": headers["cseq"], "Session": "7"}
            if words[0] == b"OPTIONS":
                more["Public"] = "DESCRIBE, SETUP, PLAY, TEARDOWN"
            elif words[0] == b"DESCRIBE":
                body, more["Content-Type"] = self.SDP, "application/sdp"
            elif words[0] == b"SETUP":
                more["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
            more["Content-Length"] = str(len(body))
            head = "".join(f"{name}: {value}\r\n" for name, value in more.items())
            client.sendall(f"RTSP/1.0 200 OK\r\n{head}\r\n{body}".encode())
            if words[0] == b"PLAY":
                return True
        return False

    def _play(self, client) -> None:
        size = 7 * 188
        for number in range(10**6):
            at = number * size % (len(self.piece) // size * size)
            data = self.piece[at : at + size]
            header = bytes((0x80, 33)) + struct.pack(">HII", number & 0xFFFF, number * 900, 7)
            client.sendall(b"$\0" + struct.pack(">H", len(header) + len(data)) + header + data)
            if self.cut:
                return
            time.sleep(0.002)

    def close(self) -> None:
        self.closed = self.cut = True
        self.socket.close()


def mpeg_ts(count: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 5
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_rtsp_and_a_pulled_cable(caplog):
    server = RTSPServer(mpeg_ts(60))
    try:
        frames = iter(open_live(server.url, patience=20))
        assert next(frames)["rgb"].shape == (48, 64, 3)
        next(frames)
        server.cut = True
        while server.connections < 2:
            next(frames)
        for _ in range(3):
            assert next(frames)["rgb"].shape == (48, 64, 3)
        frames.close()
    finally:
        server.close()
    assert any("rtsp://127.0.0.1" in r.message and "connecting again" in r.message for r in caplog.records)
