"""Restoring a quantized weight in pieces, over passes of the whole tensor in fp32."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

from figure import Figure, median
from processes import STEADY, running

if TYPE_CHECKING:
    from torch import Tensor

Answer = dict[str, Any]
GROUP = "restoring"
ROWS, COLUMNS = 1536, 3072
KINDS = {"int8": "bytes", "float8_e4m3fn": "8-bit floats"}


def measure(scratch: Path, quick: bool) -> list[Figure]:
    figures = []
    for kind, said in KINDS.items():
        with running((GROUP, "both", [kind, 2 if quick else 30]), scratch / "log.txt", STEADY) as child:
            answer = child.answer()
        floor, ours = (1e3 * median(answer[name]["seconds"]) for name in ("whole", "pieces"))
        held = [f"{answer[name]['bytes']:.1f}" for name in ("pieces", "whole")]
        what = f"a weight of {ROWS} x {COLUMNS} {said} restored in bf16"
        detail = (
            f"over the product of whole tensors in fp32; at most {held[0]} bytes a weight are held, {held[1]} there"
        )
        figures.append(Figure(GROUP, what, ours / floor, "x", None, f"{floor:.1f} ms", f"{ours:.1f} ms", detail))
    return figures


def both(kind: str, times: int) -> Answer:
    """CPU seconds of each, in turn, and the most bytes a weight that it holds at once. kind: of the packed numbers."""
    import torch

    from st.model.quantize.restoring import scaled

    numbers = torch.randint(-127, 128, (ROWS, COLUMNS)).to(getattr(torch, kind))
    scale = torch.rand(ROWS, 1)
    ways: dict[str, Callable[[], Tensor]] = {
        "whole": lambda: (scale * numbers.float()).to(torch.bfloat16),
        "pieces": lambda: scaled(numbers, scale, torch.bfloat16),
    }
    found: Answer = {name: {"seconds": [], "bytes": _most(way) / numbers.numel()} for name, way in ways.items()}
    for _ in range(times):
        for name, way in ways.items():
            began = process_time()
            way()
            found[name]["seconds"].append(process_time() - began)
    return found


def _most(way: Callable[[], Tensor]) -> int:
    from torch.profiler import ProfilerActivity, profile

    way()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        way()
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    return max(accumulate(int(one.nbytes()) for one in sorted(events, key=lambda one: one.start_ns())))


CASES: dict[str, Callable[..., Answer]] = {"both": both}
