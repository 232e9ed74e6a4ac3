"""What the core brings, by name, as a run would build it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from st.registrar import Registrar

if TYPE_CHECKING:
    from st.model.adapters.adapter import Adapter


def built_in_adapter(kind: str, **settings: Any) -> Adapter:
    """``built_in_adapter("lora", rank=4)``."""
    registrar = Registrar()
    import_module(f"st.model.adapters.{kind}").register(registrar)
    strategy = registrar.lookup("adapter", kind)
    adapter: Adapter = strategy.build(strategy.options(**settings))
    return adapter
