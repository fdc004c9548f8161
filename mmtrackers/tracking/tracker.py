"""From frames to boxes: `Tracker` (model + image processor), `TrackingSession` (the state of one video), `Prediction`.

A session holds everything that a video accumulates: the template memory, the last boxes, the state that the model
carries from frame to frame. The model and the processor hold nothing, so one tracker serves many videos at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmtrackers.hub.adapters import active_adapter, bound_copy
from mmtrackers.processing.boxes import check_box_xywh
from mmtrackers.processing.frames import ANY, second_stream
from mmtrackers.processing.image_processing import TrackerImageProcessor

from .memory import TemplateMemory

Frame = np.ndarray | dict[str, np.ndarray]
Box = Sequence[float] | np.ndarray
Watch = Callable[[str], None]

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")


@dataclass(frozen=True)
class Prediction:
    """Where the target is in one frame.

    Attributes:
        box (`np.ndarray` of shape `(4,)`, float64): x, y, width, height in pixels of the frame; where the target is
            reported as absent, the last box before it was lost.
        score (`float`): the maximum of the windowed score map, 0 to 1; 1.0 for the given box of the first frame.
        present (`bool`): `False` where the score is below the tracker's `absent_below`.
    """

    box: np.ndarray
    score: float
    present: bool = True


class Tracker:
    """A tracker for people with frames and boxes.

    Args:
        model (`TrackerPreTrainedModel`): in evaluation mode, on the device and in the precision to track with.
        image_processor (`TrackerImageProcessor`): the crops and the normalisation that the model was trained with.
        modality (`str`, *optional*): the second stream's modality; the model's own by default. "any" takes what a
            video's first frame has beside RGB.
        absent_below (`float`, *optional*): scores below it report the target as absent and leave the box where it
            was. Off by default, as in the published trackers.
        allow_missing (`bool`): frames without the second stream feed the RGB stream alone instead of an error.

    Raises:
        ValueError: `absent_below` is no number in 0..1.

    Example:
        >>> import numpy as np
        >>> from mmtrackers import OSTrackConfig, OSTrackForTracking, Tracker, TrackerImageProcessor
        >>> config = OSTrackConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_channels=16)
        >>> tracker = Tracker(OSTrackForTracking(config).eval(), TrackerImageProcessor())
        >>> frames = np.random.default_rng(0).integers(0, 255, (3, 120, 160, 3), dtype=np.uint8)
        >>> session = tracker.start(frames[0], [60, 40, 30, 20])
        >>> session.update(frames[1]).box.shape
        (4,)
    """

    def __init__(
        self,
        model: Any,
        image_processor: TrackerImageProcessor,
        modality: str | None = None,
        absent_below: float | None = None,
        allow_missing: bool = False,
    ) -> None:
        if absent_below is not None and not 0 <= absent_below <= 1:
            raise ValueError(f"absent_below is a score from 0 to 1, not {absent_below}; None switches it off")
        self.model = model
        self.image_processor = image_processor
        self.streams: int = model.config.streams
        self.modality: str = modality or model.config.modality
        self.absent_below = absent_below
        self.allow_missing = allow_missing
        self.device: torch.device = torch.device(model.device)
        self.dtype: torch.dtype = model.dtype
        self.window: torch.Tensor = model.window().to(self.device)
        self._modalities: dict[str, str] = {}
        self._bound: dict[tuple[str, tuple[int, ...]], Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        repo: str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        pack: bool = False,
        base_model: str | None = None,
        modality: str | None = None,
        absent_below: float | None = None,
        allow_missing: bool = False,
        **kwargs: Any,
    ) -> "Tracker":
        """Loads a full tracker, or an adapter and the base that it names, from a folder or a Hub repository.

        Args:
            repo (`str`): a folder or a Hub id; of a full model or of an adapter.
            dtype (`torch.dtype` or `str`, *optional*): precision of the weights, such as `"bfloat16"`; boxes are
                decoded in float32 all the same. Float32 by default.
            device (`torch.device` or `str`, *optional*): such as `"cuda"`; the CPU by default.
            pack (`bool`): prepare the model for inference (merged and folded weights): faster, no training or saving.
            base_model (`str`, *optional*): the base to use instead of the one that the adapter names.
            modality, absent_below, allow_missing: as in `Tracker`.
            kwargs: what `AutoTracker.from_pretrained` takes besides (`revision`, `base_revision`, `cache_dir`, ...).

        Raises:
            OSError: the repository or one of its files is not there.
            ValueError: the files do not belong together, or an argument has no meaning.

        Example:
            ```python
            tracker = Tracker.from_pretrained("examples/checkpoints/seatrack-tiny-thermal", dtype="bfloat16")
            ```
        """
        from mmtrackers.hub.auto import AutoTracker

        dtype = as_dtype(dtype) or torch.float32
        model = AutoTracker.from_pretrained(repo, base_model=base_model, dtype=dtype, **kwargs).eval()
        if device is not None:
            model = _to_device(model, device)
        adapters = getattr(model, "peft_config", {})
        base = next((adapter.base_model_name_or_path for adapter in adapters.values()), None)
        processor = _load_processor(repo, base, kwargs)
        tracker = cls(model, processor, modality=modality, absent_below=absent_below, allow_missing=allow_missing)
        if pack:
            tracker.model.pack()
        return tracker

    def add_adapter(self, repo: str, name: str, **kwargs: Any) -> None:
        """Loads a further adapter onto the same base, for `start(..., adapter=name)`; the active one stays active.

        Args:
            repo (`str`): folder or Hub id of an adapter of the same type and base.
            name (`str`): what to call it, such as "depth".
            kwargs: `revision`, `cache_dir`, `token`, ...

        Raises:
            OSError, ValueError: as `hub.auto.add_adapter`; also for a model that is packed or has no adapter.

        Example:
            ```python
            tracker = Tracker.from_pretrained("examples/checkpoints/seatrack-tiny-thermal")
            tracker.add_adapter("examples/checkpoints/seatrack-tiny-depth", "depth")
            session = tracker.start({"rgb": rgb, "depth": depth}, box, adapter="depth")
            ```
        """
        from mmtrackers.hub.auto import add_adapter

        if self.model.is_packed or not self.model.has_adapter:
            why = "is packed" if self.model.is_packed else "has no adapter of its own"
            raise ValueError(f"no adapter can be added: the model {why}. Load an adapter first, pack() never")
        self._modalities[name] = add_adapter(self.model, repo, name, **kwargs)

    def bind(self, adapter: str | None = None) -> Any:
        """The model that a session runs: a copy that shares all weights, in which one adapter is active for good.

        Args:
            adapter (`str`, *optional*): its name; the active one by default.

        Raises:
            ValueError: there is no such adapter.
        """
        if not getattr(self.model, "has_adapter", False) or self.model.is_packed:
            if adapter is not None:
                raise ValueError(
                    f"adapter {adapter!r} cannot be chosen: this tracker has no adapters, or is packed with one"
                )
            return self.model
        name = adapter or active_adapter(self.model)
        key = (name, tuple(id(parameter) for parameter in self.model.parameters()))
        if key not in self._bound:
            self._bound = {old: bound for old, bound in self._bound.items() if old[1] == key[1]}
            self._bound[key] = bound_copy(self.model, name)
        return self._bound[key]

    def start(
        self,
        frame: Frame,
        box_xywh: Box | Sequence[Box],
        modality: str | None = None,
        adapter: str | None = None,
    ) -> "TrackingSession":
        """Begins a video.

        Args:
            frame (`dict[str, np.ndarray]` or `np.ndarray`): modality -> picture (HWC uint8 RGB; depth HW uint16 in
                millimetres), or the RGB picture alone.
            box_xywh: x, y, width, height in pixels; or a list of such boxes, one per target. Several targets share
                each frame's forward pass.
            modality (`str`, *optional*): the second stream of this video, in place of the adapter's.
            adapter (`str`, *optional*): name of the adapter to track with; the active one by default. A session keeps
                its adapter whatever is switched on the model or in other sessions, also in other threads.

        Raises:
            ValueError: a box that is empty, NaN or outside the frame; a stream or an adapter that is missing.
        """
        return TrackingSession(self, frame, box_xywh, modality or self._modalities.get(adapter or ""), adapter)

    def track(
        self, frames: Iterable[Frame], box_xywh: Box | Sequence[Box], modality: str | None = None
    ) -> Iterator[Any]:
        """Tracks through an iterable of frames, given the box(es) in its first one; arguments as for `start`.

        Yields one `Prediction` per frame (one list of them where a list of boxes was given); the first is the given
        box with score 1.

        Example:
            ```python
            for frame, prediction in zip(frames, tracker.track(frames, box)):
                print(prediction.box, prediction.score)
            ```
        """
        session: TrackingSession | None = None
        for frame in frames:
            if session is None:
                session = self.start(frame, box_xywh, modality)
                yield session.given()
            else:
                yield session.update(frame)
        if session is None:
            raise ValueError("there is no frame to track in: `frames` is empty")

    def stack(self, frame: Frame, modality: str | None = None) -> np.ndarray:
        """All streams of a frame that the model reads, as one uint8 array `[height, width, 3 * streams]`."""
        return self.image_processor.stack(
            frame, modality=modality or self.modality, streams=self.streams, allow_missing=self.allow_missing
        )


class TrackingSession:
    """The state of one video: made by `Tracker.start`, moved on by `update`, begun anew by `reset`.

    Attributes:
        modality (`str`): the second stream of this video (of the RGB trackers, "rgb").
        frame_index (`int`): 0 at the start and after a reset, then the number of frames seen since.
        boxes_xywh (`np.ndarray` of shape `(targets, 4)`, float64): the last boxes; settable, when something else
            (a detector, a person) knows better where the targets are.
    """

    def __init__(
        self,
        tracker: Tracker,
        frame: Frame,
        box_xywh: Box | Sequence[Box],
        modality: str | None = None,
        adapter: str | None = None,
    ) -> None:
        self.tracker, self.model = tracker, tracker.bind(adapter)
        self.modality = modality or tracker.modality
        if self.modality == ANY and tracker.streams == 2:
            self.modality = second_stream(frame)
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
        image = tracker.stack(frame, self.modality)
        height, width = image.shape[:2]
        boxes, single = _boxes_of(box_xywh, height, width)
        memory = TemplateMemory(self.model.template_policy, self._embed)
        crops = self._template_crops(image, boxes)
        memory.add(0, crops)
        memory.template(1)
        self._padding = tracker.image_processor.padding(image)
        self._memory, self._newest, self._single = memory, crops, single
        self._size, self._boxes, self._moved = (height, width), boxes, [True] * len(boxes)
        self._state: Any = None
        self.frame_index = 0

    def _template_crops(self, image: np.ndarray, boxes: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Template crops round the boxes, as they are kept on the host: `[targets, S, 3, h, w]`, 0 to 255, and their
        masks `[targets, g, g]` where the model reads them."""
        processor, model = self.tracker.image_processor, self.model
        cut = [processor.crop(image, box, "template") for box in boxes]
        mask = None
        if model.reads_template_mask:
            mask = processor.template_mask([where for _, where in cut], model.config.template_grid)
        return processor.to_tensor([picture for picture, _ in cut]), mask

    def _embed(self, crops: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
        tracker = self.tracker
        pixels, mask = crops
        template = tracker.image_processor.normalize(pixels.to(tracker.device, non_blocking=True))
        template = template.to(tracker.dtype)[:, None]
        if mask is None:
            return self.model.embed_template(template)
        return self.model.embed_template(template, mask.to(tracker.device)[:, None])

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

    def given(self) -> Prediction | list[Prediction]:
        """The boxes as they stand, with score 1: the answer for the frame that the session was started on."""
        return self._answer([Prediction(box.copy(), 1.0) for box in self._boxes])

    def update(self, frame: Frame, watch: Watch | None = None) -> Prediction | list[Prediction]:
        """Finds the target(s) in the next frame.

        Args:
            frame: as for `Tracker.start`, of the same size.
            watch (`Callable[[str], None]`, *optional*): called as each stage ends, with "crop", "model" or "decode".

        Returns:
            `Prediction`, or a list of them in the order of the boxes if the session was started with a list.

        Raises:
            ValueError: the frame has another size than the first one, or lacks a stream.
        """
        return update_together([self], [frame], watch)[0]

    def _found(self, image: np.ndarray, rows: np.ndarray, crops: list[Any]) -> Prediction | list[Prediction]:
        """Takes the answers for one frame, `[targets, 5]` box (fractions of the crop) and score, into the state."""
        self.frame_index += 1
        predictions = [self._move(i, row, crops[i]) for i, row in enumerate(rows)]
        if self._memory.wants(self.frame_index):
            self._remember(image, predictions)
        return self._answer(predictions)

    def _remember(self, image: np.ndarray, predictions: list[Prediction]) -> None:
        """Adds this frame's templates to the memory; a target that was not found keeps its newest one."""
        crops = self._template_crops(image, self._boxes)
        for target in range(len(predictions)):
            if not self._moved[target]:
                for new, old in zip(crops, self._newest, strict=True):
                    if new is not None:
                        new[target] = old[target]
        self._newest = crops
        self._memory.add(self.frame_index, crops)

    def _move(self, target: int, row: np.ndarray, crop: Any) -> Prediction:
        """Takes a target's box and score into the state, unless the score says that the target is not there."""
        score = float(row[4])
        if not np.isfinite(row).all():
            raise ValueError(
                f"the model answered {row.tolist()} for frame {self.frame_index}: its weights or its precision are "
                "broken; try dtype float32 or load the checkpoint again"
            )
        absent_below, processor = self.tracker.absent_below, self.tracker.image_processor
        present = absent_below is None or score >= absent_below
        box = processor.clip_box(processor.box_from_crop(row[:4], crop), *self._size) if present else None
        self._moved[target] = box is not None
        if box is not None:
            self._boxes[target] = box
        return Prediction(self._boxes[target].copy(), score, present)

    def _checked(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] != self._size:
            (height, width), (new_height, new_width) = self._size, image.shape[:2]
            raise ValueError(
                f"frame {self.frame_index + 1} is {new_width}x{new_height} pixels (width x height), while the session "
                f"was started on {width}x{height}: a box has no meaning across sizes. Scale the frames to one size, "
                "or call reset(frame, box) to start anew"
            )
        return image

    def _answer(self, predictions: list[Prediction]) -> Prediction | list[Prediction]:
        return predictions[0] if self._single else predictions


@torch.inference_mode()
def update_together(
    sessions: Sequence[TrackingSession], frames: Sequence[Frame], watch: Watch | None = None
) -> list[Prediction | list[Prediction]]:
    """Moves several videos on by a frame each, in one forward pass.

    Args:
        sessions (list of [`TrackingSession`]): of one tracker. Their videos may differ in size, length and targets;
            those with other adapters, or templates of other numbers of tokens, take a pass each.
        frames: the next frame of each.
        watch: as in `TrackingSession.update`.

    Returns:
        What `update` of each session would return (batched products may round the last digit differently).

    Raises:
        ValueError: as for `update`, or sessions of several trackers.

    Example:
        ```python
        sessions = [tracker.start(video[0], box) for video, box in zip(videos, boxes)]
        predictions = update_together(sessions, [video[1] for video in videos])
        ```
    """
    if len({id(session.tracker) for session in sessions}) != 1 or len(sessions) != len(frames):
        raise ValueError(f"{len(sessions)} sessions, {len(frames)} frames: give sessions of one tracker, a frame each")
    templates = [session._memory.template(session.frame_index + 1) for session in sessions]
    passes: dict[tuple[int, ...], list[int]] = {}
    for i, template in enumerate(templates):
        passes.setdefault((id(sessions[i].model), sessions[i]._state is None, *template.shape[1:]), []).append(i)
    answers: list[Any] = [None] * len(sessions)
    for members in passes.values():
        group = [sessions[i] for i in members]
        found = _one_pass(group, [frames[i] for i in members], [templates[i] for i in members], watch)
        for i, answer in zip(members, found, strict=True):
            answers[i] = answer
    return answers


def _one_pass(
    sessions: list[TrackingSession], frames: list[Frame], templates: list[torch.Tensor], watch: Watch | None
) -> list[Prediction | list[Prediction]]:
    tracker, model, told = sessions[0].tracker, sessions[0].model, watch or _nobody
    processor = tracker.image_processor
    pairs = list(zip(sessions, frames, strict=True))
    images = [session._checked(tracker.stack(frame, session.modality)) for session, frame in pairs]
    crops = [
        [processor.crop(image, box, "search", session._padding) for box in session._boxes]
        for session, image in zip(sessions, images, strict=True)
    ]
    pixels = processor.to_tensor([picture for cut in crops for picture, _ in cut])
    search = processor.normalize(pixels.to(tracker.device, non_blocking=True)).to(tracker.dtype)
    told("crop")
    sizes = [len(cut) for cut in crops]
    output = model(search, _joined(templates, sizes), state=_joined([s._state for s in sessions], sizes))
    told("model")
    boxes, scores = model.decode(output, tracker.window)
    # The one copy from the device per frame: everything that the host needs, in one tensor.
    found = torch.cat([boxes.float(), scores.float().reshape(-1, 1)], dim=1).cpu().numpy().astype(np.float64)
    for session, state in zip(sessions, _parted(output.state, sizes), strict=True):
        session._state = state
    rows = np.split(found, np.cumsum(sizes)[:-1])
    answers = [
        session._found(image, part, [crop for _, crop in cut])
        for session, image, part, cut in zip(sessions, images, rows, crops, strict=True)
    ]
    told("decode")
    return answers


def _nobody(stage: str) -> None:
    """A watch that does not look."""


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


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """`"bf16"`, `"bfloat16"`, `torch.bfloat16` and the like as a floating `torch.dtype`.

    Raises:
        ValueError: not the name of a floating type.

    Example:
        >>> as_dtype("bf16")
        torch.bfloat16
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    names = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
    found = getattr(torch, names.get(dtype, dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is not a floating type: use float32, bfloat16 or float16")
    return found


def _to_device(model: Any, device: torch.device | str) -> Any:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not one that torch knows: use cpu, cuda, cuda:1, mps, ...") from error
    try:
        return model.to(place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"device {str(place)!r} cannot be used here ({why}): use cpu") from error


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


def _load_processor(repo: str, base: str | None, kwargs: dict[str, Any]) -> TrackerImageProcessor:
    """The image processor that lies beside the adapter or the model, else that of the adapter's base."""
    hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
    try:
        return TrackerImageProcessor.from_pretrained(repo, revision=kwargs.get("revision") or "main", **hub)
    except OSError:
        if base is None or base == repo:
            raise
    return TrackerImageProcessor.from_pretrained(base, revision=kwargs.get("base_revision") or "main", **hub)
