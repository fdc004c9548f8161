"""Sequences on disk, and training samples from them."""

from mmtrackers.training.augment import Augmentation, DeiTAugmentation, TrainingAugmentation
from mmtrackers.training.sampling import PairDataset

from .datasets import open_dataset, open_sequence
from .hf import from_hf_dataset, load_hf_dataset, to_hf_dataset
from .index import SequenceSet
from .sequence import Sequence

__all__ = [
    "Augmentation",
    "DeiTAugmentation",
    "PairDataset",
    "Sequence",
    "SequenceSet",
    "TrainingAugmentation",
    "from_hf_dataset",
    "load_hf_dataset",
    "open_dataset",
    "open_sequence",
    "to_hf_dataset",
]
