"""What a clock's stages say of a tracker's speed."""

from collections.abc import Sequence

import numpy as np
import torch

from mmtrackers.tracking.clock import STAGES

from .results import Speed, StageTime

WARMUP = 10


def speed_of(
    rows: np.ndarray | Sequence[Sequence[float]], device: torch.device | str, batch: int = 1, warmup: int = WARMUP
) -> Speed | None:
    """Median and middle half of every stage; None without rows.

    Args:
        rows (`[N, 4]`): seconds per frame and stage, in the order of `STAGES`.
        device (`torch.device` or `str`), batch (`int`): where the model ran; sequences side by side.
        warmup (`int`): first rows to leave out; at most half of all.

    Example:
        >>> speed_of([[0.001, 0.002, 0.010, 0.001]] * 30, "cpu").stages["model"].median
        10.0
    """
    table = np.asarray(rows, dtype=np.float64).reshape(-1, len(STAGES)) * 1000
    if not len(table):
        return None
    warmup = min(warmup, len(table) // 2)
    table = table[warmup:]
    columns = dict(zip(STAGES, table.T, strict=True))
    columns |= {"track": table[:, 1:].sum(1), "total": table.sum(1)}
    stages = {}
    for name, values in columns.items():
        low, median, high = np.round(np.percentile(values, (25, 50, 75)), 4).tolist()
        stages[name] = StageTime(median, low, high)
    device = torch.device(device)
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Speed(stages, len(table), warmup, batch, shown, torch.get_num_threads())
