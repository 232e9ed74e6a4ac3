"""Blocks: how techniques reach inside a denoiser that knows nothing about them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol, Self

from st.errors import PluginError, StError
from st.model.inside.claims import Claims as Claims
from st.model.inside.claims import check_claims as check_claims
from st.model.inside.placement import Presence
from st.model.inside.stream import BlockGroup as BlockGroup
from st.model.inside.stream import TokenStream as TokenStream
from st.spelling import listed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st.model.inside.placement import Placement
    from st.model.inside.stream import CountTokens, StartTokens
    from st.model.inside.terms import Terms


class Layer(IntEnum):
    """Where a middleware sits around a block, outermost first."""

    TAP = 0
    """Reads tokens."""
    ROUTE = 1
    """Runs blocks on fewer tokens."""
    RECOMPUTE = 2
    """Forgets activations and computes them again; the core's own, so that it is always innermost."""


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One block about to run. A value: it holds all that a recomputation needs.

    index: counts the blocks of all groups, from 0. arguments: the block's arguments by name. total: stream tokens at
    the start of the forward pass. keep: (K,) indices of those still present, None while all are. starts: (B,) where
    they begin in each sample, for streams that say so. kept: whether what it computes is kept for backward. recomputed:
    backward runs it again, where it is not.
    """

    index: int
    group: BlockGroup
    block: nn.Module
    arguments: Mapping[str, Any]
    total: int
    keep: Tensor | None = None
    starts: Tensor | None = None
    kept: bool = True
    recomputed: bool = False

    @property
    def count(self) -> int:
        """Stream tokens present in this call: S, or K inside a route."""
        return self.total if self.keep is None else len(self.keep)

    @property
    def tokens(self) -> Tensor:
        """The stream's tokens on their way into the block, (B, count, D)."""
        stream = self.group.stream
        return stream.read(self.arguments[stream.argument], self.count, self.starts)

    def of(self, name: str) -> Tensor:
        """The tokens of a further stream on their way into the block, (B, S, D)."""
        found: Tensor = self.arguments[self.group.further[name].argument]
        return found

    def dropping(self, keep: Tensor) -> BlockCall:
        """The same call with only the tokens in ``keep`` (K,), sorted. Later blocks receive only those too."""
        stream = self.group.stream
        assert self.keep is None, "tokens are dropped once and restored before they are dropped again"
        if not stream.droppable:
            raise StError(f"block {self.index} needs every token, so none can be dropped there")
        sequence = stream.write(self.arguments[stream.argument], self.count, self.tokens[:, keep], self.starts)
        return replace(self, keep=keep, arguments={**self.arguments, stream.argument: sequence})


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What a block returned, with the call that led to it.

    terms: what the call gives beside, by name, of any shape: ``run.reading`` hands it to the loss, once for each pass.
    """

    call: BlockCall
    value: Any
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def sequence(self) -> Tensor:
        """The returned tensor that holds the stream, (B, sequence, D)."""
        place = self.call.group.stream.returned
        found: Tensor = self.value if place is None else self.value[place]
        return found

    @property
    def tokens(self) -> Tensor:
        """The stream's tokens as the block left them, (B, count, D)."""
        return self.call.group.stream.read(self.sequence, self.call.count, self.call.starts)

    def of(self, name: str) -> Tensor:
        """The tokens of a further stream as the block left them, (B, S, D)."""
        place = self.call.group.further[name].returned
        found: Tensor = self.value if place is None else self.value[place]
        return found

    def restoring(self, tokens: Tensor) -> BlockResult:
        """The same result with every token present again. tokens: (B, S, D)."""
        stream = self.call.group.stream
        sequence = stream.write(self.sequence, self.call.count, tokens, self.call.starts)
        place = stream.returned
        value = sequence if place is None else (*self.value[:place], sequence, *self.value[place + 1 :])
        return BlockResult(replace(self.call, keep=None), value, self.terms)

    def plus(self, name: str, term: Tensor) -> BlockResult:
        """The same result with one more term. A name is used once."""
        assert name not in self.terms, f"two middlewares give a term named {name!r}"
        return BlockResult(self.call, self.value, {**self.terms, name: term})


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
    narrow what is per sample. Sequences are (B, S, D). Tokens of further streams are read, and never dropped.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        groups: Sequence[BlockGroup],
        middleware: Sequence[BlockMiddleware],
        placement: Placement | None = None,
        terms: Terms | None = None,
    ) -> None:
        """placement: brings the blocks' weights in and sends them away. terms: who is given what calls give beside."""
        self._chain: Proceed = _run_block if placement is None else partial(_run_present, Presence(placement))
        self._terms = terms
        self._total: int | None = None
        self._keep: Tensor | None = None
        self._starts: Tensor | None = None
        self._blocks: list[nn.Module] = []
        self._hooks: list[Any] = []
        if not middleware and placement is None:
            return
        for surrounding in sorted(middleware, key=lambda one: one.layer, reverse=True):
            self._chain = partial(_call_middleware, surrounding, self._chain)
        for index, (block, group) in enumerate(find_blocks(denoiser, groups)):
            self._surround(block, index, group)
        streams_by_owner: dict[str, list[TokenStream]] = {}
        for group in groups:
            streams_by_owner.setdefault(_owner(denoiser, group.path), []).append(group.stream)
        for path, streams in streams_by_owner.items():
            self._watch(denoiser.get_submodule(path), streams)

    def _surround(self, block: nn.Module, index: int, group: BlockGroup) -> None:
        assert _PLACE not in block.__dict__, "a denoiser carries one block stack"
        names = _argument_names(block, group)
        place = _Place(self, index, group, names, block.forward, "forward" in block.__dict__)
        setattr(block, _PLACE, place)
        # A bound method, not a closure: deepcopy rebinds it to the copied block, a closure would call the original.
        block.__dict__["forward"] = MethodType(_forward, block)
        self._blocks.append(block)

    def _watch(self, owner: nn.Module, streams: Sequence[TokenStream]) -> None:
        first, starts = streams[0], [one.starts for one in streams if one.place == "each"]
        if first.place != "all" and first.count is None:
            raise PluginError(
                f"the first blocks of {type(owner).__name__} share their sequence with text",
                why="its length does not tell how many stream tokens there are",
                fix="give their TokenStream a count",
            )
        if None in starts:
            raise PluginError(
                f"the stream of {type(owner).__name__} begins elsewhere in each sample",
                fix="give its TokenStream starts",
            )
        begin = _Begin(
            self,
            first.count,
            starts[0] if starts else None,
            tuple(inspect.signature(type(owner).forward).parameters)[1:],
        )
        self._hooks.append(owner.register_forward_pre_hook(begin, with_kwargs=True))

    def begin(self, total: int | None = None, starts: Tensor | None = None) -> None:
        """Forget the previous forward pass. total: stream tokens of the new one; None: the first block tells.

        starts: where they begin in each sample, (B,), where they do not begin alike.
        """
        self._total, self._keep, self._starts = total, None, starts

    def call(self, place: _Place, block: nn.Module, arguments: dict[str, Any]) -> Any:
        """Run one block through all middleware."""
        stream = place.group.stream
        if self._keep is None and stream.place == "all":
            self._total = arguments[stream.argument].shape[1]
        assert self._total is not None, "a block ran outside of the module that holds it"
        call = BlockCall(place.index, place.group, block, arguments, self._total, self._keep, self._starts)
        result = self._chain(call)
        self._keep = result.call.keep
        if result.terms and self._terms is not None:
            self._terms.give(place.index, result.terms)
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
        copy._chain, copy._total, copy._keep, copy._starts = self._chain, None, None, None
        # Whoever reads what the denoiser gives does not mean its copy.
        copy._terms = None
        copy._blocks, copy._hooks = deepcopy(self._blocks, memo), deepcopy(self._hooks, memo)
        return copy


@dataclass(frozen=True, slots=True)
class _Begin:
    """A forward pre-hook: a pass begins."""

    stack: BlockStack
    count: CountTokens | None
    starts: StartTokens | None
    names: tuple[str, ...]

    def __call__(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count, starts = self.count, self.starts
        if count is None and starts is None:
            self.stack.begin()
            return
        given = dict(zip(self.names, args, strict=False)) | kwargs
        self.stack.begin(None if count is None else count(given), None if starts is None else starts(given))


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
    arguments, stream = call.arguments, call.group.stream
    if call.keep is not None and stream.select is not None:
        length = arguments[stream.argument].shape[1] - len(call.keep) + call.total
        kept = stream.kept(length, call.total, call.keep, call.starts)
        arguments = {**arguments, **stream.select(arguments, kept)}
    place: _Place = call.block.__dict__[_PLACE]
    return BlockResult(call, place.forward(**arguments))


def _run_present(presence: Presence, call: BlockCall) -> BlockResult:
    return BlockResult(call, presence(call, lambda: _run_block(call).value))


def _argument_names(block: nn.Module, group: BlockGroup) -> tuple[str, ...]:
    parameters = list(inspect.signature(type(block).forward).parameters.values())[1:]
    names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    takes_anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters):
        raise PluginError(f"the blocks at {group.path!r} take arguments that have no name")
    if group.stream.argument not in [p.name for p in parameters] and not takes_anything:
        raise PluginError(
            f"the blocks at {group.path!r} have no argument {group.stream.argument!r}",
            why=f"{type(block).__name__}.forward takes {listed(names)}",
        )
    return names


def _owner(denoiser: nn.Module, path: str) -> str:
    """The path of the module whose forward runs the blocks: the closest that is not a mere container."""
    from torch import nn

    parts = path.split(".")[:-1]
    while parts and isinstance(denoiser.get_submodule(".".join(parts)), (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        parts.pop()
    return ".".join(parts)
