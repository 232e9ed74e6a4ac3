"""Prior preservation for st: some data sets teach an adapter to answer as the base model does."""

from st_prior.technique import Prior as Prior
from st_prior.technique import PriorOptions as PriorOptions

__all__ = ["Prior", "PriorOptions"]
