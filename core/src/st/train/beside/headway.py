"""Headway: what shows that a process which was told to end is still getting on."""

from __future__ import annotations

import psutil

MEBIBYTE = 1 << 20


def mebibytes_moved(process: int | None = None) -> int:
    """What a process, this one by default, has read and written, files and connections alike.

    In mebibytes, so that a progress line is no headway; 0 where the system does not count, and for one that is gone.
    """
    try:
        counters = getattr(psutil.Process(process), "io_counters", None)
        counted = counters() if counters is not None else None
    except psutil.Error:
        return 0
    # Characters count what is sent to pipes and connections too, where the system has them.
    names = ("read_chars", "write_chars") if hasattr(counted, "read_chars") else ("read_bytes", "write_bytes")
    return sum(int(getattr(counted, name, 0)) for name in names) // MEBIBYTE
