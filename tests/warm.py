"""``st`` in a process that is forked from one in which everything it imports is there already.

What a command does and prints is what it does and prints in a process of its own; only imports are saved.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

IMPORTED = ("torch", "diffusers", "transformers", "peft", "st.train.run", "st.train.stages", "st.train.loop")


def run_st(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit status of ``st ARGUMENTS`` in a folder, and what it printed, errors included."""
    context = get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with tempfile.NamedTemporaryFile() as said:
        process = context.Process(target=_become, args=(list(arguments), str(folder), dict(environment), said.name))
        process.start()
        process.join()
        text = Path(said.name).read_text(encoding="utf-8", errors="replace")
    code = process.exitcode or 0
    # As a shell has it.
    return code if code >= 0 else 128 - code, text


def _become(arguments: list[str], folder: str, environment: dict[str, str], said: str) -> None:
    """What the command does, in the forked process."""
    os.chdir(folder)
    stream, empty = os.open(said, os.O_WRONLY | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for number, source in ((0, empty), (1, stream), (2, stream)):
        os.dup2(source, number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["st", *arguments]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    from st.cli import main

    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
