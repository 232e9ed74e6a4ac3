"""Tread: token routes around the middle of a denoiser."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from st import Claims, Layer, Problem, hookimpl
from st.errors import ProblemsFound
from st_tread.options import Span, TreadOptions, problems, spans
from st_tread.selection import Selector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from st import Batch, BlockCall, BlockResult, ModelFamily, Noised, Proceed, Run, Step, StepWrapper


class TokenRoute:
    """Keeps a part of the tokens from block ``first`` to block ``last``; the rest rejoin unchanged after ``last``.

    Only while the step predicts, and only with gradients: validation and evaluation see every token. Tokens are chosen
    outside of what is recomputed, so that backward sees the same ones.
    """

    layer: ClassVar[Layer] = Layer.ROUTE

    def __init__(self, span: Span, select: Selector, name: str = "0") -> None:
        self.span, self.select, self.name = span, select, name
        self._everything: Tensor | None = None

    def claims(self, count: int) -> Claims:
        return Claims(drops_tokens=range(self.span.first, self.span.last), settings=self.span.settings)

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        import torch

        if self.select.batch is None or not torch.is_grad_enabled():
            return proceed(call)
        if not self.span.first <= call.index <= self.span.last:
            return proceed(call)
        if call.index == self.span.first:
            self._everything = call.tokens
            call = call.dropping(self.select(call.tokens, self.span.drop, self.name))
        result = proceed(call)
        if call.index == self.span.last:
            everything, self._everything = self._everything, None
            assert everything is not None and call.keep is not None, "a route is left after it was entered"
            tokens = result.tokens
            result = result.restoring(everything.to(tokens.dtype).index_copy(1, call.keep, tokens))
        return result


class Tread:
    """Spend compute on a part of the tokens through the middle of the denoiser.

    Krause et al. 2025, "TREAD: Token Routing for Efficient Architecture-agnostic Diffusion Training", arXiv:2501.04765.
    """

    Options: ClassVar[type[TreadOptions]] = TreadOptions

    def __init__(self, options: TreadOptions) -> None:
        self.options = options
        self._select: Selector | None = None

    @hookimpl
    def st_check(self, family: ModelFamily[Any]) -> Iterable[Problem]:
        """A family whose blocks need every token, which is known before anything is loaded."""
        if not family.drops_tokens:
            what = f"tread drops tokens, and the blocks of {type(family).__name__} need every one."
            yield Problem("plugins", what, fix="Leave tread out, or choose another model.")

    @hookimpl
    def st_block_middleware(self, run: Run) -> list[TokenRoute]:
        if not run.num_blocks:
            # The core says that there is nothing to route, and of whom.
            return [TokenRoute(span, self._selector(run)) for span in spans(self.options, 0)]
        routes = spans(self.options, run.num_blocks)
        found = problems(routes, run.num_blocks)
        if found:
            raise ProblemsFound(found)
        select = self._selector(run)
        for route in routes:
            share = f"{route.drop:.0%} of the tokens skip blocks {route.first}-{route.last} of 0-{run.num_blocks - 1}"
            run.report.note(share, kind="tread")
        return [TokenRoute(route, select, str(number)) for number, route in enumerate(routes)]

    @hookimpl
    def st_step(self, run: Run) -> StepWrapper:
        select = self._selector(run)

        def wrap(step: Step) -> Step:
            def predict(noised: Noised, batch: Batch) -> Tensor:
                with select.predicting(batch):
                    return step.predict(noised, batch)

            return replace(step, predict=predict)

        return wrap

    def _selector(self, run: Run) -> Selector:
        if self._select is None:
            seed, each = run.config.seed, run.objective.samples_per_step
            self._select = Selector(seed, each, self.options.importance, run.family.tokens)
        return self._select
