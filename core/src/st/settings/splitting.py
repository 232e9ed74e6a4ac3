"""Splitting: what a run cannot do where an engine holds weights or optimizer state in parts. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from st.registrar import Registrar
    from st.settings.config import RunConfig

WHOLE = 'set ranks.engine to "ddp"'


def splitting_problems(config: RunConfig, registrar: Registrar) -> Iterator[Problem]:
    """Settings of this run that do not go with its engine, each with what to do."""
    engine = registrar.get("engine", config.ranks.engine)
    if engine is None or "splits" not in engine.traits:
        return
    here = f"ranks.engine = {engine.name!r}"
    optimizer = registrar.get("optimizer", config.optimizer.kind)
    if optimizer is not None and "elementwise" not in optimizer.traits:
        others = [one.name for one in registrar.strategies() if one.kind == "optimizer" and "elementwise" in one.traits]
        yield Problem(
            "optimizer.kind",
            f"optimizer.kind = {optimizer.name!r} does not go with {here}.",
            "That engine steps parts of weights, and this optimizer is not one whose step is the same on parts.",
            f"Set optimizer.kind to one of {', '.join(sorted(others))}, or {WHOLE}.",
        )
    if config.quantizer is not None:
        yield Problem(
            "quantizer",
            f"[quantizer] does not go with {here}.",
            "Packed weights cannot be split like plain ones.",
            f"Leave out [quantizer], or {WHOLE}.",
        )
    if config.precision == "fp16":
        yield Problem(
            "precision",
            f"precision = 'fp16' does not go with {here}.",
            "Its loss scaling looks at gradients that are whole.",
            f"Set precision to 'bf16', or {WHOLE}.",
        )
    adapter = config.adapter.build(config.adapter.options)
    if adapter.needs_whole:
        yield Problem(
            "adapter",
            f"[adapter] {adapter.needs_whole}, which does not go with {here}.",
            "That engine has weights only in parts.",
            f"Change that option of [adapter], or {WHOLE}.",
        )
