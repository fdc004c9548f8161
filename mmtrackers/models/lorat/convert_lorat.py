"""Names of official LoRAT checkpoints, turned into this package's.

The official training model (github.com/LitingLin/LoRAT) keeps q, k and v apart, each linear map under `linear` and its
low-rank pair under `lora`; the merged model has neither level, and q, k and v in one matrix, as Meta's DINOv2 files.
"""

import re

_FIXED = {
    "pos_embed": "model.embeddings.position",
    "token_type_embed": "model.embeddings.token_type.weight",
    "patch_embed.proj.weight": "model.embeddings.patch.weight",
    "patch_embed.proj.bias": "model.embeddings.patch.bias",
    "norm.weight": "model.norm.weight",
    "norm.bias": "model.norm.bias",
}
_MAPS = {
    "attn.qkv.q": "attention.q_proj",
    "attn.qkv.k": "attention.k_proj",
    "attn.qkv.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
} | {f"mlp.{name}": f"mlp.{name}" for name in ("fc1", "fc2", "w12", "w3")}
_LEAVES = {"lora.A": "lora_A.weight", "lora.B": "lora_B.weight"}
_SCALES = {"ls1": "attention.scale", "ls2": "mlp.scale"}
_BRANCHES = {"cls": "score", "reg": "box"}
_LINEAR = re.compile(
    r"blocks\.(\d+)\.(attn\.qkv\.[qkv]|attn\.proj|mlp\.(?:fc1|fc2|w12|w3))\.(?:linear\.)?(weight|bias|lora\.[AB])"
)
_FUSED = re.compile(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_NORM = re.compile(r"blocks\.(\d+)\.(norm[12])\.(weight|bias)")
_SCALE = re.compile(r"blocks\.(\d+)\.(ls[12])\.gamma")
_HEAD = re.compile(r"head\.(cls|reg)_mlp\.layers\.([012])\.(weight|bias)")


def our_names(official: str) -> tuple[str, ...] | None:
    """The names here of one official LoRAT entry: three for a fused q, k, v (equal parts of the rows, in this order),
    and `None` for a name that LoRAT has not. Low-rank pairs come under the names of an adapter file.

    Example:
        >>> our_names("blocks.0.attn.qkv.q.lora.A")
        ('model.layers.0.attention.q_proj.lora_A.weight',)
    """
    if official in _FIXED:
        return (_FIXED[official],)
    if match := _LINEAR.fullmatch(official):
        return (f"model.layers.{match[1]}.{_MAPS[match[2]]}.{_LEAVES.get(match[3], match[3])}",)
    if match := _FUSED.fullmatch(official):
        return tuple(f"model.layers.{match[1]}.attention.{part}_proj.{match[2]}" for part in "qkv")
    if match := _NORM.fullmatch(official):
        return (f"model.layers.{match[1]}.{match[2]}.{match[3]}",)
    if match := _SCALE.fullmatch(official):
        return (f"model.layers.{match[1]}.{_SCALES[match[2]]}.gamma",)
    if match := _HEAD.fullmatch(official):
        return (f"head.{_BRANCHES[match[1]]}.{2 * int(match[2])}.{match[3]}",)
    return None
