"""Plugin: quantizers of torchao, by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import st
from st import Options, hookimpl
from st_torchao.quantizer import FP8, INT4, INT8, GroupOptions, InGroups, InRows, RowOptions

if TYPE_CHECKING:
    from st import Registrar


class TorchAoOptions(Options):
    """None: each kind has options of its own, in ``[quantizer]``."""


class TorchAo:
    """Base weights in 8 or 4 bits, by torchao: ``[quantizer] kind = "int8-torchao"`` and others."""

    Options: ClassVar[type[TorchAoOptions]] = TorchAoOptions

    def __init__(self, options: TorchAoOptions) -> None:
        self.options = options

    @hookimpl
    def st_register(self, register: Registrar) -> None:
        """int8-torchao, fp8-torchao and int4-torchao."""
        for kind in (INT8, FP8):
            register.add(st.QUANTIZER, kind, partial(InRows, kind), RowOptions)
        register.add(st.QUANTIZER, INT4, partial(InGroups, INT4), GroupOptions)
