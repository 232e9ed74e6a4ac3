"""Naming: what is raised in a step's function says which plugin put that function there."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from st.diffusion.objective import Batch, Noised
    from st.train.parts.step import Step


def named(before: Step, after: Step, label: str) -> Step:
    """The step after a plugin's wrapper, where errors of the functions that it replaced carry a note of it.

    A function that calls the one it replaced is named for that one's errors too, after those further inside.
    """
    replaced = {one.name for one in fields(before) if getattr(after, one.name) is not getattr(before, one.name)}
    changes: dict[str, Any] = {
        name: _naming(getattr(after, name), f"raised in {name} of the step, which {label} replaces")
        for name in sorted(replaced - {"scope"})
    }
    if "scope" in replaced:
        changes["scope"] = _scope(after.scope, f"raised in scope of the step, which {label} replaces")
    return replace(after, **changes)


def _naming(function: Callable[..., Any], note: str) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any) -> Any:
        # A try costs nothing where nothing is raised; a context manager would be entered in each step.
        try:
            return function(*arguments)
        except BaseException as error:
            error.add_note(note)
            raise

    return call


def _scope(
    scope: Callable[[Noised, Batch], AbstractContextManager[None]], note: str
) -> Callable[[Noised, Batch], AbstractContextManager[None]]:
    @contextmanager
    def entered(noised: Noised, batch: Batch) -> Iterator[None]:
        inside: BaseException | None = None
        try:
            with scope(noised, batch):
                try:
                    yield
                except BaseException as error:
                    inside = error
                    raise
        except BaseException as error:
            # What is raised between entering and leaving is of whoever computed there.
            if error is not inside:
                error.add_note(note)
            raise

    return entered
