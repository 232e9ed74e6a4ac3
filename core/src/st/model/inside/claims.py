"""Claims: what techniques rely on inside the denoiser, and what keeps them from working together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from st.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from st.model.inside.blocks import BlockMiddleware


@dataclass(frozen=True, slots=True)
class Claims:
    """What a middleware relies on, by block index. Combinations that contradict stop the run.

    drops_tokens: after these blocks tokens are missing; they are back after block ``drops_tokens.stop``.
    reads_all_tokens: after these blocks all tokens must be there. settings: the options that decide it, for the error.
    """

    drops_tokens: range = range(0)
    reads_all_tokens: frozenset[int] = frozenset()
    settings: tuple[str, ...] = ()


def check_claims(
    owned: Sequence[tuple[str, BlockMiddleware]], count: int, whole: Collection[int] = ()
) -> list[Problem]:
    """What keeps these middlewares from working together in a denoiser of ``count`` blocks.

    owned: each middleware with its plugin's name. whole: blocks whose stream is not droppable.
    """
    problems = []
    claimed = [(owner, middleware.claims(count)) for owner, middleware in owned]
    for owner, claims in claimed:
        outside = [index for index in (*claims.drops_tokens, *claims.reads_all_tokens) if not 0 <= index < count]
        if outside:
            what = f"{owner} asks for block {max(outside, key=abs)}, but this denoiser has blocks 0-{count - 1}."
            problems.append(Problem(_where(owner, claims), what, fix=f"Set {_settings(owner, claims)} inside them."))
    droppers = [(owner, claims) for owner, claims in claimed if claims.drops_tokens]
    for number, (owner, claims) in enumerate(droppers):
        dropped = claims.drops_tokens
        problems += [_contradiction(*reading, owner, claims) for reading in claimed if _misses(reading[1], claims)]
        needy = [index for index in whole if dropped.start <= index <= dropped.stop]
        if needy:
            what = f"{owner} drops tokens in {_span(dropped)}, but block {needy[0]} needs every token."
            problems.append(Problem(_where(owner, claims), what, fix=f"Move {_settings(owner, claims)}."))
        for other, others in droppers[:number]:
            if others.drops_tokens.start <= dropped.stop and dropped.start <= others.drops_tokens.stop:
                what = f"{other} and {owner} both drop tokens, in {_span(others.drops_tokens)} and {_span(dropped)}."
                problems.append(Problem(_where(owner, claims), what, fix=f"Move {_settings(owner, claims)}."))
    return problems


def _misses(reader: Claims, dropper: Claims) -> bool:
    return any(index in dropper.drops_tokens for index in reader.reads_all_tokens)


def _contradiction(reader: str, wants: Claims, dropper: str, drops: Claims) -> Problem:
    missed = sorted(index for index in wants.reads_all_tokens if index in drops.drops_tokens)
    blocks = f"block{'s' if len(missed) > 1 else ''} {', '.join(map(str, missed))}"
    first, last = drops.drops_tokens.start, drops.drops_tokens.stop
    below = f"below {first} or " if first else ""
    return Problem(
        _where(reader, wants),
        f"{reader} reads every token of {blocks}, but {dropper} drops tokens in {_span(drops.drops_tokens)}.",
        fix=f"Set {_settings(reader, wants)} {below}above {last}, or move {_settings(dropper, drops)}.",
    )


def _span(dropped: range) -> str:
    """The block after which tokens are back ran without them too."""
    return f"blocks {dropped.start}-{dropped.stop}"


def _settings(owner: str, claims: Claims) -> str:
    return " / ".join(f"{owner}.{name}" for name in claims.settings) or f"the blocks of {owner}"


def _where(owner: str, claims: Claims) -> str:
    return f"{owner}.{claims.settings[0]}" if claims.settings else owner
