"""The strategies that come with the core, registered as any plugin's are."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from st.hookspecs import hookimpl

if TYPE_CHECKING:
    from st.registrar import Registrar

MODULES = (
    "st.data.source.folder",
    "st.diffusion.densities",
    "st.diffusion.distances",
    "st.diffusion.samplers",
    "st.diffusion.weightings",
    "st.model.adapters.full",
    "st.model.adapters.lora",
    "st.model.files.own_updates",
    "st.train.updates.optimizers",
    "st.train.ranks.engines",
    "st.train.updates.schedules",
)
"""Each has a function ``register(register: Registrar) -> None``; importing one imports neither torch nor numpy."""


class Builtin:
    """What the core brings."""

    @hookimpl
    def st_register(self, register: Registrar) -> None:
        for module in MODULES:
            import_module(module).register(register)
