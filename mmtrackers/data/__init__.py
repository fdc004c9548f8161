"""Sequences on disk, and training samples from them."""

from .datasets import open_dataset, open_sequence
from .sequence import Sequence

__all__ = ["Sequence", "open_dataset", "open_sequence"]
