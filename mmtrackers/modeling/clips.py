"""Clips: a model's frames in the order of time, what it carries handed on from frame to frame."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .base import TrackingOutput


def forward_clip(
    model: nn.Module, search: Tensor, template: Tensor, state: Any = None, labels: Tensor | None = None,
    template_mask: Tensor | None = None, backward: Callable[[Tensor], Any] | None = None, **kwargs: Any,
) -> TrackingOutput:
    """A model's `forward` on clips: frame after frame, the state carried, the templates embedded once.

    Args:
        search (`[B, F, S, 3, H, W]`): F search crops in the order of time.
        template, template_mask, state: of the whole clip, as `forward` takes them; carried into the first frame.
        labels (`[B, F, 4]`): xywh as fractions of the crops; ValueError for another F.
        backward (callable, *optional*): takes each frame's part of the loss, as `Tensor.backward` and
            `accelerator.backward` do. The gradients are those of the sum (states are detached), but only one frame's
            activations are held at a time; templates are embedded for every frame anew, and the output has no graph.

    Returns:
        `TrackingOutput`: boxes `[B, F, 4]` and maps `[B, F, ...]`; the loss is the sum over frames, its auxiliary part
        and the loss parts are means; the state is the last frame's.
    """
    if labels is not None and labels.shape[:2] != search.shape[:2]:
        raise ValueError(f"labels have shape {list(labels.shape)}, expected {[*search.shape[:2], 4]}: xywh each.")
    if template.ndim > 3 and backward is None:
        template, template_mask = model.embed_template(template, template_mask), None
    frames: list[TrackingOutput] = []
    for index in range(search.shape[1]):
        output = model(
            search[:, index], template, template_mask=template_mask, state=state,
            labels=None if labels is None else labels[:, index], return_dict=True, **kwargs,
        )  # fmt: skip
        state = output.state
        if backward is not None:
            backward(output.loss - _surplus(output.auxiliary_loss, search.shape[1]))
            output = TrackingOutput(**{n: v.detach() if isinstance(v, Tensor) else v for n, v in output.items()})
        frames.append(output)
    return _joined_frames(frames)


def _surplus(auxiliary: Tensor | None, frames: int) -> Tensor | float:
    """What one of several frames' losses holds too much: of auxiliary losses a clip counts the mean."""
    return 0.0 if auxiliary is None else auxiliary * (1 - 1 / frames)


def _joined_frames(frames: list[TrackingOutput]) -> TrackingOutput:
    loss = parts = auxiliary = None
    if frames[0].auxiliary_loss is not None:
        auxiliary = torch.stack([frame.auxiliary_loss for frame in frames]).mean()
    if frames[0].loss is not None:
        loss = torch.stack([f.loss - _surplus(f.auxiliary_loss, len(frames)) for f in frames]).sum()
        names = frames[0].loss_parts
        parts = {name: torch.stack([frame.loss_parts[name] for frame in frames]).mean() for name in names}
    stacked = {
        name: torch.stack([frame[name] for frame in frames], 1)
        for name in ("boxes", "score_map", "score_logits", "size_map", "offset_map", "box_map")
        if frames[0].get(name) is not None
    }
    return TrackingOutput(loss=loss, loss_parts=parts, state=frames[-1].state, auxiliary_loss=auxiliary, **stacked)
