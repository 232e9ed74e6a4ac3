"""Techniques that change the objective: one that builds on others, and one that does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import st


@dataclass(frozen=True)
class Half:
    """Half of the times of another density."""

    inner: Any
    shifted: ClassVar[bool] = False

    def __call__(self, draws: Any) -> Any:
        return self.inner(draws) / 2


class Halves:
    """Learn the clean half of the times."""

    Options = st.Options

    def __init__(self, options: Any) -> None:
        pass

    @st.hookimpl
    def st_objective(self, objective: Any) -> Any:
        return replace(objective, density=Half(objective.density))


class Whole(Halves):
    """Learn all times, whatever others chose."""

    @st.hookimpl
    def st_objective(self, objective: Any) -> Any:
        from st.diffusion.densities import Uniform, UniformOptions

        return replace(objective, density=Uniform(UniformOptions()))
