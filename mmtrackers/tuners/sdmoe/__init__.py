from .config import SDMoEConfig

__all__ = ["SDMoEConfig"]
