"""Clips: a model's frames in the order of time, what it carries handed on from frame to frame."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .base import TrackingOutput


def forward_clip(
    model: nn.Module, search: Tensor, template: Tensor, state: Any, labels: Tensor | None,
    template_mask: Tensor | None = None, **kwargs: Any,
) -> TrackingOutput:
    """A model's `forward` on clips: frame after frame, the state carried, the templates embedded once.

    Args:
        search (`Tensor`, shape `[B, F, S, 3, H, W]`): F search crops in the order of time.
        template, template_mask (`Tensor`): of the whole clip, as `forward` takes them.
        state: carried into the first frame; None at the beginning of a video.
        labels (`Tensor`, shape `[B, F, 4]`): xywh as fractions of the crops; ValueError for another F.

    Returns:
        `TrackingOutput`: boxes `[B, F, 4]` and maps `[B, F, ...]`; the loss is the sum over frames, its auxiliary part
        and the loss parts are means; the state is the last frame's.
    """
    _check_clip_labels(labels, search)
    if template.ndim > 3:
        template = model.embed_template(template, template_mask)
    frames: list[TrackingOutput] = []
    for index in range(search.shape[1]):
        labels_now = None if labels is None else labels[:, index]
        frames.append(model(search[:, index], template, state=state, labels=labels_now, return_dict=True, **kwargs))
        state = frames[-1].state
    return _joined_frames(frames)


def backward_clip(
    model: nn.Module, search: Tensor, template: Tensor, labels: Tensor, state: Any = None,
    backward: Callable[[Tensor], Any] = Tensor.backward, **kwargs: Any,
) -> TrackingOutput:
    """`forward_clip` and its backward pass, frame after frame: the gradients are the same (states are detached), and
    only one frame's activations are held at a time, while templates are embedded for every frame anew.

    `backward` takes each frame's part of the loss, as `accelerator.backward` does; what is returned has no graph.
    """
    _check_clip_labels(labels, search)
    frames: list[TrackingOutput] = []
    for index in range(search.shape[1]):
        output = model(search[:, index], template, state=state, labels=labels[:, index], **kwargs)
        backward(output.loss - _surplus(output.auxiliary_loss, search.shape[1]))
        state = output.state
        frames.append(TrackingOutput(**{n: v.detach() if isinstance(v, Tensor) else v for n, v in output.items()}))
    return _joined_frames(frames)


def _check_clip_labels(labels: Tensor | None, search: Tensor) -> None:
    if labels is not None and labels.shape[:2] != search.shape[:2]:
        raise ValueError(f"labels have shape {list(labels.shape)}, expected {[*search.shape[:2], 4]}: xywh each.")


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
        for name in ("boxes", "score_map", "size_map", "offset_map", "box_map")
        if frames[0].get(name) is not None
    }
    return TrackingOutput(loss=loss, loss_parts=parts, state=frames[-1].state, auxiliary_loss=auxiliary, **stacked)
