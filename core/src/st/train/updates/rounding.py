"""Rounding: weights that are kept in fewer bits than the updates of an optimizer need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.errors import Problem, StError

if TYPE_CHECKING:
    from collections.abc import Sequence

    ParamGroup = dict[str, Any]

NEAREST = frozenset({"adamw", "sgd", "adafactor"})
"""Optimizers of torch, which round each new weight to the nearest number of its dtype."""


def rounding_problem(kind: str, dtype: str) -> Problem | None:
    """Why an optimizer does not train weights of a dtype, "fp32", "bf16" or "fp16"; None where it does."""
    what = f"optimizer.kind = {kind!r} does not train weights that are kept in {dtype}"
    if dtype == "fp16":
        why = "their gradients cannot be unscaled, and small updates are lost"
        return Problem("adapter.dtype", what, why, "set adapter.dtype to 'fp32'")
    if dtype == "bf16" and kind in NEAREST:
        why = "it rounds each new weight to the nearest, which loses updates smaller than 1/256 of it"
        return Problem("adapter.dtype", what, why, "set optimizer.kind to 'adamw_bf16', or adapter.dtype to 'fp32'")
    return None


def refuse_rounded(kind: str, groups: Sequence[ParamGroup]) -> None:
    """Raises StError for groups with weights whose updates would be lost."""
    import torch

    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    for parameter in (p for group in groups for p in group["params"]):
        problem = rounding_problem(kind, short.get(parameter.dtype, "fp32"))
        if problem is not None:
            raise StError(problem.what, why=problem.why, fix=problem.fix)
