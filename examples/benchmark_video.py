"""
Real sequences from their first box on: does bfloat16 follow as float32 does, and what does each stage of
`mmtrackers track` cost? Run by `benchmark.py --sequences`.

The package's own tracker for a sequence's second stream, packed, in float32 and in bfloat16, and OpenCV's CSRT where
opencv-contrib is installed, take turns on every frame. A tracker lives on its own boxes, so that any difference may
grow: float32 from a first box that lies 0.1 pixels off says by how much a sequence magnifies it. Times are medians of
this process's CPU time, in ms per frame, its threads included; reading, drawing and encoding, which `track` does in
threads of its own, are done in turn here.
"""

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from measure import Rival, open_part

from mmtrackers import Prediction, Tracker
from mmtrackers.cli.ending import quiet_loading
from mmtrackers.pretrained import default_checkpoint
from mmtrackers.processing.boxes import iou_xywh
from mmtrackers.tracking.drawing import annotate
from mmtrackers.tracking.video import VideoWriter

STAGES = ("crop", "model", "decode", "whole")


class CPUClock:
    """CPU seconds of this process, by stages.

    Example:
        >>> clock = CPUClock()
        >>> clock.begin()
        >>> clock("crop")
        >>> 0 <= clock.ms("crop") < 1000
        True
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def begin(self) -> None:
        self.first = self.last = time.process_time()

    def __call__(self, stage: str) -> None:
        """A stage has ended."""
        now = time.process_time()
        self.seconds[stage].append(now - self.last)
        self.last = now

    def end(self) -> None:
        """The whole has ended."""
        self.seconds["whole"].append(time.process_time() - self.first)

    def ms(self, stage: str) -> float:
        """The median of a stage; NaN where it never ended."""
        return 1e3 * median(self.seconds[stage]) if self.seconds[stage] else float("nan")


class Follower:
    """A tracker on a sequence, its overlaps and its times.

    Args:
        label (`str`): what it is called in the table.
        tracker (`Tracker` or `Rival`): what follows.
        shift (`float`): pixels that its first box lies off the given one, on both axes.
    """

    def __init__(self, label: str, tracker: Tracker | Rival, shift: float = 0.0) -> None:
        self.label, self.tracker, self.clock, self.overlaps = label, tracker, CPUClock(), []
        self.shift_xywh = np.array([shift, shift, 0, 0])

    def start(self, frame: dict[str, np.ndarray], box_xywh: np.ndarray) -> None:
        self.session = self.tracker.start(frame, box_xywh + self.shift_xywh)

    def update(self, frame: dict[str, np.ndarray], truth_xywh: np.ndarray | None) -> Prediction:
        own = (self.clock,) if isinstance(self.tracker, Tracker) else ()
        self.clock.begin()
        found = self.session.update(frame, *own)
        self.clock.end()
        if truth_xywh is not None:
            self.overlaps.append(float(iou_xywh(np.asarray(found.box), truth_xywh)))
        return found


def followers(modality: str) -> list[Follower]:
    """The package's tracker in both formats, and CSRT where OpenCV has it."""
    repo = str(default_checkpoint(modality))
    exact, half = (Tracker.from_pretrained(repo, dtype=dtype, pack=True) for dtype in ("float32", "bfloat16"))
    packed = [Follower("float32", exact), Follower("bfloat16", half), Follower("0.1 px off", exact, shift=0.1)]
    return packed + ([Follower("csrt", Rival("csrt"))] if hasattr(cv2, "TrackerCSRT") else [])


def follow(sequence, max_frames: int | None = None) -> tuple[list[Follower], CPUClock]:
    """All followers through a sequence, frame by frame in turn, and what reading, drawing and encoding cost."""
    found, around = followers(sequence.modality), CPUClock()
    annotated = getattr(sequence, "annotated", np.ones(len(sequence), dtype=bool))
    with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder) / "drawn.mp4") as writer:
        for index in range(min(len(sequence), max_frames or len(sequence))):
            around.begin()
            frame = sequence.read(index)
            around("read")
            if index == 0:
                for follower in found:
                    follower.start(frame, sequence.boxes_xywh[0])
                continue
            truth = sequence.boxes_xywh[index] if annotated[index] and sequence.present[index] else None
            predictions = [follower.update(frame, truth) for follower in found]
            around.begin()
            drawn = annotate(frame, predictions[:1], index)
            around("draw")
            writer.write(drawn)
            around("encode")
    return found, around


def report_sequences(names: list[str], max_frames: int | None = None) -> None:
    """Prints a row per sequence and tracker, and how the overlaps of the two formats differ.

    Args:
        names (`list[str]`): folders, each with :rgb or :x for one of its streams alone.
        max_frames (`int`, *optional*): of each sequence, so many.
    """
    print("  ".join([f"{'sequence':40}", f"{'tracker':10}", "overlap", *(f"{stage:>6}" for stage in STAGES)]))
    differences = []
    quiet_loading()
    for name in names:
        found, around = follow(open_part(name), max_frames)
        overlaps = [float(np.mean(follower.overlaps or np.nan)) for follower in found]
        differences.append([overlap - overlaps[0] for overlap in overlaps[1:3]])
        for follower, overlap in zip(found, overlaps, strict=True):
            times = [f"{follower.clock.ms(stage):6.2f}" for stage in STAGES]
            print("  ".join([f"{name[-40:]:40}", f"{follower.label:10}", f"{overlap:7.3f}", *times]))
        spent = ", ".join(f"{stage} {around.ms(stage):.2f}" for stage in ("read", "draw", "encode"))
        ratio = f"; csrt / bfloat16 {found[3].clock.ms('whole') / found[1].clock.ms('whole'):.1f}" if found[3:] else ""
        print(f"{'':40}  beside it: {spent}{ratio}", flush=True)
    for what, values in zip(("bfloat16", "0.1 px off"), zip(*differences, strict=True), strict=True):
        print(f"overlap, {what} - float32: mean {np.mean(values):+.4f}, largest {max(values, key=abs):+.4f}")
