"""Sequences on disk, and training samples from them."""

from .augment import Augmentation
from .datasets import open_dataset, open_sequence
from .index import SequenceSet
from .sampling import PairDataset
from .sequence import Sequence

__all__ = ["Augmentation", "PairDataset", "Sequence", "SequenceSet", "open_dataset", "open_sequence"]
