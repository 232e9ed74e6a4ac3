"""Requests: what a run is asked to do while it trains, and how all ranks come to know of it."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from st.errors import StError

if TYPE_CHECKING:
    from collections.abc import Iterable


Do = Literal["stop", "pause", "resume", "save", "validate", "set"]
PLUGIN = "a plugin"


class Agreement(Protocol):
    """What requests need of the ranks of a run: both are called by every rank."""

    def any(self, flag: bool) -> bool: ...

    def everyone(self, said: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One thing that a run is asked to do.

    source: who asks, for the event log: "SIGTERM", "st ctl", "a plugin". id: what the answer is known by. name, value:
    of ``set``.
    """

    do: Do
    source: str = PLUGIN
    id: str = ""
    name: str = ""
    value: str = ""

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def read(cls, line: str) -> Request:
        """What ``line`` wrote, or another program. Raises StError saying what is wrong with it."""
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StError(f"the request {line[:200]!r} is not JSON: {error}") from error
        if not isinstance(found, dict) or found.get("do") not in get_args(Do):
            raise StError(f"the request {line[:200]!r} does not say what to do", fix=f"do: {', '.join(get_args(Do))}")
        texts = {name: str(found.get(name, "")) for name in ("id", "name", "value")}
        return cls(found["do"], str(found.get("source") or "the control file"), **texts)


class Requests:
    """What a run is asked to do. Thread-safe: whoever asks only says so, and all ranks do it after the step.

    A plugin asks through ``run.requests``, on one rank or on every one; asked on several in one step, it is done once.
    """

    def __init__(self) -> None:
        self._asked: deque[Request] = deque()

    def stop(self, why: str = PLUGIN) -> None:
        """End the run, saved."""
        self.ask(Request("stop", why))

    def pause(self) -> None:
        """Take no further step until ``resume`` or ``stop``; everything stays in memory."""
        self.ask(Request("pause"))

    def resume(self) -> None:
        """Go on after a pause."""
        self.ask(Request("resume"))

    def save(self) -> None:
        """Write a checkpoint."""
        self.ask(Request("save"))

    def validate(self) -> None:
        """Measure everything that is measured in this run: pictures, held-out losses, validators."""
        self.ask(Request("validate"))

    def set(self, name: str, value: float | str) -> None:
        """Change a setting that may change while a run trains: ``optimizer.lr``, or ``learners.NAME.lr`` of a further
        learner, to a rate, or by a factor ("x0.5").
        """
        self.ask(Request("set", name=name, value=str(value)))

    def ask(self, request: Request) -> None:
        """Have it done after the step."""
        self._asked.append(request)

    def agreed(self, ranks: Agreement) -> tuple[Request, ...]:
        """What any rank was asked since the last time, in one order on all of them; every rank calls it.

        Costs one agreement on the host where nothing was asked, and nothing at all with a single rank.
        """
        if not ranks.any(bool(self._asked)):
            return ()
        mine = [self._asked.popleft() for _ in range(len(self._asked))]
        said = ranks.everyone(json.dumps([request.line() for request in mine]))
        return tuple(_once(Request.read(line) for lines in said for line in json.loads(lines)))


def _once(requests: Iterable[Request]) -> list[Request]:
    return list(dict.fromkeys(requests))
