"""Blocks: how techniques reach inside a denoiser that knows nothing about them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from st.errors import PluginError, StError
from st.model.inside.claims import Claims as Claims
from st.model.inside.claims import check_claims as check_claims

if TYPE_CHECKING:
    from torch import Tensor, nn

    SelectTokens = Callable[[Mapping[str, Any], Tensor], Mapping[str, Any]]
    CountTokens = Callable[[Mapping[str, Any]], int]


@dataclass(frozen=True, slots=True)
class TokenStream:
    """The image (or video, or sound) tokens that pass through the blocks, inside a (B, S, D) argument.

    argument: the block argument that carries them. returned: their place in the tuple that a block returns; None when a
    block returns one tensor. place: where they lie in that sequence when text tokens share it. select: given a block's
    arguments and the kept indices (K,), the changed ones among the other arguments that are indexed by token (rotary
    tables, per-token modulation). droppable: False where a block needs the whole rectangle, such as a convolution over
    H x W. count: S, from the arguments of the module that holds the blocks; needed only where ``place`` is not "all" in
    its first group, since the length of a shared sequence does not tell how much of it is text.
    """

    argument: str = "hidden_states"
    returned: int | None = None
    place: Literal["all", "first", "last"] = "all"
    select: SelectTokens | None = None
    droppable: bool = True
    count: CountTokens | None = None

    def read(self, sequence: Tensor, count: int) -> Tensor:
        """The ``count`` stream tokens of a sequence."""
        if self.place == "all":
            return sequence
        return sequence[:, :count] if self.place == "first" else sequence[:, sequence.shape[1] - count :]

    def write(self, sequence: Tensor, count: int, tokens: Tensor) -> Tensor:
        """The sequence with its ``count`` stream tokens replaced by ``tokens``, however many those are."""
        if self.place == "all":
            return tokens
        import torch

        if self.place == "first":
            return torch.cat([tokens, sequence[:, count:]], dim=1)
        return torch.cat([sequence[:, : sequence.shape[1] - count], tokens], dim=1)


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """A list of alike blocks, run in order: ``path`` names an ``nn.ModuleList`` inside the denoiser."""

    path: str
    stream: TokenStream = TokenStream()


class Layer(IntEnum):
    """Where a middleware sits around a block, outermost first."""

    PLACEMENT = 0
    """Brings weights in and sends them away."""
    TAP = 1
    """Reads tokens."""
    ROUTE = 2
    """Runs blocks on fewer tokens."""
    RECOMPUTE = 3
    """Forgets activations and computes them again; the core's own, so that it is always innermost."""


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One block about to run. A value: it holds all that a recomputation needs.

    index: counts the blocks of all groups, from 0. arguments: the block's arguments by name. total: stream tokens at
    the start of the forward pass. keep: (K,) indices of those still present, None while all are.
    """

    index: int
    group: BlockGroup
    block: nn.Module
    arguments: Mapping[str, Any]
    total: int
    keep: Tensor | None = None

    @property
    def count(self) -> int:
        """Stream tokens present in this call: S, or K inside a route."""
        return self.total if self.keep is None else len(self.keep)

    @property
    def tokens(self) -> Tensor:
        """The stream's tokens on their way into the block, (B, count, D)."""
        stream = self.group.stream
        return stream.read(self.arguments[stream.argument], self.count)

    def dropping(self, keep: Tensor) -> BlockCall:
        """The same call with only the tokens in ``keep`` (K,), sorted. Later blocks receive only those too."""
        stream = self.group.stream
        assert self.keep is None, "tokens are dropped once and restored before they are dropped again"
        if not stream.droppable:
            raise StError(f"block {self.index} needs every token, so none can be dropped there")
        sequence = stream.write(self.arguments[stream.argument], self.count, self.tokens[:, keep])
        return replace(self, keep=keep, arguments={**self.arguments, stream.argument: sequence})


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What a block returned, with the call that led to it."""

    call: BlockCall
    value: Any

    @property
    def sequence(self) -> Tensor:
        """The returned tensor that holds the stream, (B, sequence, D)."""
        place = self.call.group.stream.returned
        found: Tensor = self.value if place is None else self.value[place]
        return found

    @property
    def tokens(self) -> Tensor:
        """The stream's tokens as the block left them, (B, count, D)."""
        return self.call.group.stream.read(self.sequence, self.call.count)

    def restoring(self, tokens: Tensor) -> BlockResult:
        """The same result with every token present again. tokens: (B, S, D)."""
        stream = self.call.group.stream
        sequence = stream.write(self.sequence, self.call.count, tokens)
        place = stream.returned
        value = sequence if place is None else (*self.value[:place], sequence, *self.value[place + 1 :])
        return BlockResult(replace(self.call, keep=None), value)


Proceed = Callable[[BlockCall], BlockResult]
"""The rest of the middleware, and then the block itself."""


class BlockMiddleware(Protocol):
    """Surrounds the calls of all blocks, in every pass: ask ``torch.is_grad_enabled()`` to act in training only.

    What a later recomputation needs goes into the call or the result, never into an object that the pass shares.
    """

    @property
    def layer(self) -> Layer: ...

    def claims(self, count: int) -> Claims:
        """What is relied on, given ``count`` blocks."""

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult: ...


def find_blocks(denoiser: nn.Module, groups: Sequence[BlockGroup]) -> tuple[tuple[nn.Module, BlockGroup], ...]:
    """Every block with its group, in the order of their numbers. Raises PluginError where a path leads nowhere."""
    found: list[tuple[nn.Module, BlockGroup]] = []
    for group in groups:
        try:
            blocks = denoiser.get_submodule(group.path)
        except AttributeError as error:
            raise PluginError(f"{type(denoiser).__name__} has no blocks at {group.path!r}", why=str(error)) from error
        found += [(block, group) for block in blocks.children()]
    return tuple(found)


_PLACE = "_st_place"


@dataclass(frozen=True, slots=True)
class _Place:
    """A block's place in a stack. names: of its positional parameters. forward: the method that the stack surrounds."""

    stack: BlockStack
    index: int
    group: BlockGroup
    names: tuple[str, ...]
    forward: Callable[..., Any]
    shadowed: bool


class BlockStack:
    """Middleware installed around every block of a denoiser, outermost layer first; a context manager that removes it.

    Parameter names do not change, so adapters and checkpoints are unaffected. Without middleware nothing is installed.
    Compile blocks before: what is compiled is the block itself, the middleware stays outside of it. The denoiser's own
    gradient checkpointing stays off; ``Recompute`` takes its place.

    Nobody has to announce a forward pass. A pre-hook of the module that holds the blocks forgets the previous pass, and
    the first block's own tensor tells how many tokens there are, or ``TokenStream.count`` where text shares it.

    Limits. One recomputed region is one block. One selection of tokens per batch, unless ``TokenStream.select`` can
    narrow what is per sample. Sequences are (B, S, D). A block carries one stream.
    """

    def __init__(
        self, denoiser: nn.Module, groups: Sequence[BlockGroup], middleware: Sequence[BlockMiddleware]
    ) -> None:
        self._chain: Proceed = _run_block
        self._total: int | None = None
        self._keep: Tensor | None = None
        self._blocks: list[nn.Module] = []
        self._hooks: list[Any] = []
        if not middleware:
            return
        for surrounding in sorted(middleware, key=lambda one: one.layer, reverse=True):
            self._chain = partial(_call_middleware, surrounding, self._chain)
        for index, (block, group) in enumerate(find_blocks(denoiser, groups)):
            self._surround(block, index, group)
        first_by_owner: dict[str, TokenStream] = {}
        for group in groups:
            first_by_owner.setdefault(_owner(denoiser, group.path), group.stream)
        for path, stream in first_by_owner.items():
            self._watch(denoiser.get_submodule(path), stream)

    def _surround(self, block: nn.Module, index: int, group: BlockGroup) -> None:
        assert _PLACE not in block.__dict__, "a denoiser carries one block stack"
        names = _argument_names(block, group)
        place = _Place(self, index, group, names, block.forward, "forward" in block.__dict__)
        setattr(block, _PLACE, place)
        # A bound method, not a closure: deepcopy rebinds it to the copied block, a closure would call the original.
        block.__dict__["forward"] = MethodType(_forward, block)
        self._blocks.append(block)

    def _watch(self, owner: nn.Module, first: TokenStream) -> None:
        if first.place != "all" and first.count is None:
            raise PluginError(
                f"the first blocks of {type(owner).__name__} share their sequence with text",
                why="its length does not tell how many stream tokens there are",
                fix="give their TokenStream a count",
            )
        begin = _Begin(self, first.count, tuple(inspect.signature(type(owner).forward).parameters)[1:])
        self._hooks.append(owner.register_forward_pre_hook(begin, with_kwargs=True))

    def begin(self, total: int | None = None) -> None:
        """Forget the previous forward pass. total: stream tokens of the new one; None: the first block tells."""
        self._total, self._keep = total, None

    def call(self, place: _Place, block: nn.Module, arguments: dict[str, Any]) -> Any:
        """Run one block through all middleware."""
        stream = place.group.stream
        if self._keep is None and stream.place == "all":
            self._total = arguments[stream.argument].shape[1]
        assert self._total is not None, "a block ran outside of the module that holds it"
        result = self._chain(BlockCall(place.index, place.group, block, arguments, self._total, self._keep))
        self._keep = result.call.keep
        return result.value

    def remove(self) -> None:
        """Leave the denoiser as it was found."""
        for block in self._blocks:
            place: _Place = block.__dict__.pop(_PLACE)
            del block.__dict__["forward"]
            if place.shadowed:
                block.__dict__["forward"] = place.forward
        for hook in self._hooks:
            hook.remove()
        self._blocks, self._hooks = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockStack:
        """A stack for a copied denoiser. Middleware is shared: it may hold a run, and a run is not copied."""
        copy = BlockStack.__new__(BlockStack)
        memo[id(self)] = copy
        copy._chain, copy._total, copy._keep = self._chain, None, None
        copy._blocks, copy._hooks = deepcopy(self._blocks, memo), deepcopy(self._hooks, memo)
        return copy


@dataclass(frozen=True, slots=True)
class _Begin:
    """A forward pre-hook: a pass begins."""

    stack: BlockStack
    count: CountTokens | None
    names: tuple[str, ...]

    def __call__(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count = self.count
        self.stack.begin(None if count is None else count(dict(zip(self.names, args, strict=False)) | kwargs))


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    place: _Place = block.__dict__[_PLACE]
    if args:
        # Names are known beforehand: Signature.bind would cost more than all the rest of the stack.
        if len(args) > len(place.names):
            raise TypeError(f"{type(block).__name__} takes {len(place.names)} arguments, {len(args)} were given")
        kwargs = dict(zip(place.names, args, strict=False)) | kwargs
    return place.stack.call(place, block, kwargs)


def _call_middleware(middleware: BlockMiddleware, proceed: Proceed, call: BlockCall) -> BlockResult:
    return middleware(call, proceed)


def _run_block(call: BlockCall) -> BlockResult:
    arguments, select = call.arguments, call.group.stream.select
    if call.keep is not None and select is not None:
        arguments = {**arguments, **select(arguments, call.keep)}
    place: _Place = call.block.__dict__[_PLACE]
    return BlockResult(call, place.forward(**arguments))


def _argument_names(block: nn.Module, group: BlockGroup) -> tuple[str, ...]:
    parameters = list(inspect.signature(type(block).forward).parameters.values())[1:]
    names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    takes_anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters):
        raise PluginError(f"the blocks at {group.path!r} take arguments that have no name")
    if group.stream.argument not in [p.name for p in parameters] and not takes_anything:
        raise PluginError(
            f"the blocks at {group.path!r} have no argument {group.stream.argument!r}",
            why=f"{type(block).__name__}.forward takes {', '.join(names)}",
        )
    return names


def _owner(denoiser: nn.Module, path: str) -> str:
    """The path of the module whose forward runs the blocks: the closest that is not a mere container."""
    from torch import nn

    parts = path.split(".")[:-1]
    while parts and isinstance(denoiser.get_submodule(".".join(parts)), (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        parts.pop()
    return ".".join(parts)
