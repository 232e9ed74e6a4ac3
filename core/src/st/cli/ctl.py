"""``st ctl``: steer a run while it trains."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from st.errors import StError


class Deed(StrEnum):
    """What a run can be asked to do."""

    SAVE = "save"
    VALIDATE = "validate"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    SET = "set"


def ctl(
    run: Annotated[Path, typer.Argument(help="Output folder of a run.", metavar="RUN")],
    do: Annotated[Deed, typer.Argument(help="What it is to do.", metavar="DO")],
    setting: Annotated[
        str, typer.Argument(help="With set: optimizer.lr=1e-5, optimizer.lr=x0.5, learners.NAME.lr=1e-5.")
    ] = "",
    wait: Annotated[float, typer.Option(help="Seconds to wait for the run's answer.", min=0)] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as the event log has it.")] = False,
) -> None:
    """Ask a run to save, validate, pause, resume, stop or set its rate, and wait for its answer.

    The run does it between two steps. Ends with 1 where it cannot, or does not answer.
    """
    from st.report.log.events import FILE
    from st.train.beside.control import answer, ask

    if not (run / FILE).is_file():
        raise StError(f"{str(run)!r} holds no run: there is no {FILE}", fix="name the output folder of a run")
    name, equals, value = setting.partition("=")
    if (do is Deed.SET) != bool(name and equals and value):
        raise StError(
            f"st ctl {do.value} {setting}".rstrip() + ": what is to be set?" * (do is Deed.SET),
            why="" if do is Deed.SET else "only set takes a setting",
            fix="st ctl RUN set optimizer.lr=1e-5",
        )
    found = answer(run, ask(run, do.value, name.strip(), value.strip()), wait)
    typer.echo(json.dumps(found) if as_json else found["text"])
    if not found["done"]:
        raise typer.Exit(1)


COMMANDS = (ctl,)
