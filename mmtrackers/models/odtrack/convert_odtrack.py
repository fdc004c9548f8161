"""Official ODTrack checkpoints (github.com/GXNU-ZhongLab/ODTrack) to this package's: OSTrack's and a track token."""

from mmtrackers.conversion.job import ConversionJob, ConversionReport
from mmtrackers.models.ostrack.convert_ostrack import OSTRACK_NAMES, OfficialForm, convert_ostrack

from .modeling_odtrack import ODTrackForTracking

TOKEN = {r"backbone\.cls_token": "model.track_token.start", r"backbone\.cls_pos_embed": "model.track_token.position"}
ODTRACK = OfficialForm("odtrack", ODTrackForTracking, OSTRACK_NAMES | TOKEN, {12: [3, 6, 9], 24: [3, 6, 9]})


def convert_odtrack(job: ConversionJob) -> ConversionReport:
    """An official ODTrack file to a full model in `job.out`; see `convert_checkpoint`."""
    return convert_ostrack(job, ODTRACK)
