"""Weights of blocks that are there only while their block computes, and nowhere at any other time."""

from __future__ import annotations

from typing import Any

import st
from st.testing.subjects.placement import Away


class Swapping:
    """Send the weights of blocks away while they do not compute."""

    Options = st.Options

    def __init__(self, options: Any) -> None:
        self.placement = Away()

    @st.hookimpl
    def st_placement(self) -> st.Placement:
        return self.placement


class Twice(Swapping):
    """Another one."""
