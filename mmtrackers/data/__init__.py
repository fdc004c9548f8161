"""Sequences on disk: how data sets lie there, their index, and Hugging Face datasets."""

from .datasets import open_dataset, open_sequence
from .hf import from_hf_dataset, load_hf_dataset, to_hf_dataset
from .sequence import Sequence
from .sets import SequenceSet

__all__ = [
    "Sequence", "SequenceSet", "from_hf_dataset", "load_hf_dataset", "open_dataset", "open_sequence", "to_hf_dataset",
]
