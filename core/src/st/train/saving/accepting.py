"""Accepting: which settings a resumed run may change, and what is said of the others. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.errors import Problem, ProblemsFound
from st.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from st.train.saving.differences import Difference

FREE = frozenset(
    (
        "steps",
        "epochs",
        "output",
        "name",
        "device",
        "report",
        "validation",
        "evaluation",
        "checkpoint",
        "ranks",
        "compile",
        "metadata",
    )
)
"""Sections and keys that a resumed run may change without being asked: they alter nothing that was trained so far."""

FIXED = frozenset(
    (
        "adapter.kind",
        "adapter.rank",
        "adapter.rank_pattern",
        "adapter.targets",
        "adapter.use_dora",
        "optimizer.kind",
    )
)
"""Settings that say what a checkpoint holds: with others there is nothing to go on from."""


def refused(changes: Sequence[Difference], accepted: Sequence[str]) -> list[Problem]:
    """A problem for each change that a resumed run may not have."""
    return [problem for change in changes for problem in _refused(change, accepted)]


def check_names(accepted: Sequence[str], *settings: Mapping[str, Any]) -> None:
    """Raise ProblemsFound for names after --accept that are no setting of any of these, in RunConfig's plain form."""
    known = dict.fromkeys(key for plain in settings for key in _keys(plain))
    wrong = [name for name in accepted if name not in known]
    if wrong:
        raise ProblemsFound(
            [
                Problem(name, f"--accept {name}: there is no such setting.", fix=did_you_mean(name, known))
                for name in wrong
            ]
        )


def _keys(data: Any, prefix: str = "") -> Iterator[str]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, (list, tuple)) else ()
    for key, value in items:
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")


def _refused(change: Difference, accepted: Sequence[str]) -> Iterator[Problem]:
    fixed = _is_fixed(change)
    if not fixed and _is_allowed(change.key, {*FREE, *accepted}):
        return
    other = "start a new run: --output DIR" if fixed else f"accept the change: --accept {change.key}"
    yield Problem(
        change.key,
        f"{change.key} is {change.new!r}, but this run was started with {change.old!r}",
        "its checkpoints hold nothing that fits the new value"
        if fixed
        else "a resumed run continues exactly only with the settings it was started with",
        f"set it back, or {other}",
    )


def _is_fixed(change: Difference) -> bool:
    section = change.key.partition(".")[0]
    # A moving average that begins or ends; another decay of the same one can be accepted.
    return change.key in FIXED or (section == "average" and None in (change.old, change.new))


def _is_allowed(key: str, allowed: set[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[: length + 1]) in allowed for length in range(len(parts)))
