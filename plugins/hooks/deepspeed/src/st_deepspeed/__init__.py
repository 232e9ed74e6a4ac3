"""DeepSpeed for st: the engines zero2 and zero3."""

from st_deepspeed.plugin import DeepSpeed as DeepSpeed
from st_deepspeed.plugin import DeepSpeedOptions as DeepSpeedOptions

__all__ = ["DeepSpeed", "DeepSpeedOptions"]
