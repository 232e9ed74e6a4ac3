"""Importing: large libraries come in without Python looking for garbage among them again and again."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from st.errors import StError
from st.installing import install_command

NEW_OBJECTS = 20_000
"""Between two looks. Python's own number is 700, which takes a fifth of the time of importing torch and diffusers."""

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128", "/dev/accel")
"""What a driver of an accelerator leaves; to ask torch would be to import it."""


def wait_passively(device: str) -> None:
    """Let threads of the CPU's mathematics sleep while they wait for each other, where a run computes on the CPU.

    They spin otherwise, which takes the cores from whoever else wants them. Only before torch is imported; what the
    user has set stays.
    """
    if device == "cpu" or (device == "auto" and not any(Path(driver).exists() for driver in DRIVERS)):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def importing() -> Iterator[None]:
    """A block that imports large libraries and does nothing else.

    What they bring is a million objects that stay to the end. Python looks through all of them each time that there are
    a quarter more; in here it looks at new ones only, and afterwards not at what came, in the steps of a training
    either. Nothing changes where every module is there already.
    """
    modules, threshold = len(sys.modules), gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS, NEW_OBJECTS, NEW_OBJECTS)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        if len(sys.modules) > modules:
            gc.freeze()


@contextmanager
def needing(library: str, what: str, extra: str) -> Iterator[None]:
    """A block that imports a library which not every run needs. what: who needs it, "clips are read with PyAV".

    Raises StError with what to install where the library is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise StError(f"{what}, which is not installed", fix=install_command("st-core", extra=extra)) from error


def quiet_libraries() -> None:
    """Before large libraries are imported: what they warn of is upstream's own, and would tear the progress bar."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    # What libraries import on their way logs to nobody, which python would print, and to torch's own handler.
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
