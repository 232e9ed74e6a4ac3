"""TokenStream and BlockGroup: where the tokens of a picture lie in what passes through a denoiser's blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    SelectTokens = Callable[[Mapping[str, Any], Tensor], Mapping[str, Any]]
    CountTokens = Callable[[Mapping[str, Any]], int]
    StartTokens = Callable[[Mapping[str, Any]], Tensor]


@dataclass(frozen=True, slots=True)
class TokenStream:
    """The image (or video, or sound) tokens that pass through the blocks, inside a (B, S, D) argument.

    argument: the block argument that carries them. returned: their place in the tuple that a block returns; None when a
    block returns one tensor. place: where they lie in that sequence when text tokens share it; "each" where every
    sample has them behind as much text as it has, and padding behind them. starts: for "each", from the arguments of
    the module that holds the blocks, where they begin, (B,) int. select: given a block's arguments and the kept
    indices, the changed ones among the other arguments that are indexed by token (rotary tables, per-token modulation);
    the indices are (K,) of the stream's tokens, for "each" (B, rows) of the whole sequence. droppable: False where a
    block needs the whole rectangle, such as a convolution over H x W. count: S, from the arguments of the module that
    holds the blocks; needed only where ``place`` is not "all" in its first group, since the length of a shared sequence
    does not tell how much of it is text.
    """

    argument: str = "hidden_states"
    returned: int | None = None
    place: Literal["all", "first", "last", "each"] = "all"
    select: SelectTokens | None = None
    droppable: bool = True
    count: CountTokens | None = None
    starts: StartTokens | None = None

    def read(self, sequence: Tensor, count: int, starts: Tensor | None = None) -> Tensor:
        """The ``count`` stream tokens of a sequence. starts: (B,), for "each"."""
        if self.place == "all":
            return sequence
        if self.place == "each":
            import torch

            assert starts is not None, "a stream that begins elsewhere in each sample is told where"
            return _rows(sequence, starts[:, None] + torch.arange(count, device=sequence.device))
        return sequence[:, :count] if self.place == "first" else sequence[:, sequence.shape[1] - count :]

    def write(self, sequence: Tensor, count: int, tokens: Tensor, starts: Tensor | None = None) -> Tensor:
        """The sequence with its ``count`` stream tokens replaced by ``tokens``, however many those are."""
        if self.place == "all":
            return tokens
        import torch

        if self.place == "first":
            return torch.cat([tokens, sequence[:, count:]], dim=1)
        if self.place == "last":
            return torch.cat([sequence[:, : sequence.shape[1] - count], tokens], dim=1)
        assert starts is not None, "a stream that begins elsewhere in each sample is told where"
        length, new = sequence.shape[1], tokens.shape[1]
        ours = length + torch.arange(new, device=sequence.device)
        return _rows(torch.cat([sequence, tokens], dim=1), _spliced(length, count, ours, starts))

    def kept(self, length: int, count: int, keep: Tensor, starts: Tensor | None = None) -> Tensor:
        """What ``select`` is given of ``keep`` (K,). length, count: rows and stream tokens before any was dropped."""
        if self.place != "each":
            return keep
        assert starts is not None, "a stream that begins elsewhere in each sample is told where"
        return _spliced(length, count, starts[:, None] + keep, starts)


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """A list of alike blocks, run in order: ``path`` names an ``nn.ModuleList`` inside the denoiser.

    stream: the tokens that techniques may take away. further: other streams of the family by name, such as the sound of
    a clip, where the blocks pass those on too: each has an argument to itself, and keeps all of its tokens.
    """

    path: str
    stream: TokenStream = TokenStream()
    further: Mapping[str, TokenStream] = field(default_factory=dict, hash=False)


def _rows(sequence: Tensor, index: Tensor) -> Tensor:
    """(B, N, D): of each sample its own rows. index: (B, N)."""
    return sequence.gather(1, index[..., None].expand(-1, -1, sequence.shape[-1]))


def _spliced(length: int, count: int, ours: Tensor, starts: Tensor) -> Tensor:
    """Rows of sequences of ``length``, in each of which the ``count`` rows from its start on are ``ours``.

    ours: (K,) or (B, K). Returns (B, length - count + K).
    """
    import torch

    new = ours.shape[-1]
    place = torch.arange(length - count + new, device=ours.device)[None]
    inside = (place - starts[:, None]).clamp(0, new - 1)
    own = ours.expand(len(starts), -1).gather(1, inside)
    before, behind = place < starts[:, None], place >= starts[:, None] + new
    return torch.where(before, place, torch.where(behind, place - new + count, own))
