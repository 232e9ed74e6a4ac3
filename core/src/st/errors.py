"""Every error a user can cause.

StError                     one clear message, no traceback; ``exit_code`` is what the command ends with
├── ProblemsFound           settings that cannot be used, all of them at once            exit 2
├── PluginError             a named plugin is missing, broken or of another API          exit 2
├── SampleUnreadable        one file of a data set cannot be used
├── StoreUnreadable         a store holds damaged bytes, or does not give out one object
├── StoreUnreachable        a store does not answer, or lets nobody in
├── DataUnusable            what is left of a data set cannot be trained on              exit 2
├── CheckpointDamaged       a checkpoint whose files are not those that were written
├── OutputUnwritable        the run's folder is in use, full or read-only
├── RunFailed               training cannot go on (a loss that is not finite, a dead rank)
└── OutOfMemory             the device's memory is full                                  exit 3

Interrupted                 a run was told to end before it had anything to save         exit 128 + signal
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


class StError(Exception):
    """A mistake or a condition that the user can do something about.

    what: what is wrong with which value, and where it came from. why: the reason, where it is not obvious. fix: what
    to type. Shown as at most three lines, without a traceback.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        return "\n  ".join(line for line in (self.what, self.why, self.fix) if line)

    def reword(self, change: Callable[[str], str]) -> None:
        """Change each of its sentences."""
        self.what, self.why, self.fix = change(self.what), change(self.why), change(self.fix)
        self.args = (change(str(self.args[0])),)


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that cannot be used. where: its place in the run file (``clip.norm``), '' for the run as a whole."""

    where: str
    what: str
    why: str = ""
    fix: str = ""


class ProblemsFound(StError):
    """Everything that is wrong with a run file, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        self.problems, self.source = tuple(problems), source
        super().__init__("\n".join(_sentence(problem) for problem in problems))

    def __str__(self) -> str:
        return "\nError: ".join(_sentence(problem) for problem in self.problems)

    def reword(self, change: Callable[[str], str]) -> None:
        super().reword(change)
        self.problems = tuple(
            replace(one, what=change(one.what), why=change(one.why), fix=change(one.fix)) for one in self.problems
        )


def _sentence(problem: Problem) -> str:
    if problem.where and not _is_named(problem.where, problem.what):
        return _sentence(replace(problem, where="", what=f"{problem.where}: {problem.what}"))
    return "\n  ".join(line for line in (problem.what, problem.why, problem.fix) if line)


def _is_named(where: str, what: str) -> bool:
    """Whether a sentence names the place: the last word of its path, whatever its case, in the plural or not."""
    words = [word for word in where.split(".") if not word.isdecimal()]
    return not words or words[-1].lower().removesuffix("s") in what.lower()


class PluginError(StError):
    """A plugin that was named cannot be used."""

    exit_code = 2


class SampleUnreadable(StError):
    """One file of a data set cannot be used; the others can."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key!r} cannot be used: {reason}")
        self.key, self.reason = key, reason


class StoreUnreadable(StError):
    """A store holds bytes that are not those that were written, or does not give out one of its objects."""


class StoreUnreachable(StError):
    """A store does not answer, however often it is asked, or refuses the credentials: none of it can be used."""


class DataUnusable(StError):
    """Nothing, or too little, of a data set is left to train on."""

    exit_code = 2


class CheckpointDamaged(StError):
    """A checkpoint whose files are missing, cut short or changed."""


class OutputUnwritable(StError):
    """The run's folder cannot be written: in use by another run, full, or read-only."""


class RunFailed(StError):
    """Training cannot go on."""


class OutOfMemory(StError):
    """The device's memory is full."""

    exit_code = 3


class RankLost(StError):
    """Another process of the run ended, or did not come in time. ``st train`` shows that one's failure instead."""

    exit_code = 5


class Interrupted(BaseException):
    """A run was told to end before it had anything to save. Like KeyboardInterrupt, no error that code recovers from.

    by: the signal's name, or who asked. number: the signal's, for an exit status as every shell gives.
    """

    def __init__(self, by: str, number: int) -> None:
        super().__init__(f"ended by {by} before training")
        self.exit_code = 128 + number


class Blamed:
    """A ``with`` that puts a note on whatever is raised in it. Nothing is caught."""

    def __init__(self, note: str) -> None:
        self.note = note

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(self.note)
