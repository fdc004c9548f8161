"""Names and shapes of official OSTrack checkpoints, turned into this package's and back.

The official state dict (github.com/botaoye/OSTrack, entry `net` of the file) keeps q, k and v in one matrix, a class
token and a 197-row position table that no forward pass reads, and the head under `box_head.conv{k}_{branch}`.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

UNUSED = ("backbone.cls_token", "backbone.pos_embed")
BRANCHES = {"ctr": "score", "offset": "offset", "size": "size"}
BRANCH_CHANNELS = {"ctr": 1, "offset": 2, "size": 2}
OFFICIAL_HEAD_WIDTH = 64

_FIXED = {
    "backbone.pos_embed_z": "model.embeddings.template_position",
    "backbone.pos_embed_x": "model.embeddings.search_position",
    "backbone.patch_embed.proj.weight": "model.embeddings.patch.weight",
    "backbone.patch_embed.proj.bias": "model.embeddings.patch.bias",
    "backbone.norm.weight": "model.norm.weight",
    "backbone.norm.bias": "model.norm.bias",
}
_IN_BLOCK = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)")
_CONV = re.compile(r"box_head\.conv([1-4])_(ctr|offset|size)\.(?:0\.(weight|bias)|1\.(\w+))")
_LAST = re.compile(r"box_head\.conv5_(ctr|offset|size)\.(weight|bias)")
_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def our_names(official: str) -> tuple[str, ...] | None:
    """The names here of one official OSTrack entry: three for a fused q, k, v (equal parts of the rows, in this
    order), none for an entry that no forward pass reads, and `None` (not a tuple) for a name that OSTrack has not.

    Example:
        >>> our_names("backbone.blocks.0.attn.proj.bias")
        ('model.layers.0.attention.o_proj.bias',)
    """
    if official in UNUSED:
        return ()
    if official in _FIXED:
        return (_FIXED[official],)
    if match := _BLOCK.fullmatch(official):
        block, part, leaf = match.groups()
        return tuple(f"model.layers.{block}.{name}.{leaf}" for name in _IN_BLOCK[part])
    if match := _CONV.fullmatch(official):
        layer, branch, conv, norm = match.groups()
        if norm is not None and norm not in _NORM_ENTRIES:
            return None
        part = f"conv.{conv}" if conv else f"norm.{norm}"
        return (f"head.{BRANCHES[branch]}.{int(layer) - 1}.{part}",)
    if match := _LAST.fullmatch(official):
        return (f"head.{BRANCHES[match[1]]}.4.{match[2]}",)
    return None


def rename(net: Mapping[str, Tensor], names: Callable[[str], tuple[str, ...] | None]) -> dict[str, Tensor]:
    """Every entry under its names here; where there are several, the rows are shared out equally and copied."""
    renamed: dict[str, Tensor] = {}
    for official, tensor in net.items():
        ours = names(official)
        if ours is None:
            raise ValueError(f"unexpected entry {official!r}: the official model has none of that name")
        parts = (tensor,) if len(ours) == 1 else [part.clone() for part in tensor.chunk(len(ours))] if ours else ()
        renamed.update(zip(ours, parts, strict=True))
    return renamed


def rename_ostrack(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official OSTrack state dict under this package's names; the fused q, k, v come apart, unused entries go.

    Args:
        net: tensors by official name (`backbone.*`, `box_head.*`), whole or in part.

    Raises:
        ValueError: an entry has a name that OSTrack does not have.

    Example:
        >>> import torch
        >>> sorted(rename_ostrack({"backbone.blocks.0.attn.qkv.bias": torch.zeros(6)}))[0]
        'model.layers.0.attention.k_proj.bias'
    """
    return rename(net, our_names)
