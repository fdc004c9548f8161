"""Boxes: conversions, overlaps, clipping, and the messages for boxes that cannot be tracked."""

import math
import warnings

import numpy as np
import pytest
import torch
from parity_tools import cases, load_case

from mmtrackers.processing import boxes

PIPELINE = cases(r"ostrack-pipeline.*") or [
    pytest.param("none", marks=pytest.mark.skip(reason="no ostrack-pipeline fixtures in MMTRACKERS_FIXTURES"))
]


@pytest.mark.parametrize("as_kind", [np.asarray, torch.as_tensor])
def test_conversions(as_kind):
    xywh = as_kind(np.array([[[10.0, 20.0, 30.0, 40.0]], [[-5.0, 0.5, 1.0, 3.0]]]))
    xyxy = boxes.xywh_to_xyxy(xywh)
    assert type(xyxy) is type(xywh) and xyxy.shape == xywh.shape
    assert xyxy[1, 0].tolist() == [-5, 0.5, -4, 3.5]
    assert boxes.cxcywh_to_xyxy(as_kind(np.array([25.0, 40, 30, 40]))).tolist() == xyxy[0, 0].tolist()
    with pytest.raises(ValueError, match=r"4 numbers on the last axis, got the shape \(2, 3\)"):
        boxes.xywh_to_xyxy(as_kind(np.zeros((2, 3))))


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1, 1),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3, 1 / 3),
        ((0, 0, 1, 1), (3, 0, 4, 1), 0, -0.5),
        ((0, 0, 1, 1), (1, 1, 2, 2), 0, -0.5),
        ((5, 5, 5, 5), (5, 5, 5, 5), 0, 0),
    ],
)
@pytest.mark.parametrize("as_kind", [np.array, torch.tensor])
def test_overlaps(a, b, iou, giou, as_kind):
    a, b = as_kind([list(map(float, a))]), as_kind([list(map(float, b))])
    assert float(boxes.iou_xyxy(a, b)[0]) == pytest.approx(iou, abs=1e-6)
    assert [float(v[0]) for v in boxes.giou_xyxy(a, b)] == pytest.approx([giou, iou], abs=1e-6)


def test_overlap_of_xywh_broadcasts():
    truth = np.array([0.0, 0.0, 2.0, 2.0])
    assert boxes.iou_xywh(np.array([[1.0, 0, 2, 2], [0, 0, 2, 2]]), truth).tolist() == pytest.approx([1 / 3, 1])


def test_empty_boxes_leave_finite_gradients():
    a = torch.zeros(1, 4, requires_grad=True)
    sum(part.sum() for part in boxes.giou_xyxy(a, torch.zeros(1, 4))).backward()
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((), r"4 numbers, but \[\] is empty"),
        ((1, 2, 3), r"4 numbers, but \[1.0, 2.0, 3.0\] has the shape \(3,\)"),
        ([[1, 2, 3, 4]], r"has the shape \(1, 4\)"),
        ((1, 2, "a", 4), "is not made of numbers"),
        ((10, 20, math.nan, 40), "width=nan, height=40 holds a number that is not finite"),
        ((10, math.inf, 30, 40), "y=inf.* not finite"),
        ((10, 20, 0, 40), "width=0, height=40 has no area"),
        ((50, 60, -20, -30), "width=-20, height=-30 has no area.*not two corners"),
        ((160, 20, 30, 40), r"x=160, .* lies outside the picture of 160 x 120 pixels"),
        ((-30, 20, 30, 40), "x=-30, .* lies outside"),
        ((10, -41, 30, 40), "y=-41, .* lies outside"),
        ((-10, -10, 20000, 20000), "is more than 3 times the picture of 160 x 120"),
        ((0.2, 0.3, 0.1, 0.15), "holds fractions: multiply x and width by 160, y and height by 120"),
    ],
)
def test_bad_boxes_are_named(box, message):
    with pytest.raises(ValueError, match=message):
        boxes.check_box_xywh(box, height=120, width=160)


@pytest.mark.parametrize("box", [(-5, -5, 10, 10), np.array([150, 110, 40, 40]), torch.tensor([0.0, 0, 160, 120])])
def test_boxes_over_the_border_pass(box):
    checked = boxes.check_box_xywh(box, height=120, width=160)
    assert checked.dtype == np.float64 and checked.tolist() == [float(v) for v in box]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((80, 60, 130, 110), "two corners x1, y1, x2, y2: if it is that, give x=80, y=60, width=50, height=50"),
        ((80, 60, 0.1, 0.2), "less than two pixels wide or high"),
        ((150, 110, 40, 40), None),
        ((10, 10, 100, 80), None),
    ],
)
def test_boxes_that_look_like_something_else_are_warned_of(box, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        boxes.check_box_xywh(box, height=120, width=160)
    assert [message in str(warning.message) for warning in caught] == ([True] if message else [])


def test_clipping_stays_inside_a_picture_smaller_than_the_margin():
    assert boxes.clip_box_xywh([-3, 50, 2, 2], height=6, width=8).tolist() == [0, 0, 8, 6]


@pytest.mark.parametrize("name", PIPELINE)
def test_parity_ostrack_clipping(name):
    _, tensors = load_case(name)
    clipped = boxes.clip_box_xywh(tensors["clip_in"].numpy(), height=120, width=160, margin=10)
    np.testing.assert_allclose(clipped, tensors["clip_out"].numpy(), rtol=0, atol=1e-3)
