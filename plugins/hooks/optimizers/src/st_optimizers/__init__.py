"""More optimizers for st, from the packages that their authors and others keep."""

from st_optimizers.plugin import Optimizers as Optimizers

__all__ = ["Optimizers"]
