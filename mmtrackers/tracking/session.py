"""The state of one video, `TrackingSession`, what it answers, `Prediction`, and several videos in one pass."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmtrackers.processing.alignment import Alignment, View, check_alignment
from mmtrackers.processing.boxes import check_box_xywh
from mmtrackers.processing.frames import ANY, Frame, second_stream
from mmtrackers.processing.thermal import ThermalRange

from .confidence import evidence, log_size, probability, usual_size_after
from .memory import Crops, TemplateMemory
from .recovery import LEAST, USUAL, Lost

if TYPE_CHECKING:
    from .tracker import Tracker

Box = Sequence[float] | np.ndarray
StageCallback = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Where the target is in one frame.

    Attributes:
        box (`np.ndarray` of shape `(4,)`, float64): x, y, width, height in pixels of the frame; where the target is
            reported as absent, the last box before it was lost.
        score (`float`): the confidence in this box, 0 to 1; 1.0 for the given box of the first frame. With a
            calibration (the embedded trackers have one) the probability that it overlaps the target by 0.3 or more,
            else the model's score of the place, under the window of tracking in OSTrack's family.
        present (`bool`): `False` where the score is below the tracker's `absent_below`, and while a target that was
            lost has not proved itself.
    """

    box: np.ndarray
    score: float
    present: bool = True

    def to_dict(self) -> dict[str, Any]:
        """`{"box": [x, y, width, height], "score": ..., "present": ...}` of plain numbers, as JSON takes them."""
        return {"box": self.box.tolist(), "score": float(self.score), "present": bool(self.present)}

    def __repr__(self) -> str:
        x, y, w, h = self.box
        absent = "" if self.present else ", absent"
        return f"Prediction(x={x:.1f}, y={y:.1f}, width={w:.1f}, height={h:.1f}, score={self.score:.3f}{absent})"


class TrackingSession:
    """The state of one video: made by `Tracker.start`, moved on by `update`, begun anew by `reset`.

    Attributes:
        modality (`str`): the second stream of this video (of the RGB trackers, "rgb").
        alignment (`dict[str, np.ndarray]`): what maps the second stream to RGB, where the two differ.
        frame_index (`int`): 0 at the start and after a reset, then the number of frames seen since.
    """

    def __init__(
        self, tracker: "Tracker", frame: Frame, box_xywh: Box | Sequence[Box], modality: str | None = None,
        adapter: str | None = None, alignment: Mapping[str, Alignment] | None = None,
        thermal_range: Sequence[float] | str | None = None,
    ) -> None:
        self.tracker = tracker
        self.model, own = tracker.model_and_modality(adapter)
        self.modality = modality or own
        self.device, self.dtype = torch.device(self.model.device), self.model.dtype
        self._window = self.model.window().to(self.device)
        if self.modality == ANY and tracker.streams == 2:
            self.modality = second_stream(frame)
        self.alignment = {stream: check_alignment(matrix, stream) for stream, matrix in (alignment or {}).items()}
        if stray := [stream for stream in self.alignment if tracker.streams == 1 or stream != self.modality]:
            read = self.modality if tracker.streams == 1 else f"rgb and {self.modality}"
            raise ValueError(f"an alignment was given for {', '.join(stray)}, but this session reads {read}: it maps "
                             "the second stream to rgb")  # fmt: skip
        self._given_range = thermal_range
        self.reset(frame, box_xywh)

    @torch.inference_mode()
    def reset(self, frame: Frame, box_xywh: Box | Sequence[Box]) -> None:
        """Begins anew with this frame and box (or list of boxes); nothing of the video so far is kept. After a
        ValueError, as for `Tracker.start`, the session is as it was before."""
        thermal = ThermalRange(self._given_range)
        views = self._views(frame, thermal)
        boxes, single = _boxes_of(box_xywh, *views[0].size)
        memory, crops = TemplateMemory(self.model.template_policy), self._template_crops(views, boxes)
        memory.add(0, crops)
        first = self._embed(crops)
        self._padding, self._thermal = self.tracker.image_processor.padding(views), thermal
        self._memory, self._newest, self._single = memory, crops, single
        self._size, self._boxes = views[0].size, boxes
        self._tokens, self._template_frames, self._template = {0: first}, (0,), first
        self._state: Any = None
        self._usual_size, self._lost = log_size(boxes), [None] * len(boxes)
        self._usual_trust = np.ones(len(boxes))
        self.frame_index = 0

    @property
    def boxes_xywh(self) -> np.ndarray:
        """The last boxes, float64 `[targets, 4]`, x, y, width, height in pixels (a copy).

        Settable (ValueError for another number of boxes, or one that cannot be used), where a detector or a person
        knows better: a target that was lost and is given another box is found.
        """
        return self._boxes.copy()

    @boxes_xywh.setter
    def boxes_xywh(self, boxes_xywh: Box | Sequence[Box]) -> None:
        boxes, _ = _boxes_of(boxes_xywh, *self._size)
        if len(boxes) != len(self._boxes):
            raise ValueError(f"{len(boxes)} boxes for {len(self._boxes)} target(s): reset(frame, boxes) takes others")
        same = (boxes == self._boxes).all(axis=1)
        self._usual_size = np.where(same, self._usual_size, log_size(boxes))
        self._usual_trust = np.where(same, self._usual_trust, 1.0)
        self._lost = [lost if kept else None for lost, kept in zip(self._lost, same, strict=True)]
        self._boxes = boxes

    def __repr__(self) -> str:
        count, (height, width) = len(self._boxes), self._size
        targets = "1 target" if count == 1 else f"{count} targets"
        return f"TrackingSession({targets}, {width}x{height}, frame {self.frame_index}, {self.modality})"

    def initial_prediction(self) -> Prediction | list[Prediction]:
        """The boxes as they stand, with score 1: the answer for the frame that the session was started on."""
        return self._answer([Prediction(box.copy(), 1.0) for box in self._boxes])

    def update(self, frame: Frame, on_stage: StageCallback | None = None) -> Prediction | list[Prediction]:
        """Finds the target(s) in the next frame, given as for `Tracker.start`: a `Prediction`, or a list of them, in
        the order of the boxes, if the session was started with a list. `on_stage` is called as each stage ends, with
        "crop", "model" or "decode".

        ValueError where the frame has another size than the first one, or lacks a stream, or the model's answer is not
        finite; the session is then as it was before.
        """
        return update_together([self], [frame], on_stage)[0]

    def _answer(self, predictions: list[Prediction]) -> Prediction | list[Prediction]:
        return predictions[0] if self._single else predictions

    def _views(self, frame: Frame, thermal: ThermalRange) -> list[View]:
        of = self.tracker
        if getattr(self.model, "training", False):
            raise ValueError("the model is in training mode, where dropout moves the boxes: call model.eval() first")
        return of.image_processor.views(frame, self.modality, of.streams, of.allow_missing, self.alignment, thermal)

    def _next_views(self, frame: Frame) -> list[View]:
        views = self._views(frame, self._thermal)
        if (torch.device(self.model.device), self.model.dtype) != (self.device, self.dtype):
            raise ValueError(f"the model is {self.model.dtype} on {self.model.device} now; this session began with "
                             f"{self.dtype} on {self.device}. Start a new session after moving or casting the model")
        if views[0].size != self._size:
            (height, width), (new_height, new_width) = self._size, views[0].size
            raise ValueError(f"frame {self.frame_index + 1} is {new_width}x{new_height} pixels (width x height), "
                             f"while the session was started on {width}x{height}: a box has no meaning across sizes. "
                             "Scale the frames to one size, or call reset(frame, box) to start anew")  # fmt: skip
        return views

    def _template_crops(self, views: list[View], boxes: np.ndarray) -> Crops:
        """Crops `[targets, S, 3, h, w]`, 0 to 255, on the host, and masks `[targets, g, g]` where these are read."""
        processor, model = self.tracker.image_processor, self.model
        cut = [processor.crop(views, box, "template") for box in boxes]
        mask = None
        if model.reads_template_mask:
            mask = processor.template_mask([where for _, where in cut], model.config.template_grid)
        return processor.to_tensor([picture for picture, _ in cut]), mask

    def _embed(self, crops: Crops) -> torch.Tensor:
        pixels, mask = crops
        template = self.tracker.image_processor.normalize(pixels.to(self.device, non_blocking=True))
        masks = () if mask is None else (mask.to(self.device)[:, None],)
        return self.model.embed_template(template.to(self.dtype)[:, None], *masks)

    def _template_tokens(self) -> torch.Tensor:
        """The tokens of the next frame's templates, `[S*B, T*Nz, C]`; a crop has tokens only while it is in use."""
        frames, known = self._memory.policy.indices(self.frame_index + 1), self._tokens
        if frames != self._template_frames:
            tokens = {i: known[i] if i in known else self._embed(self._memory[i]) for i in dict.fromkeys(frames)}
            parts = [tokens[i] for i in frames]
            self._template = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            self._tokens, self._template_frames = tokens, frames
        return self._template

    def _advance(
        self, views: list[View], rows: np.ndarray, crops: list[Any], state: Any
    ) -> tuple[list[Prediction], Crops | None]:
        """Moves on by a frame, by the answers for its crops, `[targets, 5]` box (fractions of the crop) and score: to
        the predictions, and the template crops that the memory wants of this frame."""
        if not np.isfinite(rows).all():
            raise ValueError(f"the model answered {rows.tolist()} for frame {self.frame_index + 1}: its weights or "
                             "its precision are broken; try dtype float32 or load the checkpoint again")  # fmt: skip
        tracker, raw = self.tracker, rows[:, 4]
        found = [self._box_of(target, *answer) for target, answer in enumerate(zip(rows, crops, strict=True))]
        answers = np.stack([last if box is None else box for last, box in zip(self._boxes, found, strict=True)])
        scores, usual_size = self._confidence(raw, answers), usual_size_after(self._usual_size, answers)
        if tracker.recover:
            self._lost = self._look_for_lost(views, found, scores)
            sought = [lost is not None and lost.sought for lost in self._lost]
            usual_size = np.where(sought, self._usual_size, usual_size)
        present = [lost is None and bool(score >= (tracker.absent_below or 0.0))
                   for lost, score in zip(self._lost, scores, strict=True)]  # fmt: skip
        self._usual_trust = np.where(present, USUAL * self._usual_trust + (1 - USUAL) * scores, self._usual_trust)
        moved = [here and box is not None for here, box in zip(present, found, strict=True)]
        self._boxes = np.stack([found[k] if moved[k] else last for k, last in enumerate(self._boxes)])
        self._usual_size, self._state, self.frame_index = usual_size, state, self.frame_index + 1
        predictions = [Prediction(box.copy(), float(score), here)
                       for box, score, here in zip(self._boxes, scores, present, strict=True)]  # fmt: skip
        if not self._memory.wants(self.frame_index):
            return predictions, None
        fresh = self._template_crops(views, self._boxes)
        for target in np.flatnonzero(~np.array(moved)):  # one that was not found keeps its newest
            for new, old in zip(fresh, self._newest, strict=True):
                if new is not None:
                    new[target] = old[target]
        self._newest = fresh
        return predictions, fresh

    def _box_of(self, target: int, row: np.ndarray, crop: Any, anew: bool = False) -> np.ndarray | None:
        """An answer's box in the frame, with a share of the last size unless it is found `anew`; None: of no use."""
        processor, kept = self.tracker.image_processor, self.tracker.size_momentum
        box = processor.clip_box(processor.box_from_crop(row[:4], crop), *self._size)
        if box is None or not kept or anew:
            return box
        size = kept * self._boxes[target, 2:] + (1 - kept) * box[2:]
        smoothed = processor.clip_box(np.concatenate((box[:2] + (box[2:] - size) / 2, size)), *self._size)
        return box if smoothed is None else smoothed

    def _confidence(self, scores: np.ndarray, boxes_xywh: np.ndarray, which: Any = slice(None)) -> np.ndarray:
        """How sure answers for some targets are (all by default)."""
        weights = self.tracker.image_processor.calibration
        if weights is None:
            return scores.copy()
        return probability(evidence(scores, boxes_xywh, self._usual_size[which]), weights)

    def _look_for_lost(
        self, views: list[View], found: list[np.ndarray | None], scores: np.ndarray
    ) -> list[Lost | None]:
        """Targets that are lost after this frame; of those that come back elsewhere `found` and `scores` take the
        answer there."""
        processor, limit = self.tracker.image_processor, self.tracker.absent_below
        lost: list[Lost | None] = []
        for was, box, score in zip(self._lost, self._boxes, scores, strict=True):
            began = was or Lost(box, self._size, processor.search_factor, absent=0)
            lost.append(None if score >= limit else replace(began, absent=began.absent + 1))
        targets = [target for target, now in enumerate(lost) if now is not None and now.sought]
        if not targets:
            return lost
        cut = [processor.crop(views, lost[target].place(), "search", self._padding) for target in targets]
        template, state = (
            None if tokens is None else tokens.unflatten(0, (-1, len(lost)))[:, targets].flatten(0, 1)
            for tokens in (self._template, self._state)
        )
        everywhere = torch.ones_like(self._window)
        rows, _ = _answers(self, [picture for picture, _ in cut], template, state, _nobody, everywhere)
        for target, row, (_, crop) in zip(targets, rows, cut, strict=True):
            box, usual, sure = self._box_of(target, row, crop, anew=True), self._usual_trust[target], 0.0
            if box is not None:
                sure = float(self._confidence(row[4:], box[None], [target])[0])
            lost[target] = lost[target].seen(box if sure >= max(limit, LEAST * usual) else None, sure)
            scores[target] = max(scores[target], sure)
            if lost[target].found(usual):
                lost[target], found[target] = None, box
        return lost


@torch.inference_mode()
def update_together(
    sessions: Sequence[TrackingSession], frames: Sequence[Frame], on_stage: StageCallback | None = None
) -> list[Prediction | list[Prediction]]:
    """Moves several videos on by a frame each, in one forward pass; returns what `update` of each session would
    (batched products may round the last digit differently).

    Args:
        sessions (list of [`TrackingSession`]): of one tracker, each once. Their videos may differ in size, length and
            targets; those with other adapters, or templates of other numbers of tokens, take a pass each.
        frames, on_stage: the next frame of each; as in `TrackingSession.update`, and so is the ValueError, after
            which all sessions are as they were before.
    """
    if len({id(session.tracker) for session in sessions}) != 1 or len(sessions) != len(frames):
        raise ValueError(f"{len(sessions)} sessions, {len(frames)} frames: give sessions of one tracker, a frame each")
    if len(set(map(id, sessions))) != len(sessions):
        raise ValueError("a session is there twice: it takes one frame at a time")
    # copies move on, and the sessions take over what they hold once all have
    copies = [copy.copy(session) for session in sessions]
    for one in copies:
        one._thermal = copy.copy(one._thermal)
    views = [one._next_views(frame) for one, frame in zip(copies, frames, strict=True)]
    templates = [one._template_tokens() for one in copies]
    passes: dict[tuple[int, ...], list[int]] = {}
    for i, (one, template) in enumerate(zip(copies, templates, strict=True)):
        passes.setdefault((id(one.model), one._state is None, *template.shape[1:]), []).append(i)
    moved: dict[int, tuple[list[Prediction], Crops | None]] = {}
    for members in passes.values():
        parts = [[of[i] for i in members] for of in (copies, views, templates)]
        moved.update(zip(members, _one_pass(*parts, on_stage or _nobody), strict=True))
    for i, (session, one) in enumerate(zip(sessions, copies, strict=True)):
        vars(session).update(vars(one))
        if (crops := moved[i][1]) is not None:
            session._memory.add(session.frame_index, crops)
    return [session._answer(moved[i][0]) for i, session in enumerate(sessions)]


def _one_pass(
    sessions: list[TrackingSession], views: list[list[View]], templates: list[torch.Tensor], on_stage: StageCallback
) -> list[tuple[list[Prediction], Crops | None]]:
    processor = sessions[0].tracker.image_processor
    cut = [[processor.crop(seen, box, "search", session._padding) for box in session._boxes]
           for session, seen in zip(sessions, views, strict=True)]  # fmt: skip
    sizes = [len(crops) for crops in cut]
    template, state = _joined(templates, sizes), _joined([s._state for s in sessions], sizes)
    pictures = [picture for crops in cut for picture, _ in crops]
    found, state = _answers(sessions[0], pictures, template, state, on_stage, sessions[0]._window)
    rows, states = np.split(found, np.cumsum(sizes)[:-1]), _parted(state, sizes)
    places = [[where for _, where in crops] for crops in cut]
    moved = [s._advance(*answer) for s, *answer in zip(sessions, views, rows, places, states, strict=True)]
    on_stage("decode")
    return moved


def _answers(
    session: TrackingSession, pictures: list[np.ndarray], template: torch.Tensor, state: Any, on_stage: StageCallback,
    window: torch.Tensor,
) -> tuple[np.ndarray, Any]:
    """Boxes (fractions of the crops) and scores, float64 `[crops, 5]`, of search crops, and the new state."""
    processor, model = session.tracker.image_processor, session.model
    pixels = processor.to_tensor(pictures)
    search = processor.normalize(pixels.to(session.device, non_blocking=True)).to(session.dtype)
    on_stage("crop")
    output = model(search, template, state=state)
    on_stage("model")
    boxes, scores = model.decode(output, window)
    # The one copy from the device per pass: everything that the host needs, in one tensor.
    found = torch.cat([boxes.float(), scores.float().reshape(-1, 1)], dim=1)
    return found.cpu().numpy().astype(np.float64), output.state


def _nobody(stage: str) -> None:
    """Where nobody asked for the stages."""


def _joined(parts: list[Any], sizes: list[int]) -> Any:
    """Tensors of several sessions, `[streams * targets, ...]` each with the streams outermost, as one; or None."""
    if len(parts) == 1 or parts[0] is None:
        return parts[0]
    split = [part.unflatten(0, (-1, size)) for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(split, dim=1).flatten(0, 1)


def _parted(joined: Any, sizes: list[int]) -> list[Any]:
    """The inverse of `_joined`."""
    if len(sizes) == 1 or joined is None:
        return [joined] * len(sizes)
    return [part.flatten(0, 1) for part in joined.unflatten(0, (-1, sum(sizes))).split(sizes, dim=1)]


def _boxes_of(box_xywh: Box | Sequence[Box], height: int, width: int) -> tuple[np.ndarray, bool]:
    """One box or several, checked: float64 `[targets, 4]`, and whether it was a single one."""
    try:
        boxes = np.asarray(box_xywh, dtype=np.float64)
    except (TypeError, ValueError):
        boxes = np.empty(0)
    if boxes.ndim not in (1, 2) or boxes.size == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"a box is four numbers x, y, width, height in pixels, or a list of such; got {box_xywh!r}")
    checked = [check_box_xywh(box, height, width) for box in np.atleast_2d(boxes)]
    return np.stack(checked), boxes.ndim == 1
