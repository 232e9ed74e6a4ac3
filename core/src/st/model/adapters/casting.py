"""Casting: what peft's layers do to their input, without what autocast undoes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def spare_casts(layer: Any) -> None:
    """Let a layer of peft leave its input alone under autocast; everywhere else it casts as before.

    peft casts the input to the type of the update's weights, float32. Autocast casts it back for the product, so that
    only time was spent: up to 5 % of a short step, forward and backward. Every digit stays, as float32 holds every
    bfloat16 and float16. For layers whose update is two products and nothing else: dropout and DoRA compute with the
    input as it was cast.
    """
    # On the instance: peft's own switch is for good, and previews of the same layers run without autocast.
    layer.__dict__["_cast_input_dtype"] = _cast_unless_autocast


def _cast_unless_autocast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    import torch

    if x is None or x.dtype == dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(dtype=dtype)
