"""Plugins that change the objective: each builds on the one before, or both are named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from st.diffusion.densities import Uniform, UniformOptions
from st.diffusion.density import Density
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.path import DiscretePath, scaled_linear_betas, straight, zero_terminal_snr
from st.diffusion.target import epsilon, v, velocity
from st.diffusion.weightings import Uniform as Even
from st.diffusion.weightings import UniformOptions as EvenOptions
from st.errors import ProblemsFound
from st.randomness import Draws
from st.train.parts.composition import compose


@dataclass(frozen=True)
class Later:
    """The later half of what another density draws."""

    inner: Density
    shifted: ClassVar[bool] = False

    def __call__(self, draws: Draws) -> torch.Tensor:
        return self.inner(draws) / 2 + 0.5


def objective(path: Any = straight, target: Any = velocity) -> Objective:
    return Objective(path, target, Uniform(UniformOptions()), Even(EvenOptions()), L2(L2Options()))


def later(before: Objective) -> Objective:
    return replace(before, density=Later(before.density))


def other(before: Objective) -> Objective:
    return replace(before, density=Uniform(UniformOptions()))


def nothing(before: Objective) -> None:
    return None


def test_two_that_build_on_each_other_both_have_their_effect() -> None:
    draws = Draws(0, tuple(range(100)), torch.device("cpu"))

    found = compose(objective(), [("one", later), ("two", later)])

    assert float(found.times(torch.zeros(100, 1, 1, 1), draws).min()) >= 0.75


def test_changes_of_different_parts_compose() -> None:
    found = compose(objective(), [("one", later), ("two", lambda before: replace(before, target=v)), ("none", nothing)])

    assert isinstance(found.density, Later)
    assert found.target is v


def test_what_throws_away_anothers_change_is_refused_naming_both() -> None:
    with pytest.raises(ProblemsFound) as refused:
        compose(objective(), [("one", later), ("two", other)])

    (problem,) = refused.value.problems
    assert problem.what == "one and two both replace the density of the objective."
    assert problem.fix == "Leave one of them out, or name one after two."
    assert isinstance(compose(objective(), [("two", other), ("one", later)]).density, Later)


def test_another_path_is_refused() -> None:
    with pytest.raises(ProblemsFound, match="one replaces the path"):
        compose(objective(), [("one", lambda before: replace(before, path=lambda t: straight(t)))])


def test_changes_that_contradict_each_other_are_refused_naming_both() -> None:
    path = DiscretePath(zero_terminal_snr(DiscretePath.of_betas(scaled_linear_betas(0.00085, 0.012)).alphas_cumprod))

    with pytest.raises(ProblemsFound, match="one and two: a schedule that ends in pure noise"):
        compose(objective(path, v), [("one", later), ("two", lambda before: replace(before, target=epsilon))])
