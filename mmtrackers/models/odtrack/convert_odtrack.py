"""Official ODTrack checkpoints (github.com/GXNU-ZhongLab/ODTrack) to this package's: OSTrack's and a track token."""

from mmtrackers.conversion.job import ConversionJob, ConversionReport
from mmtrackers.models.ostrack.convert_ostrack import OfficialForm, convert_ostrack, our_names

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
    unused=("backbone.pos_embed",),
    elimination_layers={12: [3, 6, 9], 24: [3, 6, 9]},
)


def convert_odtrack(job: ConversionJob) -> ConversionReport:
    """An official ODTrack file to a full model in `job.out`; see `convert_checkpoint`."""
    return convert_ostrack(job, ODTRACK)
