"""Names of official SEATrack checkpoints (github.com/AutoLab-SAI-SJTU/SEATrack), turned into this package's and back.

An official file is the whole two-stream tracker: OSTrack's 242 entries and, in every second layer, 38 adapter tensors.
Here k and v have low-rank matrices of their own, so the same numbers make 40 tensors a layer.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from mmtrackers.models.ostrack.convert_ostrack import rename

_ADAPTER = re.compile(
    r"backbone\.blocks\.(\d+)\.(?:attn\.qkv\.(lora_[AB])|(dte2r_scaling|r2dte_scaling)|(attn_moe|ffn_moe)\.([\w.]+))"
)
_SCALARS = {"dte2r_scaling": "amg_lora_x_to_rgb", "r2dte_scaling": "amg_lora_rgb_to_x"}
_JUNCTIONS = {"attn_moe": "attention_junction", "ffn_moe": "mlp_junction"}
_LOW_RANK = {"linear1": "input_proj", "experts": "experts", "linear2": "output_proj"}
_IN_MIXTURE = {
    "gate_thi": "gate",
    "D_temp": "dispatch_temperature",
    "C_temp": "combine_temperature",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
} | {
    f"{official}.{leaf}": f"{ours}.{leaf.removeprefix('lora_')}"
    for official, ours in _LOW_RANK.items()
    for leaf in ("lora_a", "lora_b", "bias_a", "bias_b")
}


def our_adapter_names(official: str) -> tuple[str, ...] | None:
    """The names here of one official adapter tensor (two for a low-rank matrix: k, then v, equal parts of the rows),
    without peft's `base_model.model.`; `None` for every other name.

    Example:
        >>> our_adapter_names("backbone.blocks.1.dte2r_scaling")
        ('model.layers.1.attention.core.amg_lora_x_to_rgb',)
    """
    match = _ADAPTER.fullmatch(official)
    if match is None:
        return None
    block, low_rank, scalar, mixture, entry = match.groups()
    layer = f"model.layers.{block}"
    if low_rank:
        return tuple(f"{layer}.attention.{target}_proj.amg_{low_rank}" for target in "kv")
    if scalar:
        return (f"{layer}.attention.core.{_SCALARS[scalar]}",)
    if entry not in _IN_MIXTURE:
        return None
    return (f"{layer}.{_JUNCTIONS[mixture]}.amg_lora_hmoe.{_IN_MIXTURE[entry]}",)


def split_official(net: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An official SEATrack state dict as two: OSTrack's entries (and any unknown ones), and the adapter's."""
    adapter = {name: tensor for name, tensor in net.items() if our_adapter_names(name) is not None}
    return {name: tensor for name, tensor in net.items() if name not in adapter}, adapter


def rename_seatrack_adapter(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter tensors of an official SEATrack state dict under this package's names.

    Args:
        net: tensors by official name; OSTrack's own entries are passed over.

    Returns:
        Tensors by name, without peft's prefix `base_model.model.`; `lora_A` [2r, D] and `lora_B` [2D, r] come as
        `amg_lora_A` [r, D] and `amg_lora_B` [D, r] of `k_proj` and of `v_proj`.

    Example:
        >>> import torch
        >>> list(rename_seatrack_adapter({"backbone.blocks.1.r2dte_scaling": torch.ones(1)}))
        ['model.layers.1.attention.core.amg_lora_rgb_to_x']
    """
    return rename(split_official(net)[1], our_adapter_names)
