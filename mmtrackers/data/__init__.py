"""Sequences on disk, and training samples from them."""

from .augment import Augmentation
from .datasets import open_dataset, open_sequence
from .sampling import PairDataset
from .sequence import Sequence

__all__ = ["Augmentation", "PairDataset", "Sequence", "open_dataset", "open_sequence"]
