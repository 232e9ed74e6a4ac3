"""Strategies are added once and found by name."""

from __future__ import annotations

from typing import Any

import pytest

import st
from st.errors import PluginError
from st.options import Options
from st.plugins.builtin import Builtin
from st.registrar import Registrar


class Nothing(Options):
    """No options."""


def build(options: Nothing) -> Any:
    return options


def test_name_that_two_plugins_claim_names_both() -> None:
    registrar = Registrar()
    with registrar.owned_by("plugin 'a' (st-a 1.0)") as register:
        register.add(st.ADAPTER, "twin", build, Nothing)

    with (
        pytest.raises(PluginError) as raised,
        registrar.owned_by("plugin 'b' (st-b 2.0)") as register,
    ):
        register.add(st.ADAPTER, "twin", build, Nothing)

    assert raised.value.what == "adapter 'twin' is claimed by plugin 'a' (st-a 1.0) and by plugin 'b' (st-b 2.0)."


def test_same_name_in_two_kinds_is_no_claim() -> None:
    registrar = Registrar()
    registrar.add(st.DENSITY, "uniform", build, Nothing)
    registrar.add(st.WEIGHTING, "uniform", build, Nothing)

    assert registrar.lookup("density", "uniform").kind == "density"


def test_unknown_name_is_answered_with_the_closest_and_the_list() -> None:
    registrar = Registrar()
    registrar.add(st.ADAPTER, "lora", build, Nothing)
    registrar.add(st.ADAPTER, "full", build, Nothing)

    with pytest.raises(PluginError) as raised:
        registrar.lookup("adapter", "lorra")

    assert str(raised.value) == "no adapter is named 'lorra'. Did you mean 'lora'?\n  There are: full, lora."


def test_built_in_strategies_are_registered_as_any() -> None:
    registrar = Registrar()

    Builtin().st_register(registrar)

    assert {"adamw", "adamw_bf16", "sgd", "adafactor"} <= set(registrar.names("optimizer"))
    assert {"lora", "full"} <= set(registrar.names("adapter"))
    assert {"single", "ddp"} <= set(registrar.names("engine"))
    assert {strategy.owner for strategy in registrar.strategies()} == {"st"}
    assert "file" in registrar.names("backend")
