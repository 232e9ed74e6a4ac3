"""ACE-Step 1.5 for st: music from tags, lyrics, tempo, key and length."""

from st_ace_step.family import AceStep as AceStep
from st_ace_step.flavours import AceStepOptions as AceStepOptions

__all__ = ["AceStep", "AceStepOptions"]
