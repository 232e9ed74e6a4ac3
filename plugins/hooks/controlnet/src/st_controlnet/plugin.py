"""The adapter kinds that this package adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import st
from st import hookimpl
from st_controlnet.options import ControlLoraOptions, ControlNetOptions

if TYPE_CHECKING:
    from st import Adapter, BlockMiddleware, Registrar, Run


class Controls:
    """``[adapter] kind = "controlnet"`` and ``"control_lora"``."""

    Options: ClassVar[type[st.Options]] = st.Options

    def __init__(self, options: st.Options) -> None:
        self.options = options

    @hookimpl
    def st_register(self, register: Registrar) -> None:
        """Add the adapter kinds."""
        register.add(st.ADAPTER, "controlnet", build_controlnet, ControlNetOptions)
        register.add(st.ADAPTER, "control_lora", build_control_lora, ControlLoraOptions)

    @hookimpl
    def st_block_middleware(self, run: Run) -> BlockMiddleware | None:
        """Keep every token where a control network adds to them."""
        from st_controlnet.network import ControlNetAdapter
        from st_controlnet.whole import WholeTokens

        return WholeTokens() if isinstance(run.adapter, ControlNetAdapter) else None


def build_controlnet(options: Any) -> Adapter:
    """A network beside the denoiser."""
    from st_controlnet.network import ControlNetAdapter

    return ControlNetAdapter(options)


def build_control_lora(options: Any) -> Adapter:
    """A low-rank update of a denoiser that reads the control picture itself."""
    from st_controlnet.lora import ControlLoraAdapter

    return ControlLoraAdapter(options)
