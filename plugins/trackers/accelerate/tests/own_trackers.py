"""Trackers as a user of accelerate writes them: a module that can be imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker


class Lines(GeneralTracker):
    """Writes every call as a line of JSON."""

    name = "lines"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str, mood: str = "plain") -> None:
        super().__init__()
        self.file = Path(logging_dir) / "lines.jsonl"
        self.write("made", run_name, mood)

    @property
    def tracker(self) -> Path:
        return self.file

    def write(self, *line: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def start(self) -> None:
        self.write("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.write("settings", values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.write("log", step, values)

    def finish(self) -> None:
        self.write("finish")


class Pictures(Lines):
    """Writes down what pictures look like, too."""

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        for label, images in values.items():
            self.write("images", step, label, [[*image.shape, str(image.dtype)] for image in images], kwargs)


class Raises(Lines):
    """Fails in the middle of a run."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        raise RuntimeError("the service is down")


class NoDirectory(GeneralTracker):
    """Is made with a name and writes nothing."""

    name = "no-directory"
    requires_logging_directory = False
    tracker = None

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name = run_name


class NoTracker:
    """Is something else."""
