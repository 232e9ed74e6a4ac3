"""Conformance classes, and how a test that cannot apply is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest


class NotApplicable:
    """A test of the kit that says nothing about this plugin, and why."""

    def __init__(self, reason: str) -> None:
        if not reason.strip():
            raise TypeError("not_applicable needs a reason")
        self.reason = reason

    def as_test(self, name: str) -> Callable[[object], None]:
        """A test that is reported as skipped, with the reason."""

        def skipped(self: object) -> None:
            pytest.skip(reason)

        reason = f"not applicable: {self.reason}"
        skipped.__name__ = name
        return skipped


def not_applicable(reason: str) -> NotApplicable:
    """Declare that an inherited test cannot apply: ``test_x = not_applicable("blocks convolve over H x W")``."""
    return NotApplicable(reason)


class Conformance:
    """Tests that a plugin passes by subclassing. No inherited test may be replaced; one may be declared not applicable.

    declared: reasons by the names of the tests that were declared not applicable.
    """

    declared: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        declared: dict[str, str] = {}
        for parent in cls.__bases__:
            declared |= getattr(parent, "declared", {})
        for name, value in list(vars(cls).items()):
            if not name.startswith("test_"):
                continue
            inherited = any(hasattr(parent, name) for parent in cls.__bases__)
            if isinstance(value, NotApplicable):
                if not inherited:
                    raise TypeError(f"{cls.__name__}.{name}: the kit has no such test to declare")
                declared[name] = value.reason
                setattr(cls, name, value.as_test(name))
            elif inherited:
                raise TypeError(
                    f"{cls.__name__}.{name} replaces a test of the kit; "
                    f'write {name} = not_applicable("why"), or give your own test another name'
                )
        cls.declared = declared
