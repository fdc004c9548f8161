"""Official ODTrack checkpoints (github.com/GXNU-ZhongLab/ODTrack) to this package's: OSTrack's and a track token."""

from collections.abc import Mapping

from torch import Tensor

from mmtrackers.conversion.job import ConversionJob, ConversionReport
from mmtrackers.models.ostrack.convert_ostrack import OfficialForm, convert_ostrack, our_names, rename

from .modeling_odtrack import ODTrackForTracking

_TOKEN = {
    "backbone.cls_token": "model.track_token.start",
    "backbone.cls_pos_embed": "model.track_token.position",
}


def _names(official: str) -> tuple[str, ...] | None:
    return (_TOKEN[official],) if official in _TOKEN else our_names(official)


ODTRACK = OfficialForm(
    system="odtrack",
    model=ODTrackForTracking,
    names=_names,
    extra=tuple(_TOKEN),
    unused=("backbone.pos_embed",),
    elimination_layers={12: [3, 6, 9], 24: [3, 6, 9]},
)


def rename_odtrack(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official ODTrack state dict under this package's names; see `rename_ostrack`.

    Example:
        >>> import torch
        >>> list(rename_odtrack({"backbone.cls_token": torch.zeros(1, 1, 8)}))
        ['model.track_token.start']
    """
    return rename(net, ODTRACK.names)


def convert_odtrack(job: ConversionJob) -> ConversionReport:
    """An official ODTrack file to a full model in `job.out`; see `convert_checkpoint`."""
    return convert_ostrack(job, ODTRACK)
