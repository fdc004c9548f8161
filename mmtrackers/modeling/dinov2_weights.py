"""Plain DINOv2 repositories and folders, as transformers writes them, as the start of a tracker."""

from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from mmtrackers.hub.folders import MODEL_CONFIG, TrackerFiles, shorten

from .base import quiet_loading
from .dinov2 import resample_positions

_SHARED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "use_swiglu_ffn", "qkv_bias",
    "layer_norm_eps", "patch_size",
)  # fmt: skip
# parts of transformers' names, which are these whatever version has written the files, and the names here
_NAMES = {
    "embeddings.patch_embeddings.projection": "embeddings.patch",
    "encoder.layer.": "layers.",
    "layernorm": "norm",
    "layer_scale1.lambda1": "attention.scale.gamma",
    "layer_scale2.lambda1": "mlp.scale.gamma",
    "mlp.gate_proj": "mlp.w12",
    "mlp.up_proj": "mlp.w12",
    "mlp.down_proj": "mlp.w3",
}
_UNUSED = {"embeddings.cls_token", "embeddings.mask_token", "embeddings.position_embeddings"}


def dinov2_fields(config: Dinov2Config) -> dict[str, Any]:
    """The sizes that a tracker's config takes over from DINOv2's."""
    if (config.hidden_act, config.num_channels) != ("gelu", 3):
        raise ValueError(
            f"This DINOv2 has hidden_act {config.hidden_act!r} and {config.num_channels} channels; trackers stand on "
            "models with 'gelu' and 3, as all published ones have."
        )
    return {name: getattr(config, name) for name in _SHARED}


def find_dinov2_config(files: TrackerFiles) -> Dinov2Config | None:
    """The config of a plain DINOv2 repository or folder; None where `files` are something else."""
    found = files.json(MODEL_CONFIG) if files.has(MODEL_CONFIG) else {}
    if found.get("model_type") == "dinov2_with_registers":
        raise ValueError(f"{files.name} is a DINOv2 with registers; trackers stand on the plain facebook/dinov2-*.")
    return Dinov2Config.from_dict(found) if found.get("model_type") == "dinov2" else None


def trunk_from_dinov2(files: TrackerFiles, side: int) -> dict[str, Tensor]:
    """The tensors of a plain DINOv2 under the names of a tracker's trunk; positions resampled to a search grid with
    `side` cells a side."""
    with quiet_loading():
        model, info = Dinov2Model.from_pretrained(
            files.with_weights(), dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    missing = sorted(info["missing_keys"] - {"embeddings.cls_token", "embeddings.mask_token"})
    unexpected = sorted(key for key in info["unexpected_keys"] if not key.startswith("classifier."))
    if missing or unexpected:
        raise ValueError(
            f"{files.name} is no complete DINOv2: {len(missing)} tensors missing ({shorten(missing)}), "
            f"{len(unexpected)} unknown ({shorten(unexpected)})."
        )
    net = model.state_dict()
    renamed = {"model.embeddings.position": resample_positions(net["embeddings.position_embeddings"], side)}
    for name, tensor in net.items():
        if name not in _UNUSED:
            for theirs, ours in _NAMES.items():
                name = name.replace(theirs, ours)
            name = f"model.{name}"
            # of SwiGLU the gate's rows come before the values'
            renamed[name] = torch.cat([renamed[name], tensor]) if name in renamed else tensor
    return renamed
