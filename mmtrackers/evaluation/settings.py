"""With what a run's boxes are made: the settings of a tracker, and a hash over its weights."""

import hashlib
import json
from typing import Any

import torch

from mmtrackers.hub.adapters import active_adapter, adapter_names
from mmtrackers.tracking.tracker import Tracker

from .results import Settings

# What a config says of the files and the library, not of the model
_BESIDE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


def settings_of(tracker: Tracker, name: str = "", pack: bool = False) -> Settings:
    """The settings of a tracker from a folder or Hub id; to be asked for before `pack()`, which lays the weights out
    for one machine, and saying whether it will be packed."""
    import mmtrackers

    model = tracker.model
    adapter = model.peft_config[active_adapter(model)] if adapter_names(model) else None
    same = ("modality", "streams", "absent_below", "size_momentum", "recover", "allow_missing")
    return Settings(
        tracker=name,
        system=type(model).__name__,
        base=None if adapter is None else str(adapter.base_model_name_or_path),
        tuner=None if adapter is None else str(getattr(adapter.peft_type, "value", adapter.peft_type)),
        weights=_weights_hash(model),
        processor=json.loads(json.dumps(tracker.image_processor.to_dict())),
        dtype=str(tracker.dtype).removeprefix("torch."),
        device=tracker.device.type,
        pack=pack,
        version=mmtrackers.__version__,
        **{name: getattr(tracker, name) for name in same},
    )


def _weights_hash(model: Any) -> str:
    """32 hexadecimal digits over every tensor with its name, and over the model's config."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = getattr(model, "config", None)
    if config is not None:
        kept = {key: value for key, value in config.to_dict().items() if key not in _BESIDE}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]
