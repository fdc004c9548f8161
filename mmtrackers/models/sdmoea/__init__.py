from .configuration_sdmoea import SDMoEAConfig
from .modeling_sdmoea import SDMoEAForTracking

__all__ = ["SDMoEAConfig", "SDMoEAForTracking"]
