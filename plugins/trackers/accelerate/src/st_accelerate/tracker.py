"""Accelerate: a subclass of ``accelerate.tracking.GeneralTracker`` as a tracker."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue

import st

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker  # type: ignore[import-untyped]


class Accelerate(st.Tracker):
    """Run a tracker that was written for accelerate."""

    class Options(st.Options):
        """Which class is run, and what it is made with."""

        tracker: str = Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$")
        """Subclass of accelerate.tracking.GeneralTracker to run, as "package.module:Class"."""
        settings: dict[str, JsonValue] = Field(default_factory=dict)
        """What else the class is made with, by the names of its arguments."""
        project: str = ""
        """First argument of the class: a project or a run, as it understands it. Empty for the run's name."""
        folder: str = "accelerate"
        """Folder for a class that writes to one, in the run's folder unless it is absolute."""

    options: Options

    @st.hookimpl
    def st_check(self) -> list[st.Problem]:
        """A package that is not there. What is in it is seen when the run starts: looking inside may import torch."""
        package = self.options.tracker.partition(":")[0].partition(".")[0]
        if package in sys.modules or find_spec(package) is not None:
            return []
        what = f"accelerate.tracker = {self.options.tracker!r}: there is no package {package!r}."
        return [st.Problem("accelerate.tracker", what, fix="Install it, or put its folder into PYTHONPATH.")]

    def start(self, run: st.RunInfo) -> None:
        from accelerate import PartialState  # type: ignore[import-untyped]

        # Trackers of accelerate ask this state for the rank, and its loggers refuse to work before it is made.
        PartialState()
        cls = _imported(self.options.tracker)
        arguments = [self.options.project or run.name]
        if cls.requires_logging_directory:
            folder = run.directory / self.options.folder
            folder.mkdir(parents=True, exist_ok=True)
            arguments.append(str(folder))
        self._tracker = cls(*arguments, **self.options.settings)
        self._tracker.start()
        self._tracker.store_init_configuration(dict(_flat(run.config)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._tracker.log(dict(metrics), step=step)

    def show(self, step: int, pictures: Sequence[st.Picture]) -> None:
        from st_accelerate.pictures import images_of, log_images

        if pictures and hasattr(self._tracker, "log_images"):
            log_images(self._tracker, images_of(pictures), step)

    def finish(self, outcome: st.Outcome) -> None:
        self._tracker.finish()


def _imported(path: str) -> type[GeneralTracker]:
    """The class at ``package.module:Class``. Raises ImportError, AttributeError, and TypeError for another class."""
    from accelerate.tracking import GeneralTracker

    module, _, name = path.partition(":")
    cls = getattr(import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, GeneralTracker)):
        raise TypeError(f"{path!r} is no subclass of accelerate.tracking.GeneralTracker")
    return cls


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str | float | None]]:
    """Settings under dotted names, as trackers take them: text, numbers, None; a list is its JSON."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str | bool | int | float):
            yield f"{prefix}{name}", value
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False, default=str)
