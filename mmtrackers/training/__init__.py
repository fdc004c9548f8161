"""What a training loop needs: recipes, samples from sequences, and a state that survives being killed."""

from .augment import Augmentation, DeiTAugmentation, TrainingAugmentation
from .sampling import PairDataset

__all__ = ["Augmentation", "DeiTAugmentation", "PairDataset", "TrainingAugmentation"]
