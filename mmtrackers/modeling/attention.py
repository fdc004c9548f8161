"""Attention written out, for bfloat16 on a CPU: torch's fused kernel gains nothing from bfloat16 there."""

import torch
from torch import Tensor

# above so many keys the logits of all heads leave the caches: then one head at a time is faster
WHOLE_UP_TO = 400


def written_out_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without a gradient: two products, and the softmax in the place of the logits.

    Args:
        query (`Tensor`, shape `[B, H, M, d]`): queries, already scaled.
        key, value (`Tensor`, shape `[B, H, N, d]`): keys and values.

    Returns:
        `Tensor`, shape `[B, M, H, d]`: the attended values.

    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 5, 8)
        >>> expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        >>> torch.allclose(written_out_attention(query, key, value), expected.transpose(1, 2), atol=1e-6)
        True
    """
    keys = key.transpose(-1, -2)
    if key.shape[2] <= WHOLE_UP_TO:
        weights = query @ keys
        torch.softmax(weights, -1, out=weights)
        return (weights @ value).transpose(1, 2)
    batch, heads, rows, width = query.shape
    output = value.new_empty(batch, rows, heads, width)
    for i in range(batch):
        for head in range(heads):
            weights = query[i, head] @ keys[i, head]
            torch.softmax(weights, -1, out=weights)
            torch.mm(weights, value[i, head], out=output[i, :, head])
    return output
