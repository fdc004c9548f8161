"""The state of one video, `TrackingSession`, what it answers, `Prediction`, and several videos in one pass.

A session holds everything that a video accumulates: the template memory, the last boxes, the state that the model
carries from frame to frame. The model and the processor hold nothing, so one tracker serves many videos at a time.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mmtrackers.processing.alignment import Alignment, View, check_alignment
from mmtrackers.processing.boxes import check_box_xywh
from mmtrackers.processing.frames import ANY, Frame, second_stream
from mmtrackers.processing.thermal import ThermalRange

from .confidence import Trail, log_odds, log_size, probability
from .memory import TemplateMemory
from .recovery import Lost

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
            else the model's score: of OSTrack's family the maximum of the windowed score map; of LoRAT and SPMTrack
            the score of the chosen place before the window weighs it.
        present (`bool`): `False` where the score is below the tracker's `absent_below`, and while a target that was
            lost has not proved itself.
    """

    box: np.ndarray
    score: float
    present: bool = True

    def to_dict(self) -> dict[str, Any]:
        """`{"box": [x, y, width, height], "score": ..., "present": ...}` of plain numbers, as JSON takes them.

        Example:
            >>> Prediction(np.array([1.0, 2, 3, 4]), 0.5).to_dict()
            {'box': [1.0, 2.0, 3.0, 4.0], 'score': 0.5, 'present': True}
        """
        return {"box": self.box.tolist(), "score": float(self.score), "present": bool(self.present)}

    def __repr__(self) -> str:
        x, y, w, h = self.box
        absent = "" if self.present else ", absent"
        return f"Prediction(x={x:.1f}, y={y:.1f}, width={w:.1f}, height={h:.1f}, score={self.score:.3f}{absent})"


class _Crops(NamedTuple):
    """Template crops as they are kept on the host: `[targets, S, 3, h, w]`, 0 to 255, and their masks
    `[targets, g, g]` where the model reads them."""

    pixels: torch.Tensor
    mask: torch.Tensor | None


class _Move(NamedTuple):
    """What a frame changes in a session; nothing is changed before all of it is known."""

    predictions: list[Prediction]
    boxes: np.ndarray
    state: Any
    crops: _Crops | None
    trail: Trail
    lost: list[Lost | None]


class TrackingSession:
    """The state of one video: made by `Tracker.start`, moved on by `update`, begun anew by `reset`.

    Attributes:
        modality (`str`): the second stream of this video (of the RGB trackers, "rgb").
        alignment (`dict[str, np.ndarray]`): what maps the second stream to RGB, where the two differ.
        frame_index (`int`): 0 at the start and after a reset, then the number of frames seen since.
        boxes_xywh (`np.ndarray` of shape `(targets, 4)`, float64): the last boxes; settable, when something else
            (a detector, a person) knows better where the targets are.
    """

    def __init__(
        self,
        tracker: "Tracker",
        frame: Frame,
        box_xywh: Box | Sequence[Box],
        modality: str | None = None,
        adapter: str | None = None,
        alignment: Mapping[str, Alignment] | None = None,
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
            raise ValueError(
                f"an alignment was given for {', '.join(stray)}, but this session reads "
                f"{self.modality if tracker.streams == 1 else f'rgb and {self.modality}'}: it maps the second stream "
                "to rgb"
            )
        self._given_range = thermal_range
        self.reset(frame, box_xywh)

    @torch.inference_mode()
    def reset(self, frame: Frame, box_xywh: Box | Sequence[Box]) -> None:
        """Begins anew with this frame and box (or list of boxes); nothing of the video so far is kept.

        Raises:
            ValueError: as for `Tracker.start`; the session is then as it was before.
        """
        tracker = self.tracker
        if getattr(self.model, "training", False):
            raise ValueError("the model is in training mode, where dropout moves the boxes: call model.eval() first")
        thermal = ThermalRange(self._given_range)
        views = self._views(frame, thermal)
        height, width = views[0].size
        boxes, single = _boxes_of(box_xywh, height, width)
        memory, crops = TemplateMemory(self.model.template_policy), self._template_crops(views, boxes)
        memory.add(0, crops)
        first = self._embed(crops)
        self._padding, self._thermal = tracker.image_processor.padding(views), thermal
        self._memory, self._newest, self._single = memory, crops, single
        self._size, self._boxes = (height, width), boxes
        self._tokens, self._template_frames, self._template = {0: first}, (0,), first
        self._state: Any = None
        self._trail, self._lost = Trail.of(boxes), [None] * len(boxes)
        self.frame_index = 0

    def _views(self, frame: Frame, thermal: ThermalRange) -> list[View]:
        tracker = self.tracker
        return tracker.image_processor.views(
            frame, self.modality, tracker.streams, tracker.allow_missing, self.alignment, thermal
        )

    def _template_crops(self, views: list[View], boxes: np.ndarray) -> _Crops:
        processor, model = self.tracker.image_processor, self.model
        cut = [processor.crop(views, box, "template") for box in boxes]
        mask = None
        if model.reads_template_mask:
            mask = processor.template_mask([where for _, where in cut], model.config.template_grid)
        return _Crops(processor.to_tensor([picture for picture, _ in cut]), mask)

    def _embed(self, crops: _Crops) -> torch.Tensor:
        template = self.tracker.image_processor.normalize(crops.pixels.to(self.device, non_blocking=True))
        template = template.to(self.dtype)[:, None]
        if crops.mask is None:
            return self.model.embed_template(template)
        return self.model.embed_template(template, crops.mask.to(self.device)[:, None])

    def _template_tokens(self) -> torch.Tensor:
        """The tokens of the next frame's templates, `[S*B, T*Nz, C]`.

        A crop is embedded when it comes into use, and its tokens are kept as long as it stays in use: the many frames
        that wait for their turn cost a small picture on the host each.
        """
        frames = self._memory.policy.indices(self.frame_index + 1)
        if frames != self._template_frames:
            tokens = {i: self._tokens[i] for i in frames if i in self._tokens}
            tokens |= {i: self._embed(_Crops(*self._memory[i])) for i in dict.fromkeys(frames) if i not in tokens}
            parts = [tokens[i] for i in frames]
            self._template = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            self._tokens, self._template_frames = tokens, frames
        return self._template

    @property
    def boxes_xywh(self) -> np.ndarray:
        """The last boxes, float64 `[targets, 4]`, x, y, width, height in pixels (a copy)."""
        return self._boxes.copy()

    @boxes_xywh.setter
    def boxes_xywh(self, boxes_xywh: Box | Sequence[Box]) -> None:
        boxes, _ = _boxes_of(boxes_xywh, *self._size)
        if len(boxes) != len(self._boxes):
            raise ValueError(
                f"the session follows {len(self._boxes)} target(s) and was given {len(boxes)} boxes; "
                "reset(frame, boxes) takes another number"
            )
        self._boxes = boxes

    def __repr__(self) -> str:
        count, (height, width) = len(self._boxes), self._size
        targets = "1 target" if count == 1 else f"{count} targets"
        return f"TrackingSession({targets}, {width}x{height}, frame {self.frame_index}, {self.modality})"

    def initial_prediction(self) -> Prediction | list[Prediction]:
        """The boxes as they stand, with score 1: the answer for the frame that the session was started on."""
        return self._answer([Prediction(box.copy(), 1.0) for box in self._boxes])

    def update(self, frame: Frame, on_stage: StageCallback | None = None) -> Prediction | list[Prediction]:
        """Finds the target(s) in the next frame.

        Args:
            frame: as for `Tracker.start`, of the same size.
            on_stage (`Callable[[str], None]`, *optional*): called as each stage ends, with "crop", "model" or
                "decode".

        Returns:
            `Prediction`, or a list of them in the order of the boxes if the session was started with a list.

        Raises:
            ValueError: the frame has another size than the first one, or lacks a stream, or the model's answer is not
                finite; the session is then as it was before.
        """
        return update_together([self], [frame], on_stage)[0]

    def _move(self, views: list[View], rows: np.ndarray, crops: list[Any], state: Any) -> _Move:
        """What the answers for a frame, `[targets, 5]` box (fractions of the crop) and score, change."""
        if not np.isfinite(rows).all():
            raise ValueError(
                f"the model answered {rows.tolist()} for frame {self.frame_index + 1}: its weights or its precision "
                "are broken; try dtype float32 or load the checkpoint again"
            )
        tracker, boxes = self.tracker, self._boxes.copy()
        found = [self._box_of(row, crop) for row, crop in zip(rows, crops, strict=True)]
        for target, box in enumerate(found):
            if box is not None and self._lost[target] is None:
                found[target] = self._smoothed(box, boxes[target])
        answers = np.stack([last if box is None else box for last, box in zip(boxes, found, strict=True)])
        scores, trail, lost = self._confidence(rows[:, 4], answers, self._trail), self._trail, self._lost
        trail = trail.moved(rows[:, 4], answers)
        if tracker.recover:
            lost = self._look_for_lost(views, rows[:, 4], found, scores)
            trail = trail.kept(self._trail, [was is not None for was in self._lost])
        predictions, moved = [], []
        for target, (box, score) in enumerate(zip(found, scores, strict=True)):
            present = lost[target] is None and bool(score >= (tracker.absent_below or 0.0))
            moved.append(present and box is not None)
            if moved[-1]:
                boxes[target] = box
            predictions.append(Prediction(boxes[target].copy(), float(score), present))
        wanted = self._memory.wants(self.frame_index + 1)
        crops = self._newer_crops(views, boxes, moved) if wanted else None
        return _Move(predictions, boxes, state, crops, trail, lost)

    def _box_of(self, row: np.ndarray, crop: Any) -> np.ndarray | None:
        processor = self.tracker.image_processor
        return processor.clip_box(processor.box_from_crop(row[:4], crop), *self._size)

    def _confidence(self, scores: np.ndarray, boxes: np.ndarray, trail: Trail) -> np.ndarray:
        weights = self.tracker.image_processor.calibration
        return scores.copy() if weights is None else probability(trail.evidence(scores, boxes), weights)

    def _smoothed(self, box: np.ndarray, last: np.ndarray) -> np.ndarray:
        """A box whose size keeps a share of the last one."""
        kept = self.tracker.size_momentum
        if not kept:
            return box
        size = kept * last[2:] + (1 - kept) * box[2:]
        smoothed = np.concatenate((box[:2] + (box[2:] - size) / 2, size))
        clipped = self.tracker.image_processor.clip_box(smoothed, *self._size)
        return box if clipped is None else clipped

    def _look_for_lost(
        self, views: list[View], raw: np.ndarray, found: list[np.ndarray | None], scores: np.ndarray
    ) -> list[Lost | None]:
        """Targets that are lost after this frame; of those found again, `found` and `scores` take the new answer."""
        tracker, lost = self.tracker, list(self._lost)
        for target in np.flatnonzero([was is None for was in lost]):
            if scores[target] < tracker.absent_below:
                lost[target] = Lost(self._boxes[target], self._size, tracker.image_processor.search_factor)
        targets = [target for target, was in enumerate(self._lost) if was is not None]
        if not targets:
            return lost
        rows, crops = self._second_look(views, targets)
        for target, row, crop in zip(targets, rows, crops, strict=True):
            tried = [(found[target], raw[target]), (self._box_of(row, crop), row[4])]
            box, score = max(((box, score) for box, score in tried if box is not None), key=lambda one: one[1],
                             default=(None, 0.0))  # fmt: skip
            one, fresh = np.array([score]), self._boxes[[target]] if box is None else box[None]
            sure = self._confidence(one, fresh, Trail(log_odds(one), log_size(fresh)))[0]
            seen = self._lost[target].seen(box, float(sure), tracker.absent_below)
            lost[target], scores[target] = seen, sure
            if seen.found:
                lost[target], found[target] = None, box
        return lost

    def _second_look(self, views: list[View], targets: list[int]) -> tuple[np.ndarray, list[Any]]:
        """Answers `[lost targets, 5]` for crops at their next places, and these crops."""
        processor, count = self.tracker.image_processor, len(self._boxes)
        cut = [processor.crop(views, self._lost[target].place(), "search", self._padding) for target in targets]
        template, state = (
            None if tokens is None else tokens.unflatten(0, (-1, count))[:, targets].flatten(0, 1)
            for tokens in (self._template, self._state)
        )
        rows, _ = _answers(self, [picture for picture, _ in cut], template, state, _nobody)
        return rows, [where for _, where in cut]

    def _newer_crops(self, views: list[View], boxes: np.ndarray, moved: list[bool]) -> _Crops:
        """This frame's template crops; a target that was not found keeps its newest ones."""
        crops = self._template_crops(views, boxes)
        for target in np.flatnonzero(~np.array(moved)):
            for new, old in zip(crops, self._newest, strict=True):
                if new is not None:
                    new[target] = old[target]
        return crops

    def _take(self, move: _Move) -> Prediction | list[Prediction]:
        self.frame_index += 1
        self._boxes, self._state = move.boxes, move.state
        self._trail, self._lost = move.trail, move.lost
        if move.crops is not None:
            self._newest = move.crops
            self._memory.add(self.frame_index, move.crops)
        return self._answer(move.predictions)

    def _checked(self, views: list[View]) -> list[View]:
        if (torch.device(self.model.device), self.model.dtype) != (self.device, self.dtype):
            raise ValueError(
                f"the model is {self.model.dtype} on {self.model.device} now; this session began with {self.dtype} on "
                f"{self.device}. Start a new session after moving or casting the model"
            )
        if views[0].size != self._size:
            (height, width), (new_height, new_width) = self._size, views[0].size
            raise ValueError(
                f"frame {self.frame_index + 1} is {new_width}x{new_height} pixels (width x height), while the session "
                f"was started on {width}x{height}: a box has no meaning across sizes. Scale the frames to one size, "
                "or call reset(frame, box) to start anew"
            )
        return views

    def _answer(self, predictions: list[Prediction]) -> Prediction | list[Prediction]:
        return predictions[0] if self._single else predictions


@torch.inference_mode()
def update_together(
    sessions: Sequence[TrackingSession], frames: Sequence[Frame], on_stage: StageCallback | None = None
) -> list[Prediction | list[Prediction]]:
    """Moves several videos on by a frame each, in one forward pass.

    Args:
        sessions (list of [`TrackingSession`]): of one tracker. Their videos may differ in size, length and targets;
            those with other adapters, or templates of other numbers of tokens, take a pass each.
        frames: the next frame of each.
        on_stage: as in `TrackingSession.update`.

    Returns:
        What `update` of each session would return (batched products may round the last digit differently).

    Raises:
        ValueError: as for `update`, sessions of several trackers, or one session twice; all sessions are then as they
            were before.

    Example:
        ```python
        sessions = [tracker.start(video[0], box) for video, box in zip(videos, boxes)]
        predictions = update_together(sessions, [video[1] for video in videos])
        ```
    """
    if len({id(session.tracker) for session in sessions}) != 1 or len(sessions) != len(frames):
        raise ValueError(f"{len(sessions)} sessions, {len(frames)} frames: give sessions of one tracker, a frame each")
    if len(set(map(id, sessions))) != len(sessions):
        raise ValueError("a session is there twice: it takes one frame at a time")
    ranges = [copy.copy(session._thermal) for session in sessions]
    views = [s._checked(s._views(*of)) for s, *of in zip(sessions, frames, ranges, strict=True)]
    templates = [session._template_tokens() for session in sessions]
    passes: dict[tuple[int, ...], list[int]] = {}
    for i, template in enumerate(templates):
        passes.setdefault((id(sessions[i].model), sessions[i]._state is None, *template.shape[1:]), []).append(i)
    moves: dict[int, _Move] = {}
    for members in passes.values():
        parts = [[of[i] for i in members] for of in (sessions, views, templates)]
        moves.update(zip(members, _one_pass(*parts, on_stage or _nobody), strict=True))
    for session, thermal in zip(sessions, ranges, strict=True):
        session._thermal = thermal
    return [session._take(moves[i]) for i, session in enumerate(sessions)]


def _one_pass(
    sessions: list[TrackingSession], views: list[list[View]], templates: list[torch.Tensor], on_stage: StageCallback
) -> list[_Move]:
    processor = sessions[0].tracker.image_processor
    crops = [
        [processor.crop(seen, box, "search", session._padding) for box in session._boxes]
        for session, seen in zip(sessions, views, strict=True)
    ]
    sizes = [len(cut) for cut in crops]
    template, state = _joined(templates, sizes), _joined([s._state for s in sessions], sizes)
    pictures = [picture for cut in crops for picture, _ in cut]
    found, state = _answers(sessions[0], pictures, template, state, on_stage)
    rows, states = np.split(found, np.cumsum(sizes)[:-1]), _parted(state, sizes)
    places = [[crop for _, crop in cut] for cut in crops]
    moves = [s._move(*answer) for s, *answer in zip(sessions, views, rows, places, states, strict=True)]
    on_stage("decode")
    return moves


def _answers(
    session: TrackingSession, pictures: list[np.ndarray], template: torch.Tensor, state: Any, on_stage: StageCallback
) -> tuple[np.ndarray, Any]:
    """Boxes (fractions of the crops) and scores, float64 `[crops, 5]`, of search crops, and the new state."""
    processor, model = session.tracker.image_processor, session.model
    pixels = processor.to_tensor(pictures)
    search = processor.normalize(pixels.to(session.device, non_blocking=True)).to(session.dtype)
    on_stage("crop")
    output = model(search, template, state=state)
    on_stage("model")
    boxes, scores = model.decode(output, session._window)
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
