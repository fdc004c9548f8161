"""A new OSTrack base from a plain image ViT (MAE or DeiT): the trunk's weights, with resized positions."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmtrackers.conversion.job import names_of, rename
from mmtrackers.conversion.reader import load_official
from mmtrackers.modeling.dinov2 import resample_positions

from .configuration_ostrack import OSTrackConfig
from .convert_ostrack import OSTRACK_NAMES
from .modeling_ostrack import OSTrackForTracking


def ostrack_from_image_vit(
    weights: str | Path | Mapping[str, Tensor], config: OSTrackConfig | None = None
) -> OSTrackForTracking:
    """An untrained tracker whose trunk is an image ViT; only the head is new.

    Args:
        weights: a checkpoint file (as MAE publishes it), or the tensors by timm's names
            (`patch_embed.proj.weight`, `blocks.0.attn.qkv.weight`, ..., `norm.weight`).
        config (`OSTrackConfig`): sizes; ViT-B at 256 pixels by default.

    Returns:
        `OSTrackForTracking` in training mode.

    Raises:
        ValueError: tensors are missing or have another shape than the config says.

    Example:
        >>> model = ostrack_from_image_vit("mae_pretrain_vit_base.pth")  # doctest: +SKIP
    """
    net = load_official(weights, ("model", "state_dict")) if isinstance(weights, str | Path) else weights
    config = config or OSTrackConfig()
    if "pos_embed" not in net:
        raise ValueError(f"No position table 'pos_embed' in the image model; it holds {sorted(net)[:4]} ...")
    official = {f"backbone.{name}": tensor for name, tensor in net.items()}
    trunk = rename({n: t for n, t in official.items() if names_of(n, OSTRACK_NAMES)}, OSTRACK_NAMES)
    for name, side in (("template", config.template_grid), ("search", config.search_grid)):
        trunk[f"model.embeddings.{name}_position"] = resample_positions(net["pos_embed"], side)
    model = OSTrackForTracking(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith("model.")}
    wrong = sorted(n for n, shape in expected.items() if n not in trunk or trunk[n].shape != shape)
    if wrong or set(trunk) - set(expected):
        raise ValueError(
            f"The image model does not fit the config: missing or of another shape {wrong[:4]} ({len(wrong)}), "
            f"unknown {sorted(set(trunk) - set(expected))[:4]}. Give the OSTrackConfig of its width, depth and patch."
        )
    with torch.no_grad():
        model.load_state_dict(trunk, strict=False)
    return model.train()
