"""By what a frozen base is recognized: a few numbers of each of its tensors, in whatever precision they are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# bfloat16 rounds by at most 2**-9 of a value: a base re-saved in bfloat16 still is the same base
RTOL = 2.0**-8
ATOL = 1e-6
NUMBERS = ("the mean", "the mean magnitude", "the largest magnitude", "the value", "the value")


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Of every floating tensor its mean, mean and largest magnitude, and two of its values.

    Numbers instead of a hash, so that the same base in float32, bfloat16 or float16 is still the same base.
    """
    return {
        name: [float(f"{number:.7g}") for number in _numbers(tensor)]
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta
    }


def _numbers(tensor: Tensor) -> list[float]:
    flat, count = tensor.detach().reshape(-1), tensor.numel()
    wide = torch.promote_types(flat.dtype, torch.float32)
    one, largest = (torch.linalg.vector_norm(flat, order, dtype=wide) for order in (1, float("inf")))
    values = (flat.sum(dtype=wide) / count, one / count, largest, flat[count // 3], flat[2 * count // 3])
    return torch.stack([value.to(wide) for value in values]).tolist()


def check_fingerprint(recorded: Mapping[str, Any], where: str) -> None:
    """Raises ValueError where a fingerprint that was read from a file is none."""
    for name, numbers in recorded.items():
        right = isinstance(numbers, list) and len(numbers) == len(NUMBERS)
        if not right or not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError(
                f"{where}: 'base_fingerprint' of {name!r} is damaged, or of an earlier form. Download or copy it "
                "again; without that field the base is not checked."
            )


def fingerprint_difference(recorded: Mapping[str, list[float]], tensors: Mapping[str, Tensor]) -> str | None:
    """First way in which a base's tensors differ from a recorded fingerprint, in words; None if they agree."""
    for name, numbers in recorded.items():
        tensor = tensors.get(name)
        if tensor is None or not tensor.numel():
            return f"it has no tensor {name!r}"
        if tensor.is_meta:
            continue
        _, size, *others = numbers
        scales = (size, size, *others)  # a mean is as exact as the numbers that it is made of
        for what, found, wanted, scale in zip(NUMBERS, _numbers(tensor), numbers, scales, strict=True):
            if not abs(found - wanted) <= RTOL * abs(scale) + ATOL:
                return f"of its {name!r} {what} is {found:.6g}, of the adapter's base {wanted:.6g}"
    return None
