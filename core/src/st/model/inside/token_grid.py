"""Where the tokens of a block lie in the latents."""

from __future__ import annotations


def token_grid(tokens: int, frames: int, height: int, width: int) -> tuple[int, int, int] | None:
    """(frames, rows, columns) of tokens that are square patches of latents; None where no such grid has so many.

    Frames are merged as little as possible: patches are wider than they are long.
    """
    for edge in range(min(height, width), 0, -1):
        rows, columns = height // edge, width // edge
        kept, rest = divmod(tokens, rows * columns)
        if height % edge == 0 and width % edge == 0 and not rest and 1 <= kept <= frames:
            return kept, rows, columns
    return None
