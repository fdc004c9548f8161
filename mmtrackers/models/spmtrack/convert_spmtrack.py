"""Official SPMTrack checkpoints (WenRuiCai/SPMTrack) to adapter folders."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# official name -> this package's, in order
NAMES = (
    (r"^pos_embed$", "model.embeddings.position"),
    (r"^token_type_embed$", "model.embeddings.token_type.weight"),
    (r"^patch_embed\.proj\.", "model.embeddings.patch."),
    (r"^track_query$", "model.track_token.start"),
    (r"^query_embed$", "model.track_token.position"),
    (r"^norm\.", "model.norm."),
    (r"^head\.cls_mlp\.layers\.", "head.score."),
    (r"^head\.reg_mlp\.layers\.", "head.box."),
    (r"(?<=^head\.score\.)2|(?<=^head\.box\.)2", "4"),
    (r"(?<=^head\.score\.)1|(?<=^head\.box\.)1", "2"),
    (r"^blocks\.", "model.layers."),
    (r"\.attn\.qkv\.([qkv])\.", r".attention.\1_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ls1\.", ".attention.scale."),
    (r"\.ls2\.", ".mlp.scale."),
    (r"\.linear\.", "."),
    (r"\.tmoe\.(?:compress_expert(?:\.\d+)?|expert_route\.weight)$", ".tmoe_down"),
    (r"\.tmoe\.(?:routed_experts\.\d+|shared_expert)$", ".tmoe_up"),
)

# the two rows whose sum is the state token; `[1, C]` there, `[1, 1, C]` here
STATE = ("track_query", "query_embed")


def our_name(official: str) -> str:
    """The name in this package of an official tensor; all up-projections of a map share one.

    Example:
        >>> our_name("blocks.3.attn.qkv.k.tmoe.routed_experts.1")
        'model.layers.3.attention.k_proj.tmoe_up'
    """
    for pattern, replacement in NAMES:
        official = re.sub(pattern, replacement, official)
    return official


def renamed(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors under this package's names: a linear map's up-projections side by side, in order."""
    found: dict[str, list[Tensor]] = {}
    # expert 10 comes after expert 9, and the expert without a gate after all others
    for name in sorted(net, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)]):
        found.setdefault(our_name(name), []).append(net[name][None] if name in STATE else net[name])
    return {name: torch.cat(parts, 1 if name.endswith("tmoe_up") else 0) for name, parts in found.items()}
