"""The command line: which commands there are, and how one is written.

A command lives in ``st/cli/<name>.py`` and is imported when it is called. The file holds plain functions whose
signatures typer reads, and a tuple ``COMMANDS`` of them:

- one function named as the file: ``st train`` is ``train.py`` with ``COMMANDS = (train,)``;
- other functions are commands below it: ``st config show`` is ``config.py`` with ``COMMANDS = (show,)``; ``_`` becomes
  ``-`` and a trailing ``_`` is dropped;
- both: the function named as the file runs when no further command is given (``st plugins``), without arguments.

Packages add commands through the entry-point group ``st.v1.commands``; ``st.cli.package`` loads those.

A function's docstring is its help text. Its body imports what it needs; the file's top imports only typer and the
standard library. Results go to standard output. A mistake of the user is raised as a StError and printed here.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from st.errors import Interrupted, StError
from st.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from st.plugins.catalogue import Catalogue

HELP = {
    "train": "Train from a run file.",
    "ctl": "Steer a run while it trains.",
    "config": "Show what a run file means.",
    "plugins": "List what is installed, and check it.",
    "data": "Look at data sets without training.",
    "cache": "Look after cached encoder outputs.",
    "sample": "Render samples from what a run saved.",
    "adapter": "Look into adapter files, and make others of them.",
    "tiny": "Write a tiny model with random weights, for tests.",
    "new": "Start a plugin of your own.",
    "reference": "Options, hooks and the schema of run files.",
}
"""The commands in the order of the help text. The name is also the file's."""

TAGLINE = "Train diffusion models with plugins: an adapter or a whole model, from one run file."


class _CommandFiles(TyperGroup):
    """Commands known by name and help line, whose files are imported when they are called; then those of packages."""

    @cached_property
    def installed(self) -> Catalogue:
        """What packages offer, read once for each command line that asks."""
        from st.plugins.catalogue import Catalogue

        return Catalogue.scan()

    @cached_property
    def lines(self) -> dict[str, str]:
        """The help line of each command of a package."""
        from st.cli.package import described

        return described(self.installed)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *self.lines]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        return own or (_stub(cmd_name, self.lines[cmd_name]) if cmd_name in self.lines else None)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        from st.cli.package import load_command

        typed = args[0] if args else ""
        if typed and typed not in HELP and not typed.startswith("-"):
            found = load_command(typed, self.installed)
            if found is not None:
                return typed, found, args[1:]
        name, _, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name else None, rest


def _stub(name: str, line: str) -> Any:
    """What the list of commands shows of one that is not imported."""
    app = _typer(name)
    app.command(name, help=line)(_nothing)
    return typer.main.get_command(app)


def _load(name: str) -> Any:
    functions: tuple[Callable[..., object], ...] = import_module(f"st.cli.{name}").COMMANDS
    app = _typer(name)
    for function in functions:
        if function.__name__ != name:
            # Given as such, the sentence is never cut to the width of the terminal.
            app.command(function.__name__.rstrip("_").replace("_", "-"), short_help=_first_sentence(function))(function)
        elif len(functions) == 1:
            app.command(name)(function)
        else:
            app.callback(invoke_without_command=True)(_unless_further_command(function))
    if len(functions) == 1 and functions[0].__name__ != name:
        # Typer makes an app of one function a plain command; an empty callback keeps it a group.
        app.callback(help=HELP[name])(_nothing)
    return typer.main.get_command(app)


def _first_sentence(function: Callable[..., object]) -> str:
    paragraph = (function.__doc__ or "").strip().partition("\n\n")[0]
    return f"{' '.join(paragraph.split()).partition('. ')[0].rstrip('.')}."


def _unless_further_command(function: Callable[[], object]) -> Callable[[typer.Context], None]:
    def callback(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            function()

    callback.__doc__ = function.__doc__
    return callback


def _nothing() -> None:
    pass


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"st {version('st-core')}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]


def _top(version: Version = False) -> None:
    pass


def _typer(name: str, cls: type[TyperGroup] | None = None) -> typer.Typer:
    return typer.Typer(
        name=name,
        cls=cls,
        help=HELP.get(name, TAGLINE),
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        no_args_is_help=cls is not None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def application() -> typer.Typer:
    """The whole command line. Only the command that is called is imported."""
    app = _typer("st", _CommandFiles)
    app.callback()(_top)
    for name, line in HELP.items():
        app.command(name, help=line, short_help=line)(_nothing)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code.

    0 finished, 1 failed, 2 configuration, 3 out of memory, 4 interrupted after saving, 128 plus the number of the
    signal that ended it before it had saved.
    """
    try:
        application()(list(arguments), prog_name="st", obj=list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    except StError as error:
        notes = getattr(error, "__notes__", ())
        _print_error("\n".join([str(error), *(f"  {note}" for note in notes)]))
        return error.exit_code
    except Interrupted as end:
        print(end, file=sys.stderr)
        return end.exit_code
    except KeyboardInterrupt:
        # Before training listens for it, and in commands that keep nothing half done.
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _print_error(text: str) -> None:
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    title = typer.style("Error:", fg=typer.colors.RED, bold=True) if coloured else "Error:"
    print(f"{title} {printable(text)}", file=sys.stderr)


def main() -> None:
    """The ``st`` command."""
    from st.report.enduring import hold_standard_streams

    hold_standard_streams()
    sys.exit(run(sys.argv[1:]))
