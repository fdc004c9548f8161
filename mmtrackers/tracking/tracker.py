"""From frames to boxes: `Tracker`, a model and its image processor."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from threading import RLock
from typing import Any

import torch

from mmtrackers.hub.adapters import active_adapter, weight_sharing_copy
from mmtrackers.processing.alignment import Alignment
from mmtrackers.processing.frames import Frame
from mmtrackers.processing.image_processing import TrackerImageProcessor

from .exported import ExportedModel, is_exported
from .session import Box, Prediction, TrackingSession


class Tracker:
    """A tracker for people with frames and boxes.

    Args:
        model (`TrackerPreTrainedModel`): in evaluation mode, on the device and in the precision to track with.
        image_processor (`TrackerImageProcessor`): the crops and the normalization that the model was trained with.
        modality (`str`, *optional*): the second stream's modality, by default the model's own; "any" takes what a
            video's first frame has beside RGB.
        absent_below (`float`, *optional*): confidence (0 to 1) below which the target counts as absent and its box
            stays; 0 is never. By default what is saved with the tracker: nothing in the published ones.
        allow_missing (`bool`): feed the RGB stream alone where a frame lacks the second one.
        size_momentum (`float`, *optional*): share (0 to below 1) of the last size that a new box keeps; by default
            what is saved with the tracker, 0 in the published ones.
        recover (`bool`): look for a target that is absent for more than five frames all over the frame, for a second
            forward pass in each such frame; needs an `absent_below`.

    Raises:
        ValueError: a number out of its range; `recover` without `absent_below`.

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
        self, model: Any, image_processor: TrackerImageProcessor, modality: str | None = None,
        absent_below: float | None = None, allow_missing: bool = False, size_momentum: float | None = None,
        recover: bool = False,
    ) -> None:
        absent_below = image_processor.absent_below if absent_below is None else absent_below
        size_momentum = image_processor.size_momentum if size_momentum is None else size_momentum
        if absent_below is not None and not 0 <= absent_below <= 1:
            raise ValueError(f"absent_below is a score from 0 to 1, not {absent_below}; 0 switches it off")
        if not 0 <= size_momentum < 1:
            raise ValueError(f"size_momentum is a share from 0 to below 1, not {size_momentum}")
        if recover and not absent_below:
            raise ValueError("recover looks for absent targets: say which score is absent, such as absent_below=0.3")
        self.model, self.image_processor = model, image_processor
        self.absent_below, self.size_momentum = absent_below, size_momentum
        self.allow_missing, self.recover = allow_missing, recover
        self.streams: int = model.config.streams
        self._first = _adapter_of(model)
        own = getattr(model, "adapter_modalities", {}).get(self._first, model.config.modality)
        self.modality: str = modality or own
        self._copies: dict[tuple[str | None, tuple[int, ...]], Any] = {}
        self._lock = RLock()

    @classmethod
    def from_pretrained(
        cls, repo: str, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None,
        pack: bool = False, base_model: str | None = None, modality: str | None = None,
        absent_below: float | None = None, allow_missing: bool = False, size_momentum: float | None = None,
        recover: bool = False, **kwargs: Any,
    ) -> "Tracker":
        """Loads a full tracker, or an adapter and the base that it names, from a folder or a Hub repository.

        Args:
            repo (`str`): folder or Hub id of a full model or of an adapter, or a folder of `mmtrackers export`.
            dtype, device (`torch.dtype` and `torch.device`, or `str`, *optional*): float32 on the CPU by default.
            pack (`bool`): rewrite the model for inference: faster, no training or saving.
            base_model (`str`, *optional*): the base to use instead of the one that the adapter names.
            modality, absent_below, allow_missing, size_momentum, recover: as in `Tracker`.
            kwargs: what `AutoTracker.from_pretrained` takes besides (`revision`, `base_revision`, `cache_dir`, ...).

        OSError where the repository or a file is not there, ValueError where the files do not belong together.
        """
        from mmtrackers.hub.auto import AutoTracker

        options = (modality, absent_below, allow_missing, size_momentum, recover)
        if is_exported(repo):
            if pack or base_model or device not in (None, "cpu") or as_dtype(dtype) not in (None, torch.float32):
                raise ValueError(f"{repo} is exported: pack, dtype, device, base_model are settled: export it again")
            return cls(ExportedModel(repo), TrackerImageProcessor.from_pretrained(repo), *options)
        dtype = as_dtype(kwargs.pop("torch_dtype", None) if dtype is None else dtype) or torch.float32
        model = AutoTracker.from_pretrained(repo, base_model=base_model, dtype=dtype, **kwargs).eval()
        if device is not None:
            model = _to_device(model, device)
        if model.processor_config is None:
            raise OSError(f"{repo} holds no preprocessor_config.json, nor does its base; it says how crops are made: "
                          "copy it there, or write one with TrackerImageProcessor(...).save_pretrained(folder)")
        try:
            processor = TrackerImageProcessor.from_dict(model.processor_config)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{repo}: preprocessor_config.json cannot be used: {error}") from error
        tracker = cls(model, processor, *options)
        if pack:
            tracker.model.pack()
        return tracker

    def add_adapter(self, repo: str, name: str, **kwargs: Any) -> None:
        """Loads a further adapter onto the same base, for `start(..., adapter=name)`; the active one stays active.
        Errors as of the model's `load_adapter`; ValueError too where it is packed or has no adapter."""
        if self.model.is_packed or not self.model.has_adapter:
            why = "is packed" if self.model.is_packed else "has no adapter of its own"
            raise ValueError(f"no adapter can be added: the model {why}. Load an adapter first, pack() never")
        with self._lock:
            self.model.load_adapter(repo, name, **kwargs)

    @property
    def device(self) -> torch.device:
        """Where the model is now; a session stays where it was begun."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model's weights now."""
        return self.model.dtype

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_copies": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=RLock())

    def model_for(self, adapter: str | None = None) -> Any:
        """The model that a session runs: a copy that shares all weights, in which one adapter (by default the active
        one, or none where adapters are disabled) is active for good; ValueError where there is none of this name."""
        return self.model_and_modality(adapter)[0]

    def model_and_modality(self, adapter: str | None = None) -> tuple[Any, str]:
        """`model_for` an adapter, and the second stream that this adapter reads, of one moment."""
        with self._lock:
            model, first = self.model, _adapter_of(self.model)
            if first is None or model.is_packed:
                if adapter is not None:
                    raise ValueError(f"there is no adapter {adapter!r}: this tracker has none, or is packed with one")
            else:
                name = adapter or (first if model.adapters_enabled else None)
                of = (getattr(model, "compiled_with", None), *model.parameters(), *model.buffers())
                key = (name, tuple(map(id, of)))
                if key not in self._copies:
                    self._copies = {old: twin for old, twin in self._copies.items() if old[1] == key[1]}
                    self._copies[key] = weight_sharing_copy(model, name)
                model = self._copies[key]
            name = adapter or first
        return model, self.modality if name == self._first else model.adapter_modalities.get(name, self.modality)

    def start(
        self, frame: Frame, box_xywh: Box | Sequence[Box], modality: str | None = None, adapter: str | None = None,
        alignment: Mapping[str, Alignment] | None = None, thermal_range: Sequence[float] | str | None = None,
    ) -> TrackingSession:
        """Begins a video.

        Args:
            frame (`dict[str, np.ndarray]` or `np.ndarray`): modality -> picture (HWC uint8 RGB; depth HW uint16 in
                millimeters), or the RGB picture alone.
            box_xywh: x, y, width, height in pixels; or a list of such boxes, which share each frame's forward pass.
            modality (`str`, *optional*): the second stream of this video, in place of the adapter's.
            adapter (`str`, *optional*): name of the adapter to track with; the active one by default. A session keeps
                its adapter, whatever is switched elsewhere.
            alignment (`dict[str, np.ndarray or str]`, *optional*): modality -> the 3 x 3 matrix from its pixels to
                those of the RGB picture (`mmtrackers align` finds it), or "scale" for one view in two sizes.
            thermal_range (2 `float` or `str`, *optional*): what becomes black and white in thermal frames of 16 bits
                or in degrees; "frame" for every frame's own; by default the first frame's, which slowly follows.

        Raises:
            ValueError: a box that is empty, NaN or outside the frame; a stream or an adapter that is missing; an
                alignment or a range that cannot be used.
        """
        return TrackingSession(self, frame, box_xywh, modality, adapter, alignment, thermal_range)

    def track(
        self, frames: Any, box_xywh: Box | Sequence[Box] | None = None, modality: str | None = None,
        max_frames: int | None = None, thermal: Any = None, depth: Any = None, event: Any = None, **kwargs: Any,
    ) -> Iterator[Prediction | list[Prediction]]:
        """Tracks through a video, from its first frame on.

        Args:
            frames (`str`, `Path`, `FrameSource` or iterable of frames): whatever `open_source` takes, or frames as for
                `start`. One frame is held at a time.
            box_xywh: as for `start`; by default the first one that the source's own annotation has.
            max_frames (`int`, *optional*): stop after so many frames.
            thermal, depth, event: the second stream, of the same kind as `frames`; one of them at most.
            modality, kwargs: what `start` takes besides (`adapter`, `alignment`, ...).

        Yields a `Prediction` per frame, or a list of them where a list of boxes was given; the first is the given box
        with score 1. ValueError where no box is known, and as `start` and `open_source`.
        """
        from .sources import as_source

        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames is {max_frames}, expected 1 or more")
        source = as_source(frames, {"thermal": thermal, "depth": depth, "event": event})
        kwargs = source.start_options(self.streams) | ({} if modality is None else {"modality": modality}) | kwargs
        shown: Iterator[Frame] = iter(source)
        if box_xywh is None and source.boxes_xywh is not None:
            box_xywh, shown = source.boxes_xywh[source.first], islice(shown, source.first, None)
        if box_xywh is None:
            raise ValueError("where is the target in the first frame? Give its box: x, y, width, height in pixels")
        return self._stream(islice(shown, max_frames), box_xywh, kwargs)

    def _stream(self, frames: Iterator[Frame], box_xywh: Any, kwargs: dict[str, Any]) -> Iterator[Any]:
        first = next(frames, None)
        if first is None:
            raise ValueError("there is no frame to track in: `frames` is empty")
        session = self.start(first, box_xywh, **kwargs)
        yield session.initial_prediction()
        del first  # one frame is held at a time
        for frame in frames:
            yield session.update(frame)

    def __repr__(self) -> str:
        read = "rgb" if self.streams == 1 else f"rgb + {self.modality}"
        packed = ", packed" if self.model.is_packed else ""
        kind = str(self.dtype).removeprefix("torch.")
        return f"Tracker({type(self.model).__name__}, {read}, {kind} on {self.device}{packed})"


def _adapter_of(model: Any) -> str | None:
    return active_adapter(model) if getattr(model, "has_adapter", False) else None


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """`"bf16"`, `"bfloat16"`, `torch.bfloat16` and the like as a `torch.dtype`; ValueError for no floating type."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    names = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
    found = getattr(torch, names.get(dtype, dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ValueError(f"dtype {dtype!r} is not a floating type: use float32, bfloat16 or float16")
    return found


def _to_device(model: Any, device: torch.device | str) -> Any:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not one that torch knows: use cpu, cuda, cuda:1, mps, ...") from error
    try:
        if place.type == "meta":
            raise NotImplementedError("it holds no numbers")
        return model.to(place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"device {str(place)!r} cannot be used here ({why}): use cpu") from error
