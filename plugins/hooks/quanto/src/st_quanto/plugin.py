"""Plugin: quantizers of optimum-quanto, by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import st
from st import Options, hookimpl
from st_quanto.quantizer import BYTES, GROUPS, GroupOptions, InBytes, InGroups, RowOptions

if TYPE_CHECKING:
    from st import Registrar


class QuantoOptions(Options):
    """None: each kind has options of its own, in ``[quantizer]``."""


class Quanto:
    """Base weights in 8, 4 or 2 bits, by optimum-quanto: ``[quantizer] kind = "int8-quanto"`` and others."""

    Options: ClassVar[type[QuantoOptions]] = QuantoOptions

    def __init__(self, options: QuantoOptions) -> None:
        self.options = options

    @hookimpl
    def st_register(self, register: Registrar) -> None:
        """int8-quanto, fp8-quanto, int4-quanto and int2-quanto."""
        for kind, dtype in BYTES.items():
            register.add(st.QUANTIZER, kind, partial(InBytes, kind, dtype), RowOptions)
        for kind, bits in GROUPS.items():
            register.add(st.QUANTIZER, kind, partial(InGroups, kind, bits), GroupOptions)
