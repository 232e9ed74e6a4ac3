"""Quiet: diffusers and transformers without progress bars of their own, which would tear the run's."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@contextmanager
def quietly() -> Iterator[None]:
    """Load or save weights that lie on this machine without bars. Downloads keep theirs: they are done before.

    What libraries announce for their own future is not shown either: nobody who trains can do anything about it.
    """
    import diffusers.utils.logging as of_diffusers
    import huggingface_hub.utils
    import transformers.utils.logging as of_transformers

    hub: Any = huggingface_hub.utils
    hub_is_quiet = hub.are_progress_bars_disabled()
    shown = [one for one in (of_diffusers, of_transformers) if one.is_progress_bar_enabled()]
    for one in shown:
        one.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for one in shown:
            one.enable_progress_bar()
        # transformers switches the hub's bars together with its own.
        (hub.disable_progress_bars if hub_is_quiet else hub.enable_progress_bars)()


def left_out(pipeline: Any, parts: Iterable[str]) -> dict[str, bool]:
    """Arguments of a pipeline's class that say that it is made without these parts on purpose, so that it warns of
    none that it calls required."""
    known = signature(pipeline.__init__).parameters
    return {name: False for name in (f"requires_{part}" for part in parts) if name in known}
