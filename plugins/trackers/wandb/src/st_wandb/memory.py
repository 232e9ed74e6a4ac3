"""What a run's folder remembers of its run in wandb, so that a resumed run goes on in the same one."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from st.report.log.events import FILE as EVENTS
from st.report.log.events import read_events

FILE = Path("wandb", "st.json")


@dataclass(frozen=True, slots=True)
class Memory:
    """id: of the run in wandb. step: the last that was logged, -1 before the first. url: where the run is shown."""

    id: str
    step: int = -1
    url: str = ""

    @classmethod
    def of(cls, directory: Path) -> Memory | None:
        """What the folder remembers of the run that goes on now; None where a run begins.

        A folder in which a run died before its first checkpoint is begun anew, perhaps with other settings: then the
        earlier run in wandb is another one.
        """
        begun = [event.get("step") for event in read_events(directory / EVENTS) if event["event"] == "train"]
        if not begun or not begun[-1] or not (directory / FILE).exists():
            return None
        return cls(**json.loads((directory / FILE).read_text(encoding="utf-8")))

    @classmethod
    def new(cls) -> Memory:
        # Not from the random module: its state belongs to the run.
        return cls(secrets.token_hex(4))

    def logged(self, step: int) -> Memory:
        return replace(self, step=max(step, self.step))

    def write(self, directory: Path) -> None:
        """Write it whole or not at all."""
        file = directory / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".tmp")
        beside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        beside.replace(file)
