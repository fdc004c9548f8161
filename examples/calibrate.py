"""
How sure a tracker may be: fits the probability that a box is right, and says what it is worth.

    python examples/calibrate.py mmtrackers/pretrained/ostrack-tiny --synthetic pictures           # prints
    python examples/calibrate.py mmtrackers/pretrained/ostrack-tiny --synthetic pictures --write   # and saves

On composed clips of held-out pictures, half of which the target leaves and comes back to: weights and the limit
`absent_below` are fitted on one half of the clips and judged on the other. A box is right where it overlaps a visible
target by 0.3. With `--write` both go to the folder's `preprocessor_config.json`. Then `recover` is tried with them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from tqdm import tqdm

from mmtrackers import Tracker
from mmtrackers.cli.ending import run_script
from mmtrackers.processing.boxes import iou_xywh
from mmtrackers.synthetic.pairs import PictureLibrary, SyntheticSequence, synthetic_sequence
from mmtrackers.tracking.confidence import evidence, log_size, probability, usual_size_after
from mmtrackers.training.augment import inside

RIGHT = 0.3  # overlap from which on a box is right
SOON = 30  # frames within which a return should be found
VIEW = (240, 320)  # height and width of what the camera of a clip with an exit sees
SMALLEST_PART = 0.1  # of the target inside the view, where it counts as present


class ExitingSequence:
    """A view `corners` int `[length, 2]` (x, y) of its upper left that moves about in a wider composed video."""

    def __init__(self, source: SyntheticSequence, corners: np.ndarray) -> None:
        self.source, self.corners = source, corners
        positions, extents = np.split(source.boxes_xywh, 2, axis=1)
        self.boxes_xywh = inside(np.hstack([positions - corners, extents]), VIEW[::-1])
        share = self.boxes_xywh[:, 2:].prod(1) / np.maximum(extents.prod(1), 1e-9)
        self.present = source.present & (share >= SMALLEST_PART) & (self.boxes_xywh[:, 2:].min(1) >= 1)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> dict[str, np.ndarray]:
        """A frame of all streams, as far as the view goes."""
        left, top = self.corners[index]
        frame = self.source.read(index)
        return {name: picture[top : top + VIEW[0], left : left + VIEW[1]] for name, picture in frame.items()}


def exiting_sequence(library: PictureLibrary, seed: int, modality: str, length: int = 100) -> ExitingSequence:
    """A composed video whose target leaves the view for 10 to 25 frames and is somewhere else in it afterwards."""
    wide = (VIEW[0] + 80, 2 * VIEW[1])
    for attempt in range(100):
        rng = np.random.default_rng((seed, attempt, 11))
        source = synthetic_sequence(library, int(rng.integers(2**31)), modality, length, wide, blind="none")
        away, back = int(rng.integers(20, 30)), int(rng.integers(42, 52))
        centers = source.boxes_xywh[:, :2] + source.boxes_xywh[:, 2:] / 2
        keys = []
        for index, side in ((0, None), (away, None), (back, "away"), (min(back + 6, length - 1), None)):
            place = centers[index] - rng.uniform(0.3, 0.7, 2) * (VIEW[1], VIEW[0])
            if side == "away":
                place[0] = 0 if centers[index, 0] > VIEW[1] else wide[1] - VIEW[1]
            keys.append(np.clip(place, 0, (wide[1] - VIEW[1], wide[0] - VIEW[0])))
        times = [0, away, away + 6, back, min(back + 6, length - 1), length - 1]
        paths = np.array([keys[0], keys[1], keys[2], keys[2], keys[3], keys[3]])
        corners = np.stack([np.interp(np.arange(length), times, paths[:, axis]) for axis in (0, 1)], 1)
        found = ExitingSequence(source, np.rint(corners).astype(int))
        gone = ~found.present[away + 6 : back]
        if found.present[: away - 2].all() and gone.sum() >= 10 and found.present[back + 8 :].mean() > 0.8:
            return found
    raise RuntimeError(f"no video with an exit and a return in 100 tries for seed {seed}")


@dataclass
class Trace:
    """What a tracker answered in a clip, frame by frame from the second on."""

    evidence: np.ndarray
    overlaps: np.ndarray
    visible: np.ndarray
    present: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.visible & (self.overlaps >= RIGHT)


def fit(found: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Weights for `probability`, by Newton's method on the likelihood with a weak ridge.

    Args:
        found (`np.ndarray` of shape `(frames, 3)`): the evidence of answers.
        right (`np.ndarray` of shape `(frames,)`, bool): whether the box was right.

    Raises:
        ValueError: all answers are right, or all are wrong: nothing can be told apart.
    """
    if right.all() or not right.any():
        raise ValueError("a calibration needs right and wrong answers: take harder or longer clips")
    weights = np.zeros(found.shape[1])
    for _ in range(30):
        sure = probability(found, weights)
        slope = found.T @ (right - sure) - 1e-3 * weights
        curve = (found * (sure * (1 - sure))[:, None]).T @ found + 1e-3 * np.eye(len(weights))
        weights = weights + np.linalg.solve(curve, slope)
    return weights


def calibration_error(found: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: mean distance of probability and share of right answers over bins of equal count."""
    parts = np.array_split(np.argsort(found), 10)
    return float(sum(len(p) * abs(found[p].mean() - right[p].mean()) for p in parts if len(p)) / len(found))


def trace(tracker: Tracker, clip) -> Trace:
    """Tracks a clip from its first box."""
    session = tracker.start(clip.read(0), clip.boxes_xywh[0])
    usual_size, rows = log_size(clip.boxes_xywh[:1]), []
    for index in range(1, len(clip)):
        found = session.update(clip.read(index))
        score, box = np.array([found.score]), found.box[None]
        overlap = float(iou_xywh(found.box, clip.boxes_xywh[index])) if clip.present[index] else 0.0
        rows.append((evidence(score, box, usual_size)[0], overlap, clip.present[index], found.present))
        usual_size = usual_size_after(usual_size, box)
    return Trace(*map(np.array, zip(*rows, strict=True)))


def clips_of(pictures: Path, modality: str, count: int) -> list:
    """Composed clips of held-out pictures, with and without an exit in turn."""
    library = PictureLibrary(pictures, split="heldout")
    return [
        exiting_sequence(library, 30_000 + seed, modality)
        if seed % 2
        else synthetic_sequence(library, 20_000 + seed, modality, 60, blind="none")
        for seed in range(count)
    ]


def joined(traces: list[Trace]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([t.evidence for t in traces]), np.concatenate([t.right for t in traces])


def returns_found(traces: list[Trace]) -> tuple[int, int, float]:
    """Returns found in time, all returns, and the share of absent frames in which a target was reported."""
    found, returns, absent, false = 0, 0, 0, 0
    for one in traces:
        gone = np.flatnonzero(~one.visible)
        absent, false = absent + len(gone), false + int(one.present[gone].sum())
        if len(gone) and gone[-1] + 1 < len(one.visible):
            after = slice(gone[-1] + 1, gone[-1] + 1 + SOON)
            returns += 1
            found += bool((one.present & one.right)[after].any())
    return found, returns, false / max(absent, 1)


def main(
    tracker: Annotated[str, typer.Argument(help="Folder of a tracker or an adapter.")],
    synthetic: Annotated[Path, typer.Option(help="Pictures to compose held-out clips from.")] = ...,
    count: Annotated[int, typer.Option(help="Number of clips.", min=8)] = 80,
    flagged: Annotated[float, typer.Option(help="Share of right boxes that the limit may call absent.")] = 0.03,
    write: Annotated[bool, typer.Option("--write", help="Save weights and limit with the tracker.")] = False,
) -> None:
    """Prints what weights and limit are worth on clips that they were not fitted on, and what `recover` is."""
    cv2.setNumThreads(1)
    loaded = Tracker.from_pretrained(tracker, absent_below=0.0, pack=True)
    processor = loaded.image_processor
    processor.calibration = None
    clips = clips_of(synthetic, loaded.modality, count)
    traces = [trace(loaded, clip) for clip in tqdm(clips, desc="clips")]
    fitted, judged = (joined([t for i, t in enumerate(traces) if i // 2 % 2 == half]) for half in (0, 1))
    weights = np.round(fit(*fitted), 4)
    limit = round(float(np.quantile(probability(fitted[0], weights)[fitted[1]], flagged)), 3)
    sure, right = probability(judged[0], weights), judged[1]
    print(f"weights {weights.tolist()}, absent_below {limit}")
    print(f"calibration error {calibration_error(sure, right):.3f}; of {(~right).sum()} bad frames "
          f"{(sure[~right] < limit).mean():.2f} caught, of {right.sum()} good ones {(sure[right] < limit).mean():.3f} "
          "flagged")  # fmt: skip
    processor.calibration, processor.absent_below = weights.tolist(), limit
    if write:
        processor.save_pretrained(tracker)
    judged_clips = [i for i in range(count) if i // 2 % 2 == 1]
    for recover in (False, True):
        looking = Tracker(loaded.model, processor, recover=recover)
        again = {i: trace(looking, clips[i]) for i in tqdm(judged_clips, desc=f"recover {recover}")}
        found, returns, false = returns_found([t for i, t in again.items() if i % 2])
        kept = np.mean([t.overlaps[t.visible].mean() for i, t in again.items() if i % 2 == 0])
        before = np.mean([traces[i].overlaps[traces[i].visible].mean() for i in again if i % 2 == 0])
        print(f"recover {recover}: {found} of {returns} returns found within {SOON} frames; {false:.3f} of the absent "
              f"frames show a target; clips without exits {kept:.3f} (never absent: {before:.3f})")  # fmt: skip


if __name__ == "__main__":
    run_script(lambda: typer.run(main))
