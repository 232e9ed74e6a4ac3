"""Schedule: how a checkpoint's scheduler moves times towards noise, for the families whose pipelines ask it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.diffusion.shift import exponential_shift

if TYPE_CHECKING:
    from collections.abc import Mapping


def scheduled_shift(scheduler: Mapping[str, Any], tokens: int) -> float:
    """k of the shift k t / (1 + (k - 1) t) at so many tokens.

    scheduler: the configuration of a ``FlowMatchEulerDiscreteScheduler``. With ``use_dynamic_shifting`` k grows with
    the tokens between its two points, as where a pipeline of diffusers has a ``calculate_shift``; else it is ``shift``.
    """
    if not scheduler.get("use_dynamic_shifting", False):
        return float(scheduler.get("shift", 1.0))
    low = (int(scheduler.get("base_image_seq_len", 256)), float(scheduler.get("base_shift", 0.5)))
    high = (int(scheduler.get("max_image_seq_len", 4096)), float(scheduler.get("max_shift", 1.15)))
    return exponential_shift(tokens, low, high)
