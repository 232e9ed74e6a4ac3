"""Middleware around blocks that compute nothing: what the first one and each further one add to a block's call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from figure import Bar, Figure
from processes import once

if TYPE_CHECKING:
    from st import BlockCall, BlockResult, Proceed

Answer = dict[str, list[float]]
GROUP = "middleware"
BLOCKS, FURTHER, TURNS = 50, 4, 15


def measure(scratch: Path, quick: bool) -> list[Figure]:
    answer = once((GROUP, "stacks", [3, 2] if quick else [200, TURNS]), scratch / "log.txt")
    # Other programs only ever lengthen what takes microseconds.
    bare, one, many = (1e6 * min(answer[name]) for name in ("bare", "one", "many"))
    detail = f"beyond a call of the bare block; the least of {TURNS} turns; {BLOCKS} blocks without work"
    rows = (("one", one - bare, one, 3.0), ("each further", (many - one) / FURTHER, many, 1.0))
    return [
        Figure(GROUP, f"middleware, {name}: a call", value, "us", Bar(limit), _micro(bare), _micro(ours), detail)
        for name, value, ours, limit in rows
    ]


def _micro(microseconds: float) -> str:
    return f"{microseconds:.2f} us"


def stacks(passes: int, turns: int) -> Answer:
    """CPU seconds of a block's call without, with one, and with one and FURTHER middlewares, in turn."""
    import torch
    from torch import nn

    from st import BlockGroup, Claims, Layer, TokenStream
    from st.model.inside.blocks import BlockStack

    class Block(nn.Module):
        def forward(self, hidden_states: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return hidden_states

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

        def forward(self, hidden_states: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                hidden_states = block(hidden_states, text=text)
            return hidden_states

    class Passing:
        layer = Layer.TAP

        def claims(self, count: int) -> Claims:
            return Claims()

        def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
            return proceed(call)

    denoiser, tokens = Denoiser(), torch.zeros(1, 4, 4)

    def spent(count: int) -> float:
        with BlockStack(denoiser, (BlockGroup("blocks", TokenStream()),), [Passing() for _ in range(count)]):
            denoiser(tokens, tokens)
            began = process_time()
            for _ in range(passes):
                denoiser(tokens, tokens)
            return (process_time() - began) / (passes * BLOCKS)

    counts = {"bare": 0, "one": 1, "many": 1 + FURTHER}
    found: Answer = {name: [] for name in counts}
    for _ in range(turns):
        for name, count in counts.items():
            found[name].append(spent(count))
    return found


CASES: dict[str, Callable[..., Answer]] = {"stacks": stacks}
