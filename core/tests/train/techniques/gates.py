"""A technique that learns from inside of blocks: what their feed-forward layers let through is kept even."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import st


class Gates:
    """Keep what a layer inside of each block lets through even, as routers of experts are kept."""

    class Options(st.Options):
        weight: float = 0.1
        """How much it counts."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @st.hookimpl
    def st_block_middleware(self) -> st.ModuleTap:
        return st.ModuleTap("gate", "feed.2", lambda passed: passed.float().mean(1).var())

    @st.hookimpl
    def st_step(self, run: st.Run) -> st.StepWrapper:
        def wrap(step: st.Step) -> st.Step:
            gates: list[Any] = []

            def predict(noised: st.Noised, batch: st.Batch) -> Any:
                with run.reading() as found:
                    prediction = step.predict(noised, batch)
                gates.extend(gate for passes in found["gate"].values() for gate in passes)
                return prediction

            def loss(prediction: Any, noised: st.Noised, batch: st.Batch) -> st.Losses:
                assert len(gates) == run.num_blocks, "one of each block, however often it is computed"
                term = sum(gates[1:], gates[0]) * self.options.weight
                gates.clear()
                return step.loss(prediction, noised, batch).plus("gates", term)

            return replace(step, predict=predict, loss=loss)

        return wrap
