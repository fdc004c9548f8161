"""The arithmetic that benchmarks share: overlaps, center errors, curves, long-term and multi-start scores.

Everything is vectorized over the frames of a whole data set; which sequence a frame belongs to is one index per frame.
What differs between benchmarks stands in `mmtrackers.evaluation.protocols`. Boxes are x, y, width, height in pixels.
"""

from collections.abc import Sequence

import numpy as np


def overlaps(a_xywh: np.ndarray, b_xywh: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """Intersection over union row by row; 0 where the union is empty or a number is missing.

    Args:
        a_xywh, b_xywh (`np.ndarray`): `[N, 4]`; the type (float32 or float64) is kept.
        inclusive (`bool`): take x + w - 1 as the right edge and add 1 to every extent, as many toolkits do. The area
            is the same, but not the rounding: a box equal to its ground truth may then overlap by a hair more than 1,
            and lie above a threshold of 1. Otherwise the result `[N]` is cut to 1.

    Example:
        >>> overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 2, 2]])).round(4).tolist()
        [0.3333]
    """
    one = 1 if inclusive else 0
    low = np.maximum(a_xywh[:, :2], b_xywh[:, :2])
    high = np.minimum(a_xywh[:, :2] + a_xywh[:, 2:] - one, b_xywh[:, :2] + b_xywh[:, 2:] - one)
    sides = np.maximum(high - low + one, 0)
    both = sides[:, 0] * sides[:, 1]
    union = a_xywh[:, 2] * a_xywh[:, 3] + b_xywh[:, 2] * b_xywh[:, 3] - both
    found = np.nan_to_num(np.divide(both, union, out=np.zeros_like(both), where=union > 0))
    return found if inclusive else np.minimum(found, 1)


def center_errors(result_xywh: np.ndarray, truth_xywh: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """Distance `[N]` of the centers of boxes `[N, 4]`, in pixels or in units of `scale` `[N, 2]`, by which each center
    is divided, as in the toolkits: in float32 the order decides ties; NaN where a number lacks."""
    result, truth = ((boxes[:, 2:] - 1) / 2 + boxes[:, :2] for boxes in (result_xywh, truth_xywh))
    if scale is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            result, truth = result / scale, truth / scale
    with np.errstate(invalid="ignore"):
        return np.sqrt(((result - truth) ** 2).sum(1))


def carry_forward(rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """`rows` `[N, ...]` in which each that is not kept (`keep` `[N]`) is the last kept one; each sequence's first must
    be."""
    return rows[np.maximum.accumulate(np.where(keep, np.arange(len(rows)), 0))]


def count_above(values: np.ndarray, thresholds: np.ndarray, owner: np.ndarray, sequences: int) -> np.ndarray:
    """`[sequences, K]`: how many values `[N]` of each sequence (`owner` `[N]`: its index) lie above each of
    `thresholds` `[K]` (ascending), strictly; NaN lies above none."""
    below = count_within(np.where(np.isnan(values), -np.inf, values), thresholds, owner, sequences)
    return np.bincount(owner, minlength=sequences)[:, None] - below


def count_within(
    values: np.ndarray, thresholds: np.ndarray, owner: np.ndarray, sequences: int, strict: bool = False
) -> np.ndarray:
    """As `count_above`, how many are at most each threshold (below it if `strict`); NaN is within none."""
    bins = len(thresholds) + 1
    first = np.searchsorted(thresholds, values, side="right" if strict else "left")
    counts = np.bincount(owner * bins + first, minlength=sequences * bins).reshape(sequences, bins)
    return counts.cumsum(1)[:, :-1]


def raster_overlaps(a_xywh: np.ndarray, b_xywh: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Overlaps as the VOT toolkit counts them: in whole pixels, inside the image (votchallenge/toolkit, `raster.py`).

    The four numbers are rounded (half to even); a box covers the pixels x to x + w - 1. NaN stands for "no region".
    No region against a box is 0, no region twice is 1. A window of one pixel's width or height counts as no region
    before it is cut to the image (width, height), and as an overlap of 0 after it.
    """
    edge = np.array(image_size) - 1
    (a1, a2, a_none), (b1, b2, b_none) = _pixels(a_xywh), _pixels(b_xywh)
    low, high = np.minimum(a1, b1), np.maximum(a2, b2)
    nothing = (low >= high).any(1) | (a_none & b_none)
    low, high = np.maximum(low, 0), np.minimum(high, edge)
    outside = (low >= high).any(1)

    def covered(first: np.ndarray, last: np.ndarray, none: np.ndarray) -> np.ndarray:
        sides = np.minimum(last, high) - np.maximum(first, low) + 1
        return np.where(none, 0, np.maximum(sides, 0).prod(1))

    both = covered(np.maximum(a1, b1), np.minimum(a2, b2), a_none | b_none)
    union = covered(a1, a2, a_none) + covered(b1, b2, b_none) - both
    found = np.divide(both, union, out=np.zeros(len(both)), where=union > 0)
    return np.where(nothing, 1.0, np.where(outside, 0.0, found))


def _pixels(boxes_xywh: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last pixel `[N, 2]` of each box, and which rows are no region (they lie at pixel 0)."""
    none = np.isnan(boxes_xywh).any(1)
    x_y, w_h = np.split(np.round(boxes_xywh), 2, axis=1)
    return np.where(none[:, None], 0, x_y), np.where(none[:, None], 0, x_y + w_h - 1), none


def f_score(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Harmonic mean; 0 where both are 0."""
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def long_term_curves(
    overlaps: Sequence[np.ndarray], confidences: Sequence[np.ndarray], visible: Sequence[int], resolution: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tracking precision and recall `[S, T]` of every sequence over confidence thresholds `[T]` of the whole set, from
    +inf down to -inf, as in votchallenge/toolkit, `longterm.py` (Lukezic et al., "Now you see me", arXiv 1804.07056).

    Args:
        overlaps, confidences (list of `np.ndarray`): per sequence `[N]`; confidence NaN where the tracker gave none.
        visible (list of `int`): per sequence, frames with ground truth.
        resolution (`int`, *optional*): as for [`LongTerm`].
    """
    scores = np.concatenate(confidences)
    scores = np.sort(scores[~np.isnan(scores)])[::-1]
    if resolution is not None and len(scores) > resolution - 2:
        margin = len(scores) // (resolution - 2)
        at = np.round(np.linspace(margin, len(scores) - margin, resolution - 2)).astype(int)
        scores = scores[np.minimum(at, len(scores) - 1)]
    thresholds = np.concatenate([[np.inf], scores, [-np.inf]])
    precision, recall = np.ones((len(overlaps), len(thresholds))), np.zeros((len(overlaps), len(thresholds)))
    for row, (values, confidence, count) in enumerate(zip(overlaps, confidences, visible, strict=True)):
        order = np.argsort(-confidence)  # NaN last: never chosen, since no comparison with it holds
        known = order[: np.count_nonzero(~np.isnan(confidence))]
        chosen = np.searchsorted(-confidence[known], -thresholds, side="right")
        total = np.concatenate([[0], np.cumsum(values[known])])[chosen]
        some = chosen > 0
        precision[row, some] = total[some] / chosen[some]
        recall[row] = np.divide(total, count, out=np.zeros(len(thresholds)), where=count > 0)
    return thresholds, precision, recall


def run_progress(overlaps: np.ndarray, seen: np.ndarray, threshold: float = 0.1, grace: int = 10) -> int:
    """Frames that a multi-start run lasts: up to the first of `grace` bad frames in a row, else all. Bad are overlaps
    `[L]` at or below `threshold` of frames that are `seen` `[L]` (with ground truth); others interrupt no failure."""
    bad = (overlaps <= threshold) & seen
    since = np.arange(len(bad)) - np.maximum.accumulate(np.where(bad, -1, np.arange(len(bad))))
    failed = np.flatnonzero(since >= grace)
    return int(failed[0]) + 1 - grace if len(failed) else len(bad)


def expected_overlap(runs: Sequence[np.ndarray], progress: Sequence[int], high: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number `[high]` of the mean overlaps over the first j frames of each run, j from 0 to `high` - 1; their
    quotient is the expected average overlap curve. Runs that end before j count only where they failed (their overlaps
    from there on being 0): see votchallenge/toolkit, `multistart.py`.

    Example:
        >>> total, number = expected_overlap([np.array([0, 0.5, 0.7])], [3], high=4)
        >>> total.tolist(), number.tolist()
        ([0.0, 0.5, 0.6, 0.0], [0.0, 1.0, 1.0, 0.0])
    """
    total, number, j = np.zeros(high), np.zeros(high), np.arange(high)
    for values, last in zip(runs, progress, strict=True):
        sums = np.cumsum(np.where(np.arange(len(values)) < last, values, 0))  # overlap 0 of the first frame included
        inside = (j > 0) & (j < len(values))
        total[inside] += sums[j[inside]] / j[inside]
        number[inside] += 1
        if last < len(values):
            beyond = (j > 0) & (j >= len(values))
            total[beyond] += sums[-1] / np.maximum(j[beyond] - 1, 1)
            number[beyond] += 1
    return total, number
