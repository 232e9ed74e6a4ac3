"""Every optimizer of the package passes the kit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
from torch.optim import Optimizer

import st
from st.testing import OptimizerTests
from st_optimizers import Optimizers

REGISTRAR = st.Registrar()
Optimizers(st.Options()).st_register(REGISTRAR)
NAMES = [one.name for one in REGISTRAR.strategies() if not one.name.startswith("paged_")]
"""Paged ones train on CUDA devices only, and refuse others."""


def builder(name: str) -> Callable[[Sequence[dict[str, Any]]], Optimizer]:
    strategy = REGISTRAR.lookup("optimizer", name)
    return lambda groups: strategy.build(groups, strategy.options())  # type: ignore[no-any-return]


class TestElementwise(OptimizerTests):
    elementwise: ClassVar[bool] = True

    @pytest.fixture(params=["lion"])
    def build(self, request: pytest.FixtureRequest) -> Callable[[Sequence[dict[str, Any]]], Optimizer]:
        return builder(request.param)


class TestOthers(OptimizerTests):
    @pytest.fixture(params=[name for name in NAMES if name != "lion"])
    def build(self, request: pytest.FixtureRequest) -> Callable[[Sequence[dict[str, Any]]], Optimizer]:
        return builder(request.param)


def test_what_is_elementwise_is_held_to_it() -> None:
    assert [one.name for one in REGISTRAR.strategies() if "elementwise" in one.traits] == ["lion"]
