"""`pipeline("visual-object-tracking", model=...)` of transformers, for every tracker of this package."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transformers import Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .processing.image_processing import TrackerImageProcessor
from .tracking.exported import is_exported
from .tracking.tracker import Prediction, Tracker

TASK = "visual-object-tracking"
TRACKER_OPTIONS = ("modality", "absent_below", "allow_missing", "size_momentum", "recover")


class TrackerLoader:
    """What `transformers.pipeline` loads a model with: as `Tracker.from_pretrained`, which finds the processor too."""

    @classmethod
    def from_pretrained(
        cls,
        repo: str,
        revision: str | None = None,
        dtype: Any = None,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model of a folder or Hub id; `adapter_kwargs` are the arguments that an adapter alone gets."""
        # Of an adapter, `pipeline` passes the commit of its base; what the caller asked for is kept beside it.
        revision = getattr(revision, "initial", revision)
        kwargs |= {"revision": revision} | (adapter_kwargs or {})
        not_ours = ("_from_pipeline", "code_revision", "trust_remote_code")
        kwargs = {k: v for k, v in kwargs.items() if k not in not_ours and v is not None}
        tracker = Tracker.from_pretrained(repo, dtype=None if dtype == "auto" else dtype, **kwargs)
        tracker.model.loaded_image_processor = tracker.image_processor
        return tracker.model


class VisualObjectTrackingPipeline(Pipeline):
    """Follows one or several boxes through a video and yields the result of each frame as it is found.

    Made by `pipeline("visual-object-tracking", model=...)` after `import mmtrackers`, or by `from_pretrained`, which
    also takes an adapter whose base is named relative to its folder. An adapter's commit is
    `model_kwargs={"adapter_kwargs": {"revision": commit}}`: transformers looks for `revision=` in its base too.
    Weights are float32 unless `dtype=` says otherwise.

    Args:
        model (`TrackerPreTrainedModel`): with or without an adapter.
        image_processor (`TrackerImageProcessor`, *optional*): the one that lies beside the model by default.
        pack (`bool`): prepare the model for inference: faster, no training or saving.
        kwargs: `device`, `dtype`, `box`, `max_frames`; `modality`, `absent_below`,
            `allow_missing`, `size_momentum` and `recover` as in `Tracker`.

    Example:
        >>> import numpy as np
        >>> from mmtrackers import OSTrackConfig, OSTrackForTracking
        >>> from mmtrackers.pipeline import VisualObjectTrackingPipeline
        >>> config = OSTrackConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_channels=16)
        >>> track = VisualObjectTrackingPipeline(OSTrackForTracking(config), device="cpu")
        >>> frames = np.random.default_rng(0).integers(0, 255, (3, 120, 160, 3), dtype=np.uint8)
        >>> [found["frame"] for found in track(frames, box=[60, 40, 30, 20])]
        [0, 1, 2]
    """

    # Of an adapter, transformers would load the base's processor: the loader brings the right one.
    _load_image_processor = _load_video_processor = _load_feature_extractor = False
    _load_tokenizer = _load_processor = False

    def __init__(
        self, model: Any, image_processor: TrackerImageProcessor | None = None, pack: bool = False, **kwargs: Any
    ) -> None:
        options = {name: kwargs.pop(name) for name in TRACKER_OPTIONS if name in kwargs}
        processor = image_processor or getattr(model, "loaded_image_processor", None) or model.image_processor()
        super().__init__(model=model.eval(), image_processor=processor, **kwargs)
        if pack:
            self.model.pack()
        self.tracker = Tracker(self.model, self.image_processor, **options)

    @classmethod
    def from_pretrained(cls, repo: str, device: Any = None, **kwargs: Any) -> "VisualObjectTrackingPipeline":
        """Loads any folder or Hub id that `Tracker.from_pretrained` takes, with its arguments; ValueError for one of
        `mmtrackers export`, whose graphs are no model that a pipeline could move or save."""
        if is_exported(repo):
            raise ValueError(f"{repo} is exported, and a pipeline needs the model itself: give what it was made "
                             "of, or track with Tracker.from_pretrained(...).track(video, box)")  # fmt: skip
        tracker = Tracker.from_pretrained(repo, device=device, **kwargs)
        options = {name: getattr(tracker, name) for name in TRACKER_OPTIONS}
        return cls(tracker.model, tracker.image_processor, task=TASK, device=tracker.device, **options)

    def __call__(
        self,
        video: Any,
        box: Sequence[float] | Sequence[Sequence[float]] | None = None,
        max_frames: int | None = None,
        **kwargs: Any,
    ) -> Iterator[dict[str, Any] | list[dict[str, Any]]]:
        """Tracks through a video.

        Args:
            video (`str`, `Path`, `FrameSource` or iterable of frames): as in `Tracker.track`.
            box (4 `float`, or a list of such): x, y, width, height in pixels of the first frame, one per target; by
                default what the source's annotation says.
            max_frames (`int`, *optional*): stop after so many frames.
            kwargs: what `Tracker.track` takes besides: `thermal=`, `depth=`, `event=`, `alignment`, ...

        Returns:
            A generator of a `dict` per frame, made as it is asked for: "frame" (`int`), "box" (x, y, width, height in
            pixels), "score" (`float`), "present" (`bool`); a list of them where a list of boxes was given.

        Raises:
            ValueError: as `Tracker.track`.
        """
        asked = self._forward_params | self._sanitize_parameters(box, max_frames)[1]
        found = self.tracker.track(video, asked.get("box"), max_frames=asked.get("max_frames"), **kwargs)
        return (self.postprocess(one, frame) for frame, one in enumerate(found))

    def _sanitize_parameters(
        self, box: Any = None, max_frames: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"box": box, "max_frames": max_frames}
        return {}, {name: value for name, value in given.items() if value is not None}, {}

    def preprocess(self, frame: Any) -> Any:
        """Refused: see `__call__`."""
        raise NotImplementedError("each frame depends on the one before: call the pipeline with a whole video")

    _forward = preprocess

    def postprocess(self, found: Prediction | Iterable[Prediction], frame: int = 0) -> Any:
        """A frame's prediction as plain numbers."""
        if not isinstance(found, Prediction):
            return [self.postprocess(one, frame) for one in found]
        return {"frame": frame} | found.to_dict()

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves model and image processor; no pipeline code, which loading would have to trust."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory)


PIPELINE_REGISTRY.register_pipeline(TASK, VisualObjectTrackingPipeline, pt_model=TrackerLoader, type="video")
