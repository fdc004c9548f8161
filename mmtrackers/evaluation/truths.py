"""From sequences on disk to what protocols know of them."""

from pathlib import Path

import numpy as np

from mmtrackers.data.layouts import LAYOUTS
from mmtrackers.data.sequence import Sequence, read_image

from .one_pass import OnePass
from .protocols import get_protocol
from .scoring import Protocol, Truth

# GOT-10k's `absence.label` is not among them: its toolkit counts by `cover.label`
_THERE = {Path(file).stem: there for layout in LAYOUTS for file, there in layout.flags.items()
          if file != "absence.label"}  # fmt: skip


def truth_of(sequence: Sequence, protocol: Protocol | str) -> Truth:
    """What a protocol (or one of that name) needs to know of a sequence; the size of its frames is read where the
    rules need it. ValueError where there is no ground truth, or the first image cannot be read."""
    protocol = get_protocol(protocol)
    if not np.isfinite(sequence.boxes_xywh).all(1).any():
        raise ValueError(f"sequence {sequence.name!r} has no ground truth, not even of its first frame")
    sized = not isinstance(protocol, OnePass) or protocol.clip
    size = read_image(sequence.frames["rgb"][0]).shape[1::-1] if sized else None
    # from the set's own flags alone, whatever the boxes say
    flags = [np.isin(values, _THERE[name]) for name, values in sequence.extras.items() if name in _THERE]
    return Truth(
        sequence.name, sequence.boxes_xywh, np.logical_and.reduce(flags) if flags else None, sequence.annotated,
        sequence.second_boxes_xywh, size, sequence.extras.get("anchor"), sequence.attributes,
    )  # fmt: skip
