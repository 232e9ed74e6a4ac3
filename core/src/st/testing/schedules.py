"""ScheduleTests: what every schedule promises."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING

import pytest

from st.testing.declared import Conformance

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from st.train.updates.schedule import Schedule

    Build = Callable[[Optimizer, int], Schedule]

TOTAL = 20
TOPS = (0.5, 0.25)


class ScheduleTests(Conformance):
    """Subclass it beside a ``build`` fixture that answers ``(optimizer, total_steps) -> schedule``."""

    @pytest.fixture
    def build(self) -> Build:
        """What builds the schedule; every subclass gives its own."""
        raise NotImplementedError("give the test class a `build` fixture: `(optimizer, total_steps) -> schedule`")

    def test_every_step_has_a_rate_above_zero(self, build: Build) -> None:
        schedule = build(self.optimizer(), TOTAL)

        rates = [rate for step in range(TOTAL + 1) for rate in schedule.set(step)]

        assert all(isfinite(rate) and rate > 0 for rate in rates)

    def test_what_is_answered_is_what_the_optimizer_has(self, build: Build) -> None:
        optimizer = self.optimizer()
        schedule = build(optimizer, TOTAL)

        for step in (0, 3, TOTAL - 1):
            assert schedule.set(step) == tuple(group["lr"] for group in optimizer.param_groups)

    def test_a_step_has_the_same_rate_whatever_was_asked_before(self, build: Build) -> None:
        straight, jumping = build(self.optimizer(), TOTAL), build(self.optimizer(), TOTAL)
        expected = [straight.set(step) for step in range(TOTAL)]

        assert [jumping.set(step) for step in reversed(range(TOTAL))] == list(reversed(expected))

    def test_each_group_goes_by_the_rate_that_it_came_with(self, build: Build) -> None:
        both = build(self.optimizer(), TOTAL)
        alone = [build(self.optimizer((top,)), TOTAL) for top in TOPS]

        for step in range(TOTAL):
            assert both.set(step) == tuple(rate for one in alone for rate in one.set(step))

    def optimizer(self, tops: tuple[float, ...] = TOPS) -> Optimizer:
        """An optimizer with a group for each of these rates."""
        import torch

        return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": top} for top in tops])
