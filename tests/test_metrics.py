"""The vectorised arithmetic against plain loops over frames, and its edge cases."""

import numpy as np
import pytest

from mmtrackers.evaluation import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("strict", [False, True])
def test_counts_equal_a_loop_over_thresholds(rng, strict):
    thresholds = np.linspace(0, 10, 11)
    values = rng.choice([-1.0, 0.0, 3.0, 3.5, 10.0, 11.0, np.inf, np.nan], 300)  # many of them on a threshold
    owner = rng.integers(0, 4, 300)
    within = metrics.count_within(values, thresholds, owner, 4, strict)
    above = metrics.count_above(values, thresholds, owner, 4)
    for sequence in range(4):
        mine = values[owner == sequence]
        for k, threshold in enumerate(thresholds):
            assert within[sequence, k] == (mine < threshold).sum() + (0 if strict else (mine == threshold).sum())
            assert above[sequence, k] == (mine > threshold).sum()


def test_overlaps_of_boxes_that_are_none():
    boxes = np.array([[0.0, 0, 0, 0], [np.nan, 0, 2, 2], [0, 0, 2, 2], [0, 0, -2, 2]])
    assert metrics.overlaps(boxes, boxes).tolist() == [0, 0, 1, 0]
    assert np.isnan(metrics.center_errors(boxes, boxes)[1])


def test_the_edge_convention_decides_ties_only(rng):
    a, b = rng.uniform(1, 50, (2, 1000, 4))
    np.testing.assert_allclose(metrics.overlaps(a, b), metrics.overlaps(a, b, inclusive=True), atol=1e-12)
    same = metrics.overlaps(a, a, inclusive=True)
    assert (same > 1).any() and (metrics.overlaps(a, a) <= 1).all()


def test_carry_forward_takes_the_last_good_row():
    rows = np.arange(6)
    keep = np.array([True, False, False, True, True, False])
    assert metrics.carry_forward(rows, keep).tolist() == [0, 0, 0, 3, 4, 4]


def painted(box, size):
    """The pixels of a rounded box, on a canvas large enough for all of it."""
    canvas = np.zeros((200, 200), dtype=bool)
    if not np.isnan(box).any():
        x, y, w, h = np.round(box).astype(int)
        canvas[y + 80 : y + 80 + max(h, 0), x + 80 : x + 80 + max(w, 0)] = True
    return canvas[80 : 80 + size[1], 80 : 80 + size[0]]


def test_raster_overlaps_equal_painted_masks(rng):
    size = (40, 30)
    a, b = (np.concatenate([rng.uniform(-15, 35, (400, 2)), rng.uniform(2, 30, (400, 2))], axis=1) for _ in range(2))
    b[::3] = a[::3] + rng.uniform(-2, 2, (134, 4))
    found = metrics.raster_overlaps(a, b, size)
    for row, first, second in zip(found, a, b, strict=True):
        one, two = painted(first, size), painted(second, size)
        union = (one | two).sum()
        rows, columns = np.nonzero(one | two)
        if union and np.ptp(rows) > 0 and np.ptp(columns) > 0:
            assert row == pytest.approx((one & two).sum() / union)


def test_raster_overlaps_of_no_region():
    none, box, outside = [np.nan] * 4, [3.0, 3, 4, 4], [100.0, 100, 4, 4]
    a, b = np.array([none, none, box, outside]), np.array([none, box, none, outside])
    assert metrics.raster_overlaps(a, b, (40, 30)).tolist() == [1, 0, 0, 0]


def test_progress_of_runs_equals_a_loop(rng):
    for _ in range(200):
        overlaps, seen = rng.choice([0.0, 0.1, 0.5], 40, p=[0.4, 0.3, 0.3]), rng.random(40) < 0.9
        expected, bad = 40, 0
        for i in range(40):
            bad = bad + 1 if overlaps[i] <= 0.1 and seen[i] else 0
            if bad == 5:
                expected = i + 1 - 5
                break
        assert metrics.run_progress(overlaps, seen, grace=5) == expected


def test_long_term_curves_equal_a_loop(rng):
    overlaps, scores = [rng.random(n) for n in (30, 50)], [rng.random(n).round(1) for n in (30, 50)]
    scores[1][7] = np.nan
    thresholds, precisions, recalls = metrics.long_term_curves(overlaps, scores, [20, 50], resolution=None)
    for s, count in enumerate((20, 50)):
        for k, threshold in enumerate(thresholds):
            chosen = scores[s] >= threshold
            precision = overlaps[s][chosen].mean() if chosen.any() else 1.0
            assert precisions[s, k] == pytest.approx(precision)
            assert recalls[s, k] == pytest.approx(overlaps[s][chosen].sum() / count)
    assert len(metrics.long_term_curves(overlaps, scores, [20, 50], resolution=20)[0]) == 20
