"""OptimizerTests and ScheduleTests: what every optimizer, and every schedule of its rates, promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from st.testing.declared import Conformance

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

    from st.train.updates.schedule import Schedule

    Build = Callable[[Sequence[dict[str, Any]]], Optimizer]
    BuildSchedule = Callable[[Optimizer, int], Schedule]

SHAPES = ((6, 4), (3, 8), (5,))
"""Of the weights: the first is a group of its own, with half the rate."""
STEPS = 4
TOTAL = 20
TOPS = (0.5, 0.25)


class OptimizerTests(Conformance):
    """Subclass it beside a ``build`` fixture that answers ``groups -> optimizer``, as ``st.OPTIMIZER`` has it.

    elementwise: as it is registered. dtype: of the weights, by its name in torch.
    """

    elementwise: ClassVar[bool] = False
    dtype: ClassVar[str] = "float32"

    @pytest.fixture
    def build(self) -> Build:
        """What builds the optimizer; every subclass gives its own."""
        raise NotImplementedError("give the test class a `build` fixture that returns `groups -> optimizer`")

    def test_every_weight_is_in_one_group_with_a_name_and_a_rate(self, build: Build) -> None:
        weights = self.weights()
        optimizer = self.made(build, weights)
        names = {id(one): group["name"] for group in optimizer.param_groups for one in group["params"]}

        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(weights)
        given = zip(weights, ("first", "rest", "rest"), strict=True)
        assert all(names[id(one)].startswith(name) for one, name in given), names
        assert all(float(group["lr"]) > 0 for group in optimizer.param_groups)

    def test_a_group_has_the_rate_that_it_came_with_or_it_is_refused(self, build: Build) -> None:
        from st.errors import StError

        own = float(self.made(build, self.weights()).param_groups[-1]["lr"]) / 2
        try:
            optimizer = self.made(build, self.weights(), own)
        except StError as error:
            assert error.fix, "it is told what to set"
        else:
            rates = [group["lr"] for group in optimizer.param_groups if group["name"].startswith("first")]
            assert rates == pytest.approx([own] * len(rates))

    def test_the_rate_that_a_schedule_sets_is_the_one_that_is_used(self, build: Build) -> None:
        still = self.weights()
        optimizer = self.made(build, still)
        for group in optimizer.param_groups:
            group["lr"] = 1e-9
        self.train(optimizer, still)

        for before, after in zip(self.weights(), still, strict=True):
            assert float((before.detach() - after.detach()).abs().max()) < 1e-6

    def test_steps_go_down(self, build: Build) -> None:
        weights = self.weights()
        before = sum(float(one.detach().float().square().sum()) for one in weights)

        self.train(self.made(build, weights), weights, steps=12)

        assert sum(float(one.detach().float().square().sum()) for one in weights) < before

    def test_weights_without_gradients_stay(self, build: Build) -> None:
        import torch

        weights = self.weights()
        optimizer = self.made(build, weights)
        for step in range(STEPS):
            self.give(weights[1:], step)
            optimizer.step()

        assert torch.equal(weights[0], self.weights()[0])

    def test_the_same_gradients_give_the_same_weights(self, build: Build) -> None:
        import torch

        ends = []
        for _ in range(2):
            weights = self.weights()
            self.train(self.made(build, weights), weights)
            ends.append(weights)

        assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))

    def test_it_goes_on_from_its_saved_state_as_if_nothing_had_been(self, build: Build) -> None:
        from copy import deepcopy

        import torch

        straight, resumed = self.weights(), self.weights()
        self.train(self.made(build, straight), straight, steps=2 * STEPS)
        first = self.made(build, resumed)
        self.train(first, resumed)
        again = self.made(build, resumed)
        again.load_state_dict(deepcopy(first.state_dict()))
        self.train(again, resumed, start=STEPS)

        assert all(torch.equal(one, other) for one, other in zip(resumed, straight, strict=True))

    def test_the_state_can_be_saved(self, build: Build) -> None:
        import torch

        weights = self.weights()
        optimizer = self.made(build, weights)
        self.train(optimizer, weights)

        held = [value for state in optimizer.state_dict()["state"].values() for value in _leaves(state)]

        assert all(value is None or isinstance(value, (torch.Tensor, bool, int, float, str)) for value in held)

    def test_the_weights_that_are_trained_return_after_those_that_are_used(self, build: Build) -> None:
        import torch

        from st.train.updates.optimizer import HasEvaluationMode

        weights = self.weights()
        optimizer = self.made(build, weights)
        if not isinstance(optimizer, HasEvaluationMode):
            pytest.skip("it trains the weights that are used")
        self.train(optimizer, weights)
        trained = [one.detach().clone() for one in weights]
        with optimizer.evaluating():
            used = [one.detach().clone() for one in weights]

        assert not all(torch.equal(one, other) for one, other in zip(used, trained, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(weights, trained, strict=True))

    def test_numbers_of_its_own_are_finite(self, build: Build) -> None:
        from st.train.updates.optimizer import Measured

        weights = self.weights()
        optimizer = self.made(build, weights)
        if not isinstance(optimizer, Measured):
            pytest.skip("it has no numbers of its own")
        self.train(optimizer, weights)

        assert all(isfinite(value) for value in optimizer.metrics().values())

    def test_a_part_of_a_weight_is_stepped_as_the_whole_is(self, build: Build) -> None:
        import torch

        if not self.elementwise:
            pytest.skip("it is not registered as elementwise")
        whole, part = self.weights(), [torch.nn.Parameter(one.detach()[:2].clone()) for one in self.weights()]
        optimizers = self.made(build, whole), self.made(build, part)
        for step in range(STEPS):
            self.give(whole, step)
            for one, other in zip(part, whole, strict=True):
                assert other.grad is not None
                one.grad = other.grad[:2].clone()
            for optimizer in optimizers:
                optimizer.step()

        for one, other in zip(part, whole, strict=True):
            torch.testing.assert_close(one.detach(), other.detach()[:2], rtol=1e-6, atol=1e-7)

    def weights(self) -> list[torch.nn.Parameter]:
        """The same weights each time."""
        import torch

        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, self.dtype)
        return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]

    def made(self, build: Build, weights: list[torch.nn.Parameter], lr: float | None = None) -> Optimizer:
        """The optimizer over two groups; the first with a rate of its own, if it is given."""
        own = {} if lr is None else {"lr": lr}
        return build([{"params": weights[:1], "name": "first", **own}, {"params": weights[1:], "name": "rest"}])

    def train(
        self, optimizer: Optimizer, weights: list[torch.nn.Parameter], steps: int = STEPS, start: int = 0
    ) -> None:
        """Some steps, towards zero."""
        for step in range(start, start + steps):
            self.give(weights, step)
            optimizer.step()

    def give(self, weights: Sequence[torch.nn.Parameter], step: int) -> None:
        """The gradients of a step: those of the sum of squares, a little disturbed."""
        import torch

        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            weight.grad = weight.detach().clone() + 0.1 * noise


class ScheduleTests(Conformance):
    """Subclass it beside a ``build`` fixture that answers ``(optimizer, total_steps) -> schedule``."""

    @pytest.fixture
    def build(self) -> BuildSchedule:
        """What builds the schedule; every subclass gives its own."""
        raise NotImplementedError("give the test class a `build` fixture: `(optimizer, total_steps) -> schedule`")

    def test_every_step_has_a_rate_above_zero(self, build: BuildSchedule) -> None:
        schedule = build(self.optimizer(), TOTAL)

        rates = [rate for step in range(TOTAL + 1) for rate in schedule.set(step)]

        assert all(isfinite(rate) and rate > 0 for rate in rates)

    def test_what_is_answered_is_what_the_optimizer_has(self, build: BuildSchedule) -> None:
        optimizer = self.optimizer()
        schedule = build(optimizer, TOTAL)

        for step in (0, 3, TOTAL - 1):
            assert schedule.set(step) == tuple(group["lr"] for group in optimizer.param_groups)

    def test_a_step_has_the_same_rate_whatever_was_asked_before(self, build: BuildSchedule) -> None:
        straight, jumping = build(self.optimizer(), TOTAL), build(self.optimizer(), TOTAL)
        expected = [straight.set(step) for step in range(TOTAL)]

        assert [jumping.set(step) for step in reversed(range(TOTAL))] == list(reversed(expected))

    def test_each_group_goes_by_the_rate_that_it_came_with(self, build: BuildSchedule) -> None:
        both = build(self.optimizer(), TOTAL)
        alone = [build(self.optimizer((top,)), TOTAL) for top in TOPS]

        for step in range(TOTAL):
            assert both.set(step) == tuple(rate for one in alone for rate in one.set(step))

    def optimizer(self, tops: tuple[float, ...] = TOPS) -> Optimizer:
        """An optimizer with a group for each of these rates."""
        import torch

        return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": top} for top in tops])


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in _leaves(one)]
    return [leaf for one in value for leaf in _leaves(one)] if isinstance(value, (list, tuple)) else [value]
