"""Losses of the center head against the official values, and their behavior on degenerate input."""

import re

import pytest
import torch
from parity_tools import cases, load_case, seeded_input

from mmtrackers.modeling import losses


def _cases(pattern: str) -> list:
    skip = pytest.mark.skip(reason=f"no {pattern} fixtures in MMTRACKERS_FIXTURES")
    return cases(pattern + r".*") or [pytest.param("none", marks=skip)]


def _tolerance(description: dict) -> float:
    return float(re.match(r"[\d.]+(e-?\d+)?", str(description.get("tolerance", "1e-4"))).group())


def _check(score, predicted, labels, expected, tolerance):
    heatmap = losses.center_heatmap(labels, score.shape[-1])
    torch.testing.assert_close(heatmap, expected["heatmap"], rtol=0, atol=tolerance)
    loss, parts = losses.center_loss(score, predicted, labels)
    found = {**parts, "total": loss.detach()}
    for key in ("giou", "l1", "focal", "total"):
        torch.testing.assert_close(found[key], expected[key].reshape(()), rtol=tolerance, atol=tolerance, msg=key)
    torch.testing.assert_close(found["iou"], expected["iou"].mean(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", _cases("ostrack-pipeline"))
def test_parity_ostrack_losses(name):
    description, expected = load_case(name)
    labels = expected["gt_xywh"]
    score = torch.sigmoid(seeded_input("loss_score_logits", (len(labels), 1, 16, 16), description["seed"]) - 2)
    expected["giou"] = expected["giou_loss"]
    _check(score.clamp(1e-4, 1 - 1e-4), expected["pred_cxcywh"], labels, expected, _tolerance(description))


@pytest.mark.parametrize("name", _cases("seatrack-modules"))
def test_parity_seatrack_losses(name):
    description, tensors = load_case(name)
    seed = description["seed"]
    expected = {key.removeprefix("loss."): value for key, value in tensors.items() if key.startswith("loss.")}
    batch = len(expected["heatmap"])
    drawn = torch.sigmoid(seeded_input("loss.gt", (batch, 4), seed))
    labels = torch.cat([0.6 * drawn[:, :2], 0.05 + 0.35 * drawn[:, 2:]], dim=1)
    predicted = torch.sigmoid(seeded_input("loss.pred", (batch, 4), seed))
    score = torch.sigmoid(seeded_input("loss.score", (batch, 1, 16, 16), seed)).clamp(1e-4, 1 - 1e-4)
    _check(score, predicted, labels, expected, _tolerance(description))


@pytest.mark.parametrize("name", _cases("ostrack-pipeline"))
def test_parity_ostrack_keep_rate(name):
    from mmtrackers.training.optimization import elimination_keep_rate

    expected = load_case(name)[1]["keep_rate_ostrack_256"]
    found = [elimination_keep_rate(5 * i, start=20, warmup=80, base=0.7) for i in range(len(expected))]
    assert found == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize(
    ("box", "peak", "cells"),
    [
        ((0.3, 0.3, 0.4, 0.4), (8, 8), 9),
        ((0.49, 0.49, 0.01, 0.01), (8, 8), 1),
        ((0.8, 0.3, 0.4, 0.4), None, 3),
        ((1.5, 1.5, 0.4, 0.4), None, 0),
    ],
    ids=["inside", "small", "center on the border", "far outside"],
)
def test_heatmap_is_a_square_cut_at_the_border(box, peak, cells):
    heatmap = losses.center_heatmap(torch.tensor([box]), grid=16)[0, 0]
    assert int((heatmap > 0).sum()) == cells
    assert [tuple(place) for place in (heatmap == 1).nonzero().tolist()] == ([peak] if peak else [])


def test_focal_loss_without_positives_is_undivided():
    score = torch.full((1, 1, 2, 2), 0.5)
    expected = 4 * 0.25 * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(losses.focal_loss(score, torch.zeros(1, 1, 2, 2)), expected)


def test_focal_loss_of_certain_scores_is_finite():
    heatmap = losses.center_heatmap(torch.tensor([[0.4, 0.4, 0.2, 0.2]]), grid=16)
    for value in (0.0, 1.0):
        assert torch.isfinite(losses.focal_loss(torch.full((1, 1, 16, 16), value, dtype=torch.bfloat16), heatmap))


def test_focal_loss_refuses_maps_of_another_size():
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 8\) and heat map \(1, 1, 16, 16\) differ"):
        losses.focal_loss(torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize("bad", ["predicted", "truth"])
def test_one_negative_side_drops_the_giou_term_of_the_batch(bad):
    predicted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.3, 0.2]], requires_grad=True)
    labels = torch.tensor([[0.4, 0.4, 0.1, 0.2], [0.3, 0.4, 0.2, 0.2]])
    kept = losses.box_loss(predicted, labels)[0]
    assert float(kept.detach()) > 0.1
    sign = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, 1]])
    giou, l1, _ = losses.box_loss(*((predicted * sign, labels) if bad == "predicted" else (predicted, labels * sign)))
    assert float(giou.detach()) == 0 and float(l1.detach()) > 0
    (giou + l1).backward()
    assert torch.isfinite(predicted.grad).all()


def test_gradients_reach_scores_and_boxes_and_parts_hold_none():
    score = torch.full((2, 1, 16, 16), 0.3, requires_grad=True)
    predicted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.4, 0.5, 0.3, 0.2]], requires_grad=True)
    labels = torch.tensor([[0.4, 0.4, 0.1, 0.2], [0.9, 0.9, 0.4, 0.4]])
    loss, parts = losses.center_loss(score, predicted, labels)
    loss.backward()
    assert score.grad.abs().sum() > 0 and predicted.grad.abs().sum() > 0
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(loss.detach(), 2 * parts["giou"] + 5 * parts["l1"] + parts["focal"])


def test_loss_reads_nothing_back_to_the_host():
    """On the meta device any look at a value raises."""
    score, boxes = torch.rand(2, 1, 16, 16, device="meta"), torch.rand(2, 4, device="meta")
    loss, parts = losses.center_loss(score, boxes, boxes)
    assert loss.device.type == "meta" and {part.device.type for part in parts.values()} == {"meta"}


def test_an_absent_target_asks_for_an_empty_score_map_and_no_box():
    generator = torch.Generator().manual_seed(0)
    score, predicted = torch.rand(3, 1, 8, 8, generator=generator), torch.rand(3, 4, generator=generator) * 0.4 + 0.3
    labels = torch.tensor([[0.2, 0.3, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0], [0.5, 0.4, 0.3, 0.1]])
    here = labels[:, 2] > 0
    _, parts = losses.center_loss(score, predicted, labels)
    _, alone = losses.center_loss(score[here], predicted[here], labels[here])
    for part in ("giou", "l1", "iou"):
        torch.testing.assert_close(parts[part], alone[part])
    assert losses.center_heatmap(labels, 8)[1].max() == 0
    assert parts["focal"] > alone["focal"]
    none = torch.zeros(3, 4)
    loss, parts = losses.center_loss(score.requires_grad_(), predicted.requires_grad_(), none)
    loss.backward()
    assert score.grad.min() > 0 and predicted.grad.abs().max() == 0 and parts["giou"] == 0
