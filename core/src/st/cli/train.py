"""``st train``: train from a run file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from st.cli.runfile import Overrides, PluginNames, RunFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from st.settings.config import RunConfig


def train(
    ctx: typer.Context,
    file: RunFile,
    plugins: PluginNames = None,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Folder for what the run writes, over the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    accept: Annotated[list[str] | None, typer.Option(help="A setting that may differ when a run is resumed.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan and stop.")] = False,
) -> None:
    """Train from a run file.

    Ends with 0 when finished, 1 when failed, 2 for settings that cannot be used, 3 when out of memory, 4 when
    interrupted after saving, and 128 plus the signal's number where a signal ended it before it had saved.
    """
    from st.settings.assembly import assemble

    changes = [*(overrides or ()), *([f"output={json.dumps(str(output))}"] if output else ())]
    config, active = assemble(file, plugins or (), changes, training=True)
    with config.redaction.errors():
        _check_accepted(accept or (), config, resume=resume)
        if dry_run:
            from st.cli.printing.plan import print_plan
            from st.train.preflight import look

            print_plan(config, active, look(config, active))
            return
        from st.importing import wait_passively
        from st.train.beside.listening import SAVED
        from st.train.ranks.launch import run_ranks

        wait_passively(config.device)
        status = run_ranks(config.ranks, config.device, ctx.obj)
        if status is not None:
            raise typer.Exit(status)
        from st.progress import Outcome
        from st.train.run import execute

        outcome = execute(config, active, resume=resume, accepted=tuple(accept or ()))
        raise typer.Exit({Outcome.FINISHED: 0, Outcome.INTERRUPTED: SAVED, Outcome.FAILED: 1}[outcome])


def _check_accepted(names: Sequence[str], config: RunConfig, *, resume: bool) -> None:
    from st.errors import Problem, ProblemsFound
    from st.train.saving.accepting import check_names
    from st.train.saving.output import OutputFolder

    if names and not resume:
        what = f"--accept {names[0]} has no effect without --resume"
        raise ProblemsFound([Problem("accept", what, fix="add --resume, or leave --accept out")])
    if not names:
        return
    saved = OutputFolder(Path(config.output)).settings() or {}
    # What a run is made of is accepted by the names of its manifest's parts.
    parts = {"data": {one.name: "" for one in config.datasets}, "encoders": "", "weights": ""}
    check_names(names, config.plain(), saved, parts)


COMMANDS = (train,)
