"""The strategies that come with the core, registered as any plugin's are."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from st.hookspecs import hookimpl

if TYPE_CHECKING:
    from st.registrar import Registrar

MODULES = (
    "st.data.folder",
    "st.diffusion.density",
    "st.diffusion.distance",
    "st.diffusion.sampler",
    "st.diffusion.weighting",
    "st.model.full",
    "st.model.lora",
    "st.train.optimizer",
    "st.train.ranks",
    "st.train.schedule",
)
"""Each has a function ``register(register: Registrar) -> None``; importing one imports neither torch nor numpy."""


class Builtin:
    """What the core brings."""

    @hookimpl
    def st_register(self, register: Registrar) -> None:
        for module in MODULES:
            import_module(module).register(register)
