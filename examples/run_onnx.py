"""
Tracks with an exported tracker by numpy, OpenCV and onnxruntime alone: for a Jetson, a Raspberry Pi, another language.

    mmtrackers export mmtrackers/pretrained/ostrack-tiny out/onnx          # where mmtrackers is installed
    python run_onnx.py out/onnx video.mp4 353,396,53,148                   # where it is not

Prints a line `x,y,w,h,score` per frame, as mmtrackers finds them: where the score is below `absent_below` of
preprocessor_config.json the target is gone, and its box stays where it was. SOURCE is a video, or a folder of pictures
in the order of their names. For trackers of RGB with one template and OSTrack's crops; the session of mmtrackers runs
all others too.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

SMALLEST = 10  # pixels of a box that stay inside the frame
SLOW = 0.98  # share of the past that a target's usual size keeps in each frame


class OnnxTracker:
    """One target in one video: `start` with its box, then `update` with each frame.

    Args:
        folder (`str` or `Path`): what `mmtrackers export` wrote.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / "onnx_config.json").is_file():
            raise SystemExit(f"{folder} holds no onnx_config.json: give the folder that mmtrackers export wrote")
        self.record = json.loads((folder / "onnx_config.json").read_text())
        self.crops = json.loads((folder / "preprocessor_config.json").read_text())
        single = self.record["template_policy"]["type"] == "TemplatePolicy" and not self.record["state"]
        if self.record["config"]["streams"] != 1 or not single or self.crops.get("crop_style", "ostrack") != "ostrack":
            raise SystemExit(f"{folder}: a tracker of two streams, several templates or other crops; use mmtrackers")
        provider = ["CPUExecutionProvider"]
        self.template_graph = onnxruntime.InferenceSession(str(folder / "template.onnx"), providers=provider)
        self.search_graph = onnxruntime.InferenceSession(str(folder / "search.onnx"), providers=provider)
        self.mean = 255 * np.array(self.crops["image_mean"], np.float32)
        self.std = 255 * np.array(self.crops["image_std"], np.float32)

    def start(self, frame: np.ndarray, box_xywh: list[float]) -> None:
        """Shows the target: a frame `[H, W, 3]`, RGB, uint8, and its box in pixels."""
        self.box = np.array(box_xywh, np.float64)
        self.usual_size = log_size(self.box)
        pixels, _ = self.crop(frame, "template")
        (self.template,) = self.template_graph.run(None, {"template": pixels[:, None]})

    def update(self, frame: np.ndarray) -> tuple[np.ndarray, float]:
        """The target's box x, y, width, height in the next frame, the last one where it is absent, and the score."""
        pixels, side = self.crop(frame, "search")
        boxes, scores = self.search_graph.run(None, {"search": pixels, "template": self.template})
        center_x, center_y, width, height = boxes[0].astype(np.float64) * side
        kept = self.crops.get("size_momentum", 0.0)
        center = self.box[:2] + self.box[2:] / 2 - side / 2 + (center_x, center_y)
        found = self.inside(frame, np.concatenate([center - (width / 2, height / 2), (width, height)]))
        if kept:
            size = kept * self.box[2:] + (1 - kept) * found[2:]
            found = self.inside(frame, np.concatenate([found[:2] + (found[2:] - size) / 2, size]))
        score = self.confidence(float(scores[0]), found)
        if score >= (self.crops.get("absent_below") or 0.0):
            self.box = found
        return self.box, score

    def confidence(self, score: float, box_xywh: np.ndarray) -> float:
        """The probability that a box is right, of a calibrated tracker: by its score and a sudden change of size."""
        change = abs(log_size(box_xywh) - self.usual_size)
        self.usual_size = SLOW * self.usual_size + (1 - SLOW) * log_size(box_xywh)
        if self.crops.get("calibration") is None:
            return score
        score = min(max(score, 1e-3), 1 - 1e-3)
        sure = np.dot(self.crops["calibration"], (1, math.log(score / (1 - score)), change))
        return 1 / (1 + math.exp(-sure))

    def crop(self, frame: np.ndarray, role: str) -> tuple[np.ndarray, int]:
        """The square round the last box, normalized `[1, 1, 3, size, size]`, and its side in pixels of the frame."""
        x, y, w, h = self.box
        size, factor = self.crops[f"{role}_size"], self.crops[f"{role}_factor"]
        side = max(math.ceil(math.sqrt(w * h) * factor), 1)
        x1, y1 = round(x + w / 2 - side / 2), round(y + h / 2 - side / 2)
        height, width = frame.shape[:2]
        left, right = max(x1, 0), x1 + side if x1 + side < width else width - 1
        top, bottom = max(y1, 0), y1 + side if y1 + side < height else height - 1
        square = np.zeros((side, side, 3), np.uint8)
        if left < right and top < bottom:
            square[top - y1 : bottom - y1, left - x1 : right - x1] = frame[top:bottom, left:right]
        square = cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR)
        pixels = (square.astype(np.float32) - self.mean) / self.std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None, None], side

    @staticmethod
    def inside(frame: np.ndarray, box_xywh: np.ndarray) -> np.ndarray:
        """A box of which at least `SMALLEST` pixels lie in the frame."""
        limit = np.array([frame.shape[1], frame.shape[0]], np.float64)
        margin = np.minimum(SMALLEST, limit)
        first = np.clip(box_xywh[:2], 0, limit - margin)
        last = np.clip(box_xywh[:2] + box_xywh[2:], margin, limit)
        return np.concatenate([first, np.maximum(margin, last - first)])


def log_size(box_xywh: np.ndarray) -> float:
    """The logarithm of a box's mean side."""
    return 0.5 * math.log(max(box_xywh[2] * box_xywh[3], 1e-6))


def box_of(text: str) -> list[float]:
    """Four finite numbers `x,y,width,height`, both sides above 0."""
    try:
        box = [float(part) for part in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y,width,height in pixels, both sides above 0")
    return box


def frames_of(source: str) -> Iterator[np.ndarray]:
    """The RGB frames of a video or of a folder of pictures."""
    if Path(source).is_dir():
        for path in sorted(Path(source).iterdir()):
            if (picture := cv2.imread(str(path))) is not None:
                yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        return
    video = cv2.VideoCapture(source)
    while True:
        there, picture = video.read()
        if not there:
            return
        yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what mmtrackers export wrote")
    parser.add_argument("source", help="a video, or a folder of pictures")
    parser.add_argument("box", type=box_of, help="x,y,width,height of the target in the first frame, in pixels")
    options = parser.parse_args()
    frames, box = frames_of(options.source), options.box
    first = next(frames, None)
    if first is None:
        raise SystemExit(f"{options.source} has no frame")
    tracker = OnnxTracker(options.folder)
    tracker.start(first, box)
    print(",".join(f"{value:.2f}" for value in box) + ",1.000")
    for frame in frames:
        found, score = tracker.update(frame)
        print(",".join(f"{value:.2f}" for value in found) + f",{score:.3f}", flush=True)


if __name__ == "__main__":
    main()
