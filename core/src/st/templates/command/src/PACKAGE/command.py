"""CLASS: how far a run is, from the event log in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import st
import typer


class CLASS:
    """Say how far a run is."""

    @staticmethod
    def command(
        run: Annotated[Path, typer.Argument(help="Output folder of a run.")],
        as_json: Annotated[bool, typer.Option("--json", help="Print it for a program.")] = False,
    ) -> None:
        """Say how many steps a run has taken, of how many, and how it ended."""
        log = run / "events.jsonl"
        if not log.is_file():
            raise st.StError(f"{str(run)!r} holds no run: there is no {log.name}", fix="name a run's folder")
        found = {"step": 0, "total": 0, "outcome": "running"}
        for line in log.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            found |= {key: event[key] for key in found if key in event}
        typer.echo(json.dumps(found) if as_json else "step {step} of {total}, {outcome}".format(**found))
