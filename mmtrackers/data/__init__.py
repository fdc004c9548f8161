"""Sequences on disk, and training samples from them."""

from .augment import Augmentation, DeiTAugmentation, TrainingAugmentation
from .datasets import open_dataset, open_sequence
from .index import SequenceSet
from .sampling import PairDataset
from .sequence import Sequence

__all__ = [
    "Augmentation",
    "DeiTAugmentation",
    "PairDataset",
    "Sequence",
    "SequenceSet",
    "TrainingAugmentation",
    "open_dataset",
    "open_sequence",
]
