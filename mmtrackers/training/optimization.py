"""What an optimizer gets: learning rates, groups of parameters, frozen weights in another precision."""

import math
import re
from typing import Any

import torch
from torch import nn

from .recipes import Recipe

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one optimizer step, from the step's number alone: a resumed run follows its own options.

    Args:
        recipe (`Recipe`): its schedule, one of "constant"; "step" (x 0.1 from `lr_drop_epoch` on, 80 % of the epochs
            if that is None); "linear" or "cosine" (down to 0 at the end of the last epoch), all of them after
            `warmup_steps` of linear growth; "warm-cosine" (LoRAT's: from `warmup_lr` up to `lr`, and only then a
            cosine as long as the run, to `final_lr`, which therefore is not reached; the rate lags one step behind).
        step (`int`): optimizer steps done before this one.
        steps_per_epoch (`int`): their number in an epoch.

    Example:
        >>> learning_rate(Recipe(lr=4e-4, epochs=10), step=80, steps_per_epoch=10)
        4e-05
    """
    whole, base = steps_per_epoch * recipe.epochs, recipe.lr
    if recipe.schedule == "warm-cosine":
        update = max(0, step - 1)
        if update < recipe.warmup_steps:
            return recipe.warmup_lr + (base - recipe.warmup_lr) * update / recipe.warmup_steps
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, (update - recipe.warmup_steps) / max(1, whole))))
        return recipe.final_lr + (base - recipe.final_lr) * fall
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    done = min(1.0, step / max(1, whole))
    if recipe.schedule == "step":
        drop = round(0.8 * recipe.epochs) if recipe.lr_drop_epoch is None else recipe.lr_drop_epoch
        return base * warm / (10 if step // steps_per_epoch >= drop else 1)
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return base * warm * shape[recipe.schedule]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The trained parameters in groups for an optimizer, each with `factor` (of the learning rate) and `decays`.

    Args:
        model (`nn.Module`): the tracker, without wrappers.
        recipe (`Recipe`): `trunk_lr_factor` is for the trunk (`model.*`); `decay` says what decays: "all"; "matrices"
            (tensors of two or more dimensions, without embeddings and positions, as SPMTrack); "weights" (the same
            after axes of length 1 are dropped, and nothing of a normalization, as LoRAT).

    Example:
        >>> groups = parameter_groups(nn.Linear(4, 1), Recipe(decay="weights"))
        >>> [(group["decays"], len(group["params"])) for group in groups]
        [(False, 2)]
    """
    norms = {f"{name}.{part}".lstrip(".") for name, module in model.named_modules() if isinstance(module, NORMS)
             for part, _ in module.named_parameters(recurse=False)}  # fmt: skip
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            axes = sum(size > 1 for size in parameter.shape) if recipe.decay == "weights" else parameter.ndim
            matrix = axes > 1 and not re.search("embed|position", name)
            decays = recipe.decay == "all" or (matrix and (recipe.decay == "matrices" or name not in norms))
            factor = recipe.trunk_lr_factor if name.startswith("model.") else 1.0
            groups.setdefault((factor, decays), []).append(parameter)
    return [{"params": params, "factor": factor, "decays": decays, "lr": recipe.lr * factor,
             "weight_decay": recipe.weight_decay * decays} for (factor, decays), params in groups.items()]  # fmt: skip


def cast_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts what is not trained to another precision; ValueError where all is trained.

    Example:
        >>> model = nn.ModuleList([nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)])
        >>> cast_frozen(model, torch.bfloat16)
        >>> [layer.weight.dtype for layer in model]
        [torch.bfloat16, torch.float32]
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    if not frozen:
        raise ValueError("All weights are trained: there is nothing frozen to cast to another precision.")
    for parameter in frozen:
        parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    setattr(module, name, buffer.to(dtype))


def elimination_keep_rate(epoch: int, start: int = 20, warmup: int = 80, base: float = 0.7) -> float:
    """Share of search tokens kept in an epoch of base training: 1 until the epoch `start`, then for `warmup` epochs a
    half cosine down to `base`."""
    if epoch < start:
        return 1
    if epoch >= start + warmup:
        return base
    return base + (1 - base) * (math.cos(math.pi * (epoch - start) / warmup) + 1) / 2
