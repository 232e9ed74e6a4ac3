"""One measured piece of work in a process of its own.

    python benchmarks/child.py MODULE CASE ARGUMENTS-AS-JSON

calls ``CASES[CASE](*ARGUMENTS)`` of a module beside this one and prints its answer as a line of JSON behind MARK.
Imports next to nothing itself, so that what a case imports is what its process has imported.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

MARK = "@benchmark "


def say(answer: object) -> None:
    """Print one answer for the process that started this one."""
    print(MARK + json.dumps(answer), flush=True)


def main(module: str, case: str, arguments: str) -> None:
    answer = import_module(module).CASES[case](*json.loads(arguments))
    if answer is not None:
        say(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
