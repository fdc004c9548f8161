"""Losses of trackers: of a center head (GIoU, L1 and the weighted focal loss), and of an MLP head with a box per cell.

All sums are taken over the whole batch at once, on the tensors' own device, and no value is read back to the host.
"""

import torch
from torch.nn import functional as F

from mmtrackers.processing.boxes import cxcywh_to_xyxy, giou_xyxy, xywh_to_xyxy

_OVERLAP = 0.7
_LOWEST = 1e-12


def _radius(width: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
    """Whole cells by which a box may shift and keep an overlap of 0.7: CornerNet's three cases (ECCV 2018)."""
    # the divisor is 2 in all of them: the OSTrack family was trained with that slip, which its targets depend on
    total, area = height + width, width * height
    root1 = (total**2 - 4 * area * (1 - _OVERLAP) / (1 + _OVERLAP)).clamp(min=0).sqrt()
    root2 = ((2 * total) ** 2 - 16 * (1 - _OVERLAP) * area).clamp(min=0).sqrt()
    root3 = ((2 * _OVERLAP * total) ** 2 - 16 * _OVERLAP * (_OVERLAP - 1) * area).clamp(min=0).sqrt()
    candidates = torch.stack((total + root1, 2 * total + root2, root3 - 2 * _OVERLAP * total)) / 2
    return candidates.amin(dim=0).clamp(min=0).floor()


def is_present(labels_xywh: torch.Tensor) -> torch.Tensor:
    """Which labels `[B, 4]` are of a target that is there, bool `[B]`: those of absent ones are 0."""
    return (labels_xywh[:, 2:] > 0).all(-1)


def center_heatmap(boxes_xywh: torch.Tensor, grid: int) -> torch.Tensor:
    """Target of the score map, float32 `[B, 1, grid, grid]`: a Gaussian cut to a square round the center cell of each
    box `[B, 4]` (fractions of the search crop, may leave 0..1), 1 at its peak.

    As in CornerNet and OSTrack (botaoye/OSTrack, `generate_heatmap`). A box whose center lies outside the crop leaves
    only the part of its square that reaches in, and a box without sides (the target is absent) nothing.
    """
    x, y, width, height = (boxes_xywh.float() * grid).unbind(-1)
    radius = _radius(width, height)[:, None, None]
    cells = torch.arange(grid, device=boxes_xywh.device, dtype=torch.float32)
    dx = cells[None, None, :] - torch.round(x + width / 2)[:, None, None]
    dy = cells[None, :, None] - torch.round(y + height / 2)[:, None, None]
    sigma = (2 * radius + 1) / 6
    gaussian = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    inside = (dx.abs() <= radius) & (dy.abs() <= radius) & is_present(boxes_xywh)[:, None, None]
    return torch.where(inside, gaussian, torch.zeros_like(gaussian))[:, None]


def focal_loss(score_map: torch.Tensor, heatmap: torch.Tensor) -> torch.Tensor:
    """Focal loss of center heads, exponents 2 and 4 (CornerNet, equation 1), in float32, of probabilities and targets
    of one shape: the sum over all cells, divided by the number of those equal to 1 (undivided if none)."""
    if score_map.shape != heatmap.shape:
        raise ValueError(f"score map {tuple(score_map.shape)} and heat map {tuple(heatmap.shape)} differ in shape")
    score, target = score_map.float(), heatmap.float()
    positive = target == 1
    hit = torch.log(score.clamp(min=_LOWEST)) * (1 - score) ** 2
    miss = torch.log((1 - score).clamp(min=_LOWEST)) * score**2 * (1 - target) ** 4
    return -torch.where(positive, hit, miss).sum() / positive.sum().clamp(min=1)


def box_loss(boxes_cxcywh: torch.Tensor, labels_xywh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scalars float32 of predicted boxes and labels `[B, 4]`, as for [`center_loss`], over the samples whose target is
    present: mean of 1 - GIoU, mean absolute difference of corners, mean overlap.

    Truth is clamped to the crop after conversion to corners. The GIoU term counts 0 for a batch that holds a box with
    a negative side (as where the official code's check fails).
    """
    predicted = cxcywh_to_xyxy(boxes_cxcywh.float())
    truth = xywh_to_xyxy(labels_xywh.float()).clamp(0, 1)
    giou, iou = giou_xyxy(predicted, truth)
    valid = (predicted[:, 2:] >= predicted[:, :2]).all() & (truth[:, 2:] >= truth[:, :2]).all()
    present = is_present(labels_xywh)
    count = present.sum().clamp(min=1)
    giou_term = torch.where(valid, ((1 - giou) * present).sum() / count, torch.zeros_like(giou[0]))
    l1 = (predicted - truth).abs().mean(-1)
    return giou_term, (l1 * present).sum() / count, (iou * present).sum() / count


def center_loss(
    score_map: torch.Tensor, boxes_cxcywh: torch.Tensor, labels_xywh: torch.Tensor, box_weight: float = 1.0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Training loss of a center head: `2 GIoU + 5 L1 + 1 focal` (OSTrack, Ye et al., ECCV 2022, equation 5).

    Args:
        score_map (`torch.Tensor` `[B, 1, g, g]`): probabilities.
        boxes_cxcywh (`torch.Tensor` `[B, 4]`): decoded at the score map's own maximum, fractions of the search crop.
        labels_xywh (`torch.Tensor` `[B, 4]`): truth, fractions of the search crop; may leave 0..1; 0 where the target
            is absent, which then teaches a score map without a peak.
        box_weight (`float`): a factor on the first two terms.

    Returns:
        `(loss, parts)`: a scalar tensor with gradients, and the unweighted terms "giou", "l1", "focal" and the mean
        overlap "iou" as detached scalars on the same device.
    """
    giou, l1, iou = box_loss(boxes_cxcywh, labels_xywh)
    focal = focal_loss(score_map, center_heatmap(labels_xywh, score_map.shape[-1]))
    loss = 2.0 * box_weight * giou + 5.0 * box_weight * l1 + focal
    parts = {"giou": giou, "l1": l1, "focal": focal, "iou": iou}
    return loss, {name: value.detach() for name, value in parts.items()}


def covered_cells(boxes_xyxy: torch.Tensor, grid: int) -> torch.Tensor:
    """Cells of a square grid, bool `[..., grid, grid]`, that boxes `[..., 4]` (fractions of the crop) touch.

    A spill of less than a ten-thousandth of a cell does not count (LitingLin/LoRAT, `bbox_rasterize`).
    """
    first, second = (boxes_xyxy.clamp(0, 1) * grid).chunk(2, -1)
    cells = torch.arange(grid, device=boxes_xyxy.device)
    first, second = first.floor()[..., None], (second + (1 - 1e-4)).floor()[..., None]
    inside = (cells >= first) & (cells < second)
    return inside[..., 1, :, None] & inside[..., 0, None, :]


def cell_loss(
    logits: torch.Tensor, box_map: torch.Tensor, labels_xywh: torch.Tensor, box_weight: float = 1.0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Training loss of an MLP head (LitingLin/LoRAT, `box_with_score_map`): binary cross entropy and GIoU.

    Positive are all cells that the true box touches: their target score is the overlap of their own predicted box with
    the truth, without a gradient through it, and GIoU counts them only. Both sums are divided by the number of
    positive cells in the batch, averaged over the processes of a run.

    Args:
        logits (`torch.Tensor` `[B, 1, g, g]`): scores before the sigmoid.
        box_map (`torch.Tensor` `[B, 4, g, g]`): x1, y1, x2, y2 of every cell as fractions of the search crop.
        labels_xywh (`torch.Tensor` `[B, 4]`), box_weight (`float`): as for [`center_loss`].

    Returns:
        `(loss, parts)`: a scalar tensor with gradients; the unweighted terms "bce" and "giou" and the mean overlap
        "iou" of the best cells' boxes, as detached scalars on the same device.
    """
    truth = xywh_to_xyxy(labels_xywh.float()).clamp(0, 1)
    positive = covered_cells(truth, logits.shape[-1])
    giou, iou = giou_xyxy(box_map.float().permute(0, 2, 3, 1), truth[:, None, None])
    target = torch.where(positive, iou.detach(), 0.0)
    count = positive.sum().float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count /= torch.distributed.get_world_size()
    count, logits = count.clamp(min=1), logits.float().squeeze(1)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / count
    giou_term = torch.where(positive, 1 - giou, 0.0).sum() / count
    best = iou.detach().flatten(1).gather(1, logits.detach().flatten(1).argmax(1, keepdim=True))
    parts = {"bce": bce.detach(), "giou": giou_term.detach(), "iou": best.mean()}
    return bce + box_weight * giou_term, parts
