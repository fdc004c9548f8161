"""SEATrack: a frozen OSTrack for two streams with the AMG_LORA adapter (arXiv 2604.12502)."""

from pathlib import Path

from peft import PeftConfig

from mmtrackers.models.ostrack.configuration_ostrack import OSTrackConfig
from mmtrackers.models.ostrack.modeling_ostrack import OSTrackForTracking
from mmtrackers.tuners.amg_lora import AMGLoraConfig

from .configuration_seatrack import SEATrackConfig


class SEATrackForTracking(OSTrackForTracking):
    """OSTrack's weights, run on RGB and a second modality at once, with SEATrack's adapter.

    Without an adapter it is the two-stream OSTrack whose search features are summed.

    Example:
        >>> model = SEATrackForTracking.from_base("org/ostrack-base-256", modality="thermal")  # doctest: +SKIP
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # doctest: +SKIP
        636324
    """

    config: SEATrackConfig
    default_adapter: type[PeftConfig] = AMGLoraConfig

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        modality: str = "thermal",
        adapter_config: PeftConfig | None = None,
        adapter_name: str = "default",
        **kwargs,
    ) -> "SEATrackForTracking":
        """A base tracker's weights with a fresh, trainable adapter; everything else is frozen.

        Args:
            base (`str` or `Path`): repository or folder of an OSTrack base.
            modality (`str`): the second stream: "thermal", "depth" or "event".
            adapter_config (`PeftConfig`): the adapter; its published form by default.
            adapter_name (`str`): its name.
            kwargs: fields of `SEATrackConfig` that replace the base's, or arguments of `from_pretrained`.

        Raises:
            ValueError: tensors of the base that are missing or unknown.
        """
        loading = {name: kwargs.pop(name) for name in list(kwargs) if name not in SEATrackConfig.__dataclass_fields__}
        loading.setdefault("dtype", "float32")
        hub_options = ("revision", "cache_dir", "token", "local_files_only")
        hub = {name: loading[name] for name in hub_options if name in loading}
        base_config = OSTrackConfig.from_pretrained(base, **hub)
        fields = {name: getattr(base_config, name) for name in OSTrackConfig.__annotations__}
        fields |= {"streams": 2, "modality": modality, "elimination_layers": []} | kwargs
        model, info = cls.from_pretrained(
            base, config=cls.config_class(**fields), output_loading_info=True, **loading
        )
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or unexpected:
            raise ValueError(
                f"{base} is no complete OSTrack base: missing {missing[:5]}, unexpected {unexpected[:5]} "
                f"({len(missing)} and {len(unexpected)} tensors)."
            )
        model.requires_grad_(False)
        model.add_adapter(adapter_config or cls.default_adapter(), adapter_name=adapter_name)
        return model.train()
