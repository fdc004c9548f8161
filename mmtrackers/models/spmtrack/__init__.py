from .configuration_spmtrack import SPMTrackConfig, tmoe_config
from .modeling_spmtrack import SPMTrackForTracking, SPMTrackModel

__all__ = ["SPMTrackConfig", "SPMTrackForTracking", "SPMTrackModel", "tmoe_config"]
