"""Small tensors that stay the same from frame to frame: made once for each set of arguments."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")


def kept(make: Callable[..., Made]) -> Callable[..., Made]:
    """A function of hashable arguments whose last results are kept; they must not be written to."""

    @functools.lru_cache(maxsize=16)
    def keep(*arguments: Any) -> Made:
        # tensors made in inference mode could not serve a later training step
        with torch.inference_mode(False):
            return make(*arguments)

    @functools.wraps(make)
    def made(*arguments: Any) -> Made:
        # while a program is traced, tensors are stand-ins that must not be kept
        return make(*arguments) if torch.compiler.is_compiling() else keep(*arguments)

    return made
