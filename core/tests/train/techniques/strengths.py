"""A state of the denoiser that a prediction is made in, and that lasts until its gradients are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import st


class Strengths:
    """Learn at twice the adapter's strength."""

    Options = st.Options

    def __init__(self, options: Any) -> None:
        self.order: list[str] = []

    @st.hookimpl
    def st_step(self, run: st.Run) -> st.StepWrapper:
        def wrap(step: st.Step) -> st.Step:
            @contextmanager
            def scope(noised: st.Noised, batch: st.Batch) -> Iterator[None]:
                with step.scope(noised, batch), run.adapter.scaled(run.denoiser, 2.0):
                    yield

            return replace(step, scope=scope)

        return wrap
