"""What every tracker model shares: its output and its base class."""

import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from mmtrackers.hub.adapters import AdapterMixin, PeftConfig, check_uninitialized
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


class TrackerPreTrainedModel(AdapterMixin, PreTrainedModel):
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
    # whether embed_template reads which cells of a template show the target
    reads_template_mask = False

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
        check_uninitialized(model, str(base))
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

    def pack(self) -> None:
        """Prepares the model for inference, in place: see `mmtrackers.modeling.packing.pack_model`.

        Example:
            >>> model.eval().pack()  # doctest: +SKIP
        """
        from .packing import pack_model

        pack_model(self)

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
