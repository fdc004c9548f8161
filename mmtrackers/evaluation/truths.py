"""From sequences on disk to what protocols know of them."""

from collections.abc import Iterable

import numpy as np

from mmtrackers.data.sequence import Sequence, read_image

from .one_pass import OnePass
from .protocols import get_protocol
from .scoring import Protocol, Truth

# A set's file of flags -> the value, or the smallest one, that means: the target is there. GOT-10k's `absence.label`
# is not among them, since its toolkit counts by `cover.label`.
_THERE = {"absent_label": 1, "absent": 1, "full_occlusion": 0, "out_of_view": 0}
_COVER = "cover"


def truth_of(sequence: Sequence, protocol: Protocol | str) -> Truth:
    """What a protocol needs to know of a sequence.

    Args:
        sequence ([`Sequence`]): as `open_dataset` gives it.
        protocol (`Protocol` or `str`): the rules; the size of the frames is read where they need it.

    Raises:
        ValueError: the sequence has no ground truth, or its first image cannot be read.

    Example:
        ```python
        truths = [truth_of(s, "lasher") for s in open_dataset(root, dataset="lasher", split="test")]
        ```
    """
    protocol = get_protocol(protocol)
    if not np.isfinite(sequence.boxes_xywh).all(1).any():
        raise ValueError(f"sequence {sequence.name!r} has no ground truth, not even of its first frame")
    size = None
    if not isinstance(protocol, OnePass) or protocol.clip:
        height, width = read_image(sequence.frames["rgb"][0]).shape[:2]
        size = (width, height)
    return Truth(
        sequence.name, sequence.boxes_xywh, visible_frames(sequence), sequence.annotated, sequence.second_boxes_xywh,
        size, sequence.extras.get("anchor"), sequence.attributes,
    )  # fmt: skip


def visible_frames(sequence: Sequence) -> np.ndarray | None:
    """`[N]` bool from the set's own flags alone, whatever the boxes say; None where the set has no flags.

    Example:
        >>> from pathlib import Path
        >>> flags = {"absent_label": np.array([0.0, 1.0])}
        >>> files = {"rgb": [Path("1.jpg"), Path("2.jpg")]}
        >>> sequence = Sequence("a", files, np.ones((2, 4)), np.ones(2, dtype=bool), extras=flags)
        >>> visible_frames(sequence).tolist()
        [False, True]
    """
    found = [flags == _THERE[name] for name, flags in sequence.extras.items() if name in _THERE]
    if _COVER in sequence.extras:
        found.append(sequence.extras[_COVER] > 0)
    return np.logical_and.reduce(found) if found else None


def scorable(sequences: Iterable[Sequence]) -> bool:
    """Whether there is ground truth beyond the first frames (the test sets of GOT-10k and TrackingNet have none)."""
    return any(bool(sequence.annotated[1:].any()) for sequence in sequences)
