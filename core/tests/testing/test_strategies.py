"""Built-in optimizers and schedules pass the kit, and a validator that scores pictures does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch.optim import Optimizer

import st.testing.subjects.judge
from st.registrar import Registrar
from st.testing import OptimizerTests, ScheduleTests, ValidatorTests
from st.train.updates import optimizers as built_in
from st.train.updates import schedules
from st.train.updates.schedule import Schedule

REGISTRAR = Registrar()
built_in.register(REGISTRAR)
schedules.register(REGISTRAR)


def optimizers(elementwise: bool) -> list[str]:
    return [
        o.name for o in REGISTRAR.strategies() if o.kind == "optimizer" and ("elementwise" in o.traits) is elementwise
    ]


def builder(name: str) -> Callable[[Sequence[dict[str, Any]]], Optimizer]:
    strategy = REGISTRAR.lookup("optimizer", name)
    return lambda groups: strategy.build(groups, strategy.options())  # type: ignore[no-any-return]


class TestElementwise(OptimizerTests):
    elementwise: ClassVar[bool] = True

    @pytest.fixture(params=optimizers(True))
    def build(self, request: pytest.FixtureRequest) -> Callable[[Sequence[dict[str, Any]]], Optimizer]:
        return builder(request.param)


class TestAdafactor(OptimizerTests):
    @pytest.fixture
    def build(self) -> Callable[[Sequence[dict[str, Any]]], Optimizer]:
        return builder("adafactor")


class TestAdamWOfBf16(OptimizerTests):
    dtype: ClassVar[str] = "bfloat16"

    @pytest.fixture
    def build(self) -> Callable[[Sequence[dict[str, Any]]], Optimizer]:
        return builder("adamw_bf16")


def test_every_built_in_optimizer_is_held_to_it() -> None:
    assert sorted(optimizers(False)) == ["adafactor", "adamw_bf16"]


class TestSchedules(ScheduleTests):
    @pytest.fixture(params=REGISTRAR.names("schedule"))
    def build(self, request: pytest.FixtureRequest) -> Callable[[Optimizer, int], Schedule]:
        strategy = REGISTRAR.lookup("schedule", request.param)
        return lambda optimizer, total: strategy.build(optimizer, strategy.options(), total)  # type: ignore[no-any-return]


class TestJudge(ValidatorTests):
    plugin: ClassVar[str] = f"{Path(st.testing.subjects.judge.__file__)}:Judge"
    kind: ClassVar[str] = "judge"
