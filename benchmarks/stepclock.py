"""The step clock: reports optimizer steps of any torch program from outside it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from time import process_time
from types import ModuleType
from typing import Any

from child import say
from rows import peak_megabytes

MODULE = "torch.optim.optimizer"


def report_first_step() -> None:
    """Say the CPU seconds of this process at the end of its first optimizer step, and leave."""

    def first(optimizer: Any, arguments: Any, keywords: Any) -> None:
        say({"cpu": process_time()})
        os._exit(0)

    _when_imported(first)


def report_turns(steps: int) -> None:
    """Say how far it is after every so many steps, then wait for a line of input; leave where it ends.

    (steps taken, CPU seconds, CPU seconds at the end of the first step, peak memory in MB)
    """
    taken, first = 0, 0.0

    def count(optimizer: Any, arguments: Any, keywords: Any) -> None:
        nonlocal taken, first
        taken += 1
        first = first or process_time()
        if taken % steps == 0:
            say((taken, process_time(), first, peak_megabytes()))
            if not sys.stdin.readline():
                os._exit(0)

    _when_imported(count)


class _Watcher(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torch's optimizer module once, and registers torch's own hook as soon as it is there."""

    def __init__(self, hook: Callable[..., None]) -> None:
        self._hook = hook
        self._inner: Any = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        self._inner, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._inner.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        module.register_optimizer_step_post_hook(self._hook)


def _when_imported(hook: Callable[..., None]) -> None:
    """Torch is not imported here: a program's own import of it is a part of its start."""
    sys.meta_path.insert(0, _Watcher(hook))
