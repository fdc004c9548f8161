"""Plain DINOv2 repositories and folders, as transformers writes them, as the start of a tracker."""

import re
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
_FIXED = {"embeddings.patch_embeddings.projection": "embeddings.patch", "layernorm": "norm"}
# two names each: modules of transformers 5 and of 4; q, k, v and the halves of SwiGLU come apart or together
_IN_LAYER = {
    "norm1": "norm1", "norm2": "norm2", "layer_scale1": "attention.scale", "layer_scale2": "mlp.scale",
    "attention.q_proj": "attention.q_proj", "attention.attention.query": "attention.q_proj",
    "attention.k_proj": "attention.k_proj", "attention.attention.key": "attention.k_proj",
    "attention.v_proj": "attention.v_proj", "attention.attention.value": "attention.v_proj",
    "attention.o_proj": "attention.o_proj", "attention.output.dense": "attention.o_proj",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "mlp.gate_proj": "mlp.w12", "mlp.up_proj": "mlp.w12", "mlp.weights_in": "mlp.w12",
    "mlp.down_proj": "mlp.w3", "mlp.weights_out": "mlp.w3",
}  # fmt: skip
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)")
_UNUSED = ("embeddings.cls_token", "embeddings.mask_token", "embeddings.position_embeddings")


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
        raise ValueError(
            f"{files.name} is a DINOv2 with registers; these trackers stand on the plain facebook/dinov2-*."
        )
    return Dinov2Config.from_dict(found) if found.get("model_type") == "dinov2" else None


def trunk_from_dinov2(files: TrackerFiles, side: int) -> dict[str, Tensor]:
    """The tensors of a plain DINOv2, in the name form of transformers 4 or 5, under the names of a tracker's trunk;
    positions resampled to a search grid with `side` cells a side."""
    with quiet_loading():
        model, info = Dinov2Model.from_pretrained(
            files.with_weights(), dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    missing = sorted(info["missing_keys"] - set(_UNUSED[:2]))
    unexpected = sorted(key for key in info["unexpected_keys"] if not key.startswith("classifier."))
    if missing or unexpected:
        raise ValueError(
            f"{files.name} is no complete DINOv2: {len(missing)} tensors missing ({shorten(missing)}), "
            f"{len(unexpected)} unknown ({shorten(unexpected)})."
        )
    return rename_dinov2(model.state_dict(), side)


def rename_dinov2(net: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """A state dict of transformers' `Dinov2Model` under the names of a tracker's trunk."""
    renamed = {"model.embeddings.position": resample_positions(net["embeddings.position_embeddings"], side)}
    for name, tensor in net.items():
        module, _, leaf = name.rpartition(".")
        if match := _LAYER.fullmatch(name):
            place = _IN_LAYER.get(match[2])
            ours = f"layers.{match[1]}.{place}.{'gamma' if leaf == 'lambda1' else leaf}" if place else None
        else:
            ours = f"{_FIXED[module]}.{leaf}" if module in _FIXED else None
        if ours is None:
            if name not in _UNUSED:
                raise ValueError(f"unexpected tensor {name!r}: DINOv2 has none of that name")
            continue
        ours = f"model.{ours}"
        # the gate's rows come before the values'
        renamed[ours] = torch.cat([renamed[ours], tensor]) if ours in renamed else tensor
    return renamed
