"""Plugin: quantizers of bitsandbytes, by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import st
from st import Options, hookimpl
from st_bitsandbytes.quantizer import INT8, NF4, Int8, Nf4, Nf4Options, RowOptions

if TYPE_CHECKING:
    from st import Registrar


class BitsAndBytesOptions(Options):
    """None: each kind has options of its own, in ``[quantizer]``."""


class BitsAndBytes:
    """Base weights in 4 or 8 bits, by bitsandbytes: ``[quantizer] kind = "nf4-bnb"`` and ``"int8-bnb"``."""

    Options: ClassVar[type[BitsAndBytesOptions]] = BitsAndBytesOptions

    def __init__(self, options: BitsAndBytesOptions) -> None:
        self.options = options

    @hookimpl
    def st_register(self, register: Registrar) -> None:
        """nf4-bnb and int8-bnb."""
        register.add(st.QUANTIZER, NF4, partial(Nf4, NF4), Nf4Options)
        register.add(st.QUANTIZER, INT8, partial(Int8, INT8), RowOptions)
