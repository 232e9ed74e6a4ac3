from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from st.train.parts.naming import named
from st.train.parts.step import Step


def nothing(*arguments: object) -> Any:
    return None


def raising(*arguments: object) -> Any:
    raise ZeroDivisionError("mine")


PLAIN = Step(noise=nothing, predict=nothing, loss=nothing, update=nothing, backward=nothing)


def notes(call: Callable[[], object]) -> list[str]:
    with pytest.raises(ZeroDivisionError) as raised:
        call()
    return getattr(raised.value, "__notes__", [])


@pytest.mark.parametrize("function", ["noise", "predict", "loss", "update", "backward"])
def test_what_a_replaced_function_raises_names_its_plugin(function: str) -> None:
    step = named(PLAIN, replace(PLAIN, **{function: raising}), "plugin 'a'")

    assert notes(getattr(step, function)) == [f"raised in {function} of the step, which plugin 'a' replaces"]


def test_functions_that_a_plugin_leaves_alone_stay_the_same() -> None:
    step = named(PLAIN, replace(PLAIN, loss=raising), "plugin 'a'")

    assert step.predict is PLAIN.predict
    assert step.scope is PLAIN.scope


@pytest.mark.parametrize("where", ["call", "enter", "exit"])
def test_what_a_scope_raises_names_its_plugin(where: str) -> None:
    @contextmanager
    def manager() -> Iterator[None]:
        if where == "enter":
            raising()
        yield
        raising()

    def scope(noised: Any, batch: Any) -> Any:
        return raising() if where == "call" else manager()

    step = named(PLAIN, replace(PLAIN, scope=scope), "plugin 'a'")

    def use() -> None:
        noised: Any = None
        with step.scope(noised, noised):
            pass

    assert notes(use) == ["raised in scope of the step, which plugin 'a' replaces"]


def test_what_is_raised_inside_of_a_scope_is_not_its_own() -> None:
    @contextmanager
    def scope(noised: Any, batch: Any) -> Iterator[None]:
        yield

    step = named(PLAIN, replace(PLAIN, scope=scope), "plugin 'a'")

    def use() -> None:
        noised: Any = None
        with step.scope(noised, noised):
            raising()

    assert notes(use) == []
