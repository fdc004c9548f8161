"""What every tracker model shares: its output, the layout of its tokens, its seams and its base class."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from mmtrackers.hub.adapters import cast_saved_modules, check_new_tensors
from mmtrackers.processing.crops import hann_window
from mmtrackers.tracking.memory import TemplatePolicy


@dataclass
class TrackingOutput(ModelOutput):
    """What a tracker model returns.

    Args:
        loss (`Tensor`, shape `()`): training loss, auxiliary loss included; only with `labels`.
        loss_parts (`dict[str, Tensor]`): the unweighted terms of the loss and the mean overlap, detached.
        boxes (`Tensor`, shape `[B, 4]`): centre x, centre y, width, height as fractions of the search crop,
            decoded without a window.
        score_map (`Tensor`, shape `[B, 1, g, g]`): a cell's score, 0 to 1: centre heads, whether it holds the target's
            centre; MLP heads, how well its box fits.
        size_map (`Tensor`, shape `[B, 2, g, g]`): centre heads: width and height as fractions of the search crop.
        offset_map (`Tensor`, shape `[B, 2, g, g]`): centre heads: x and y offset of the centre in its cell, in cells.
        box_map (`Tensor`, shape `[B, 4, g, g]`): MLP heads: every cell's box, x1, y1, x2, y2 as fractions of the crop.
        state (`Tensor`): what the next frame's forward takes as `state`, for trackers that carry one; detached.
        auxiliary_loss (`Tensor`, shape `()`): the tuners' own losses, summed over layers.
        hidden_states, attentions (`tuple[Tensor]`): on request, as in transformers.
    """

    loss: Tensor | None = None
    loss_parts: dict[str, Tensor] | None = None
    boxes: Tensor | None = None
    score_map: Tensor | None = None
    size_map: Tensor | None = None
    offset_map: Tensor | None = None
    box_map: Tensor | None = None
    state: Tensor | None = None
    auxiliary_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class TokenLayout:
    """Which token of a sequence is what: `[prefix | template tokens | search tokens]`, streams on the batch axis.

    Args:
        streams (`int`): 1 (RGB) or 2 (RGB, then X); a batch of B pairs has `streams * B` rows, stream-major.
        prefix (`int`): tokens before the template.
        template_tokens (`int`): tokens of all templates together; 0 where only search rows are left.
        search_tokens (`int`): search tokens that are present (fewer than the grid after elimination).
        template_grid, search_grid (`tuple[int, int]`): rows and columns of one template and of the search crop.

    Example:
        >>> layout = TokenLayout(2, 0, 64, 256, (8, 8), (16, 16))
        >>> layout.tokens, layout.search
        (320, slice(64, 320, None))
    """

    streams: int
    prefix: int
    template_tokens: int
    search_tokens: int
    template_grid: tuple[int, int]
    search_grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        return self.prefix + self.template_tokens + self.search_tokens

    @property
    def template(self) -> slice:
        return slice(self.prefix, self.prefix + self.template_tokens)

    @property
    def search(self) -> slice:
        return slice(self.prefix + self.template_tokens, self.tokens)

    def search_only(self) -> "TokenLayout":
        """The same layout after every row but the search rows was dropped."""
        return replace(self, prefix=0, template_tokens=0)

    def without_template(self) -> "TokenLayout":
        """The same layout after the template's rows were dropped."""
        return replace(self, template_tokens=0)

    def drop_template(self, x: Tensor) -> Tensor:
        """The rows that are read after the last layer, prefix and search, of tokens `[S*B, N, C]`."""
        if not self.template_tokens:
            return x
        search = x[:, self.search]
        return torch.cat([x[:, : self.prefix], search], 1) if self.prefix else search


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: zeroes whole rows of the batch axis with probability `rate`, scales the others up."""
    if not training or rate == 0.0:
        return x
    keep = 1.0 - rate
    return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class ResidualJunction(nn.Module):
    """Seam: the residual sum of one sub-layer, `x + drop_path(y)`.

    It is called with all that an adapter at this place may need: the site's input `x` `[S*B, N, C]`, `h = norm(x)`,
    the sub-layer's output `y`, the block's own `norm`, and the layout. Returns the new tokens and an auxiliary loss
    (None here). An adapter that must see every token, also in the last layer, says so by `needs_all_rows`. A junction
    that training does not go through is `passed_by`, and no tuner can stand on it.
    """

    needs_all_rows = False

    def __init__(self, drop_path_rate: float = 0.0, passed_by: bool = False):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.passed_by = passed_by

    def forward(
        self, x: Tensor, h: Tensor, y: Tensor, norm: nn.Module, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        return x + drop_path(y, self.drop_path_rate, self.training), None


class StreamFusion(nn.Module):
    """Seam: fuses the streams' final search features and prefix tokens, by their sum or mean.

    Called with the normed search features of all streams `[S*B, Nx, C]`, the search rows of every layer (only where
    `needs_levels` is true, else None), the normed prefix tokens `[S*B, P, C]` or None, and the layout; returns
    `[B, Nx, C]` and `[B, P, C]`.
    """

    needs_levels = False

    def __init__(self, how: str = "sum"):
        super().__init__()
        self.how = how

    def forward(
        self, features: Tensor, levels: tuple[Tensor, ...] | None, token: Tensor | None, layout: TokenLayout
    ) -> tuple[Tensor, Tensor | None]:
        if layout.streams == 1:
            return features, token
        return self._fused(features, layout), None if token is None else self._fused(token, layout)

    def _fused(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        streams = tokens.view(layout.streams, -1, *tokens.shape[1:])
        return streams.sum(0) if self.how == "sum" else streams.mean(0)


class Neck(nn.Module):
    """Seam: between the fused search features `[B, Nx, C]` and the head; hands them on unchanged."""

    def forward(self, features: Tensor, layout: TokenLayout) -> Tensor:
        return features


def weighed(features: Tensor, token: Tensor) -> Tensor:
    """Search features `[B, Nx, C]`, each times its product with a fused track token `[B, 1, C]`.

    The product is not scaled and reaches thousands, so it is taken in float32 whatever the features are in.
    """
    weights = (features.float() * token.float()).sum(-1, keepdim=True)
    return (features.float() * weights).to(features.dtype)


def forward_clip(
    model: "TrackerPreTrainedModel",
    search: Tensor,
    template: Tensor,
    state: Any,
    labels: Tensor | None,
    template_mask: Tensor | None = None,
    **kwargs: Any,
) -> TrackingOutput:
    """A model's `forward` on clips: frame after frame, the state carried, the templates embedded once.

    Args:
        model (`TrackerPreTrainedModel`): takes single frames.
        search (`Tensor`, shape `[B, F, S, 3, H, W]`): F search crops in the order of time.
        template, template_mask (`Tensor`): of the whole clip, as `forward` takes them.
        state: carried into the first frame; None at the beginning of a video.
        labels (`Tensor`, shape `[B, F, 4]`): xywh as fractions of the crops.

    Returns:
        `TrackingOutput`: boxes `[B, F, 4]` and maps `[B, F, ...]`; the loss is the sum over frames, its auxiliary
        part and the loss parts are means; the state is the last frame's.

    Raises:
        ValueError: other numbers of frames in `labels` than in `search`.
    """
    _check_clip_labels(labels, search)
    if template.ndim > 3:
        template = model.embed_template(template, *(() if template_mask is None else (template_mask,)))
    frames: list[TrackingOutput] = []
    for index in range(search.shape[1]):
        labels_now = None if labels is None else labels[:, index]
        frames.append(model(search[:, index], template, state=state, labels=labels_now, return_dict=True, **kwargs))
        state = frames[-1].state
    return _joined_frames(frames)


def backward_clip(
    model: nn.Module,
    search: Tensor,
    template: Tensor,
    labels: Tensor,
    state: Any = None,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    **kwargs: Any,
) -> TrackingOutput:
    """`forward_clip` and its backward pass, frame after frame: the gradients are the same (states are detached), and
    only one frame's activations are held at a time, while templates are embedded for every frame anew.

    Args:
        model (`nn.Module`): a tracker, wrapped for several processes or not.
        search, template, labels, state: as in `forward_clip`.
        backward (`Callable`): what to do with each frame's part of the loss, such as `accelerator.backward`.
        kwargs: further arguments of `forward`.

    Returns:
        `TrackingOutput`: as `forward_clip`, without a graph.

    Example:
        >>> backward_clip(model, **batch, backward=accelerator.backward).loss  # doctest: +SKIP
        tensor(8.7523)
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


def _unless_packed(method: Callable) -> Callable:
    """A method about adapters that raises RuntimeError on a packed model, whose adapters are merged already."""

    @wraps(method)
    def guarded(self, *args, **kwargs):
        if self.is_packed:
            raise RuntimeError(
                f"{method.__name__}() on a packed model: its adapters are merged into its weights. Load the model "
                "again, choose its adapters, then pack()."
            )
        return method(self, *args, **kwargs)

    return guarded


class TrackerPreTrainedModel(PreTrainedModel):
    """Base class of all tracker models: saving with an adapter, packing, and batch norms of a frozen base.

    A model with an injected adapter saves the adapter only (`mmtrackers.hub.publish.save_adapter`).
    """

    base_model_prefix = "model"
    main_input_name = "search"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    is_packed = False
    # tensors that loading did not find in a foreign backbone: random until they are trained or come with an adapter
    new_tensors: frozenset[str] = frozenset()
    # whether embed_template reads which cells of a template show the target
    reads_template_mask = False
    default_adapter: type[PeftConfig] | None = None

    add_adapter = _unless_packed(PreTrainedModel.add_adapter)
    load_adapter = _unless_packed(PreTrainedModel.load_adapter)
    set_adapter = _unless_packed(PreTrainedModel.set_adapter)
    delete_adapter = _unless_packed(PreTrainedModel.delete_adapter)
    disable_adapters = _unless_packed(PreTrainedModel.disable_adapters)

    @_unless_packed
    def enable_adapters(self) -> None:
        """As in transformers, whose own leaves the modules that an adapter trained in full switched off."""
        super().enable_adapters()
        for module in self.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.enable_adapters(enabled=True)

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        modality: str | None = None,
        adapter_config: PeftConfig | None = None,
        adapter_name: str = "default",
        **kwargs: Any,
    ) -> "TrackerPreTrainedModel":
        """A base's weights with a fresh, trainable adapter; everything else is frozen.

        Args:
            base (`str` or `Path`): repository or folder of a base of this class's family.
            modality (`str`, *optional*): "rgb" (one stream), or the second stream's "thermal", "depth" or "event";
                by default what the class's config says.
            adapter_config (`PeftConfig`, *optional*): the adapter; by default the class's published one.
            adapter_name (`str`): its name.
            kwargs: fields of the class's config that replace the base's, or arguments of `from_pretrained`
                (`revision`, `cache_dir`, `dtype`, ...).

        Raises:
            ValueError: a base of another family, tensors of it that are missing or unknown, or no adapter is given
                and the class has none of its own.

        Example:
            >>> from peft import LoraConfig
            >>> from mmtrackers import OSTrackForTracking
            >>> lora = LoraConfig(target_modules=["q_proj", "v_proj"])
            >>> model = OSTrackForTracking.from_base("org/ostrack-base-256", adapter_config=lora)  # doctest: +SKIP
        """
        if adapter_config is None and cls.default_adapter is None:
            raise ValueError(f"{cls.__name__} has no adapter of its own: say which, with adapter_config=.")
        own = {field.name for field in fields(cls.config_class)}
        loading = {name: kwargs.pop(name) for name in list(kwargs) if name not in own}
        loading.setdefault("dtype", "float32")
        config = cls._config_on(base, modality, kwargs, loading)
        model, info = cls.from_pretrained(base, config=config, output_loading_info=True, **loading)
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or unexpected:
            raise ValueError(
                f"{base} is no complete base for {cls.__name__}: missing {missing[:5]}, unexpected {unexpected[:5]} "
                f"({len(missing)} and {len(unexpected)} tensors)."
            )
        model.requires_grad_(False)
        model.add_adapter(adapter_config or cls.default_adapter(), adapter_name=adapter_name)
        cast_saved_modules(model, adapter_name)
        check_new_tensors(model, str(base))
        return model.train()

    @classmethod
    def _config_on(
        cls, base: str | Path, modality: str | None, overrides: dict[str, Any], loading: dict[str, Any]
    ) -> PreTrainedConfig:
        """The class's config with the fields of the base's, for a modality."""
        hub_options = ("revision", "cache_dir", "token", "local_files_only")
        base_config = AutoConfig.from_pretrained(base, **{n: loading[n] for n in hub_options if n in loading})
        if not issubclass(cls.config_class, type(base_config)):
            raise ValueError(f"{base} is a {base_config.model_type}, no base for {cls.__name__}.")
        taken = {field.name for field in fields(base_config)} - {field.name for field in fields(PreTrainedConfig)}
        values = {name: getattr(base_config, name) for name in taken}
        if overrides.get("search_size", base_config.search_size) != base_config.search_size:
            raise ValueError(
                f"search_size is {overrides['search_size']}, but {base} was made for {base_config.search_size}, and "
                "its positions with it: leave it out, or take a base of that size."
            )
        modality = modality or cls.config_class().modality
        values |= {"streams": 1 if modality == "rgb" else 2, "modality": modality}
        if modality != "rgb" and "elimination_layers" in values:
            values["elimination_layers"] = []
        return cls.config_class(**(values | overrides))

    def window(self) -> torch.Tensor:
        """What `decode` takes while tracking: weights `[g, g]` that favour places near the last position."""
        return torch.from_numpy(hann_window(self.config.search_grid))

    @property
    def template_policy(self) -> TemplatePolicy:
        """Which frames of a video are the templates: the first one, unless a model says otherwise."""
        return TemplatePolicy()

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is injected."""
        return bool(getattr(self, "_hf_peft_config_loaded", False))

    def pack(self) -> None:
        """Prepares the model for inference, in place: see `mmtrackers.modeling.packing.pack_model`.

        Example:
            >>> model.eval().pack()  # doctest: +SKIP
        """
        from .packing import pack_model

        pack_model(self)

    def merge_and_unload(self) -> "TrackerPreTrainedModel":
        """Adds the active adapter to the weights and takes it away, in place: a plain model with the same numbers.

        Returns:
            The model itself, in evaluation mode, which saves and loads as a full model.

        Raises:
            RuntimeError: the model is packed.
            ValueError: it has no adapter, several active ones, or one whose effect no weight can hold.

        Example:
            >>> model.merge_and_unload().save_pretrained("merged")  # doctest: +SKIP
        """
        from .packing import merge_model

        merge_model(self)
        return self

    def train(self, mode: bool = True) -> "TrackerPreTrainedModel":
        if mode and self.is_packed:
            raise RuntimeError(
                "This model is packed for inference and cannot train: its weights are merged and reordered. "
                "Load it again without pack()."
            )
        super().train(mode)
        if mode:
            self._hold_frozen_norms()
        return self

    def _hold_frozen_norms(self) -> None:
        """Batch norms whose weights are frozen keep their statistics: those belong to the base, not the adapter."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
                module.eval()

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Saves the model, or only its adapter when one is injected.

        Args:
            save_directory (`str` or `Path`): folder, made if need be.
            kwargs: passed to `mmtrackers.hub.publish.save_adapter` or to transformers.

        Raises:
            RuntimeError: the model is packed.
        """
        if self.is_packed:
            raise RuntimeError("A packed model cannot be saved: its weights are merged. Save it before pack().")
        if self.has_adapter:
            from mmtrackers.hub.publish import save_adapter

            save_adapter(self, save_directory, **kwargs)
        else:
            super().save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, private: bool = False, base_model: str | None = None, **kwargs) -> str:
        """Publishes the model, or its adapter, with a model card: `mmtrackers.hub.publish.push` on what is saved.

        Args:
            repo_id (`str`): "org/name".
            private (`bool`): make it private (new repositories only).
            base_model (`str`): Hub id of an adapter's base, where it was loaded from a folder.
            kwargs: passed to `mmtrackers.hub.publish.push`.

        Returns:
            `str`: the repository's address.
        """
        from mmtrackers.hub.publish import push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push(folder, repo_id, private=private, base_model=base_model, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "TrackerPreTrainedModel":
        """As in transformers; a folder with an adapter goes through `AutoTracker`, which checks every tensor."""
        folder = Path(pretrained_model_name_or_path) if pretrained_model_name_or_path is not None else None
        if folder is None or not (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        from mmtrackers.hub.auto import AutoTracker

        model = AutoTracker.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if not isinstance(model, cls):
            raise ValueError(f"{folder} holds an adapter for {type(model).__name__}, not for {cls.__name__}.")
        return model
