"""Lycoris: the plugin that makes the adapter known."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import st
from st_lycoris.adapter import LycorisAdapter
from st_lycoris.kinds import KINDS
from st_lycoris.options import LycorisOptions

if TYPE_CHECKING:
    from st import Registrar, UpdateKind


class Lycoris:
    """Train the adapters of the LyCORIS library."""

    class Options(st.Options):
        """Everything is set in ``[adapter]``."""

    def __init__(self, options: st.Options) -> None:
        self.options = options

    @st.hookimpl
    def st_register(self, register: Registrar) -> None:
        register.add(st.ADAPTER, "lycoris", LycorisAdapter, LycorisOptions)
        for name, kind in KINDS.items():
            register.add(st.UPDATE_KIND, name, partial(_made, kind), st.Options)


def _made(kind: UpdateKind, options: st.Options) -> UpdateKind:
    return kind
