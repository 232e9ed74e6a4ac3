"""Control networks: a picture beside the caption says what is drawn where."""

from st_controlnet.families import AcceptsControl, WidensInput
from st_controlnet.plugin import Controls

__all__ = ["AcceptsControl", "Controls", "WidensInput"]
