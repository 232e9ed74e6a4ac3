"""What is written into an adapter's file about how it came to be."""

from __future__ import annotations

from typing import Literal

from st.options import Options


class MetadataOptions(Options):
    """What the header of a saved adapter says of its training. Other programs show it, and find trigger words by it."""

    keep: Literal["all", "anonymous", "none"] = "all"
    """all; anonymous, without captions' tags, names of folders and the run's settings; or none of it."""
    dates: bool = False
    """Write when training began and ended. Two runs alike then write different files, unless SOURCE_DATE_EPOCH is
    set."""
    title: str = ""
    """Title of the model. Empty: the run's name."""
    author: str = ""
    """Who made it."""
    description: str = ""
    """What it is for."""
    license: str = ""
    """Under which conditions it may be used."""
    tags: tuple[str, ...] = ()
    """Words that it is found by."""
    trigger_phrase: str = ""
    """What a prompt must say for it to show."""
