"""CommandTests: what every command of a package promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from st.testing.declared import Conformance
from st.testing.plugins import heavy_imports_of, loaded

if TYPE_CHECKING:
    from collections.abc import Iterator


class CommandTests(Conformance):
    """plugin: what is typed: the name of its entry point, whose package is installed, or ``file.py:Class``."""

    plugin: ClassVar[str]

    def test_import_stays_light(self) -> None:
        assert heavy_imports_of(f"from st.plugins.checking import check; check({self._named()!r})") == []

    def test_class_is_what_every_command_is(self) -> None:
        from st.plugins.loading import check_class

        installed, cls = loaded(self._named())

        assert installed.kind == "commands"
        check_class(installed, cls)

    def test_it_is_listed_with_the_summary_of_its_package(self) -> None:
        from st.plugins.loading import is_local
        from st.testing.runs import call_cli

        if is_local(self.plugin):
            pytest.skip("a file belongs to no package")
        installed, _ = loaded(self._named())

        assert installed.summary, "the package's pyproject.toml has no description"
        assert f"({installed.distribution})" in " ".join(call_cli("--help").out.split())

    def test_its_help_says_what_it_does_and_ends_well(self) -> None:
        assert all((command.help or "").strip() for _, command in self._commands())

    def test_everything_that_can_be_typed_has_help(self) -> None:
        undocumented = [
            f"{path} {parameter.name}"
            for path, command in self._commands()
            for parameter in command.params
            if parameter.name != "help" and not (getattr(parameter, "help", "") or "").strip()
        ]

        assert undocumented == []

    def _commands(self) -> Iterator[tuple[str, Any]]:
        """(path, command) of the command and of those below it."""
        from st.plugins.loading import command_of

        waiting = [(self.plugin, command_of(self.plugin, loaded(self._named())[1]))]
        while waiting:
            path, command = waiting.pop()
            yield path, command
            waiting += [(f"{path} {name}", below) for name, below in getattr(command, "commands", {}).items()]

    def _named(self) -> str:
        from st.plugins.loading import is_local

        return self.plugin if is_local(self.plugin) else f"commands:{self.plugin}"
