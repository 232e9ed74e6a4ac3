"""Middleware around blocks: exact where nothing changes, and gone without a trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st import BlockCall, BlockGroup, BlockResult, Claims, Layer, Proceed, StError, TokenStream
from st.errors import PluginError
from st.model.inside.blocks import BlockStack, find_blocks
from st.model.inside.compiling import CompileOptions, compile_blocks
from st.model.inside.recompute import Recompute, RecomputeOptions


class Tap:
    """Remembers how many tokens each block left."""

    layer = Layer.TAP

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def claims(self, count: int) -> Claims:
        return Claims()

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        result = proceed(call)
        self.counts.setdefault(call.index, result.tokens.shape[1])
        return result


class Route:
    """Keeps the same tokens every time, so that two runs can be compared."""

    layer = Layer.ROUTE

    def __init__(self, first: int, last: int, drop: float) -> None:
        self.first, self.last, self.drop = first, last, drop

    def claims(self, count: int) -> Claims:
        return Claims(drops_tokens=range(self.first, self.last))

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        if not torch.is_grad_enabled() or not self.first <= call.index <= self.last:
            return proceed(call)
        if call.index == self.first:
            self.everything = call.tokens
            order = torch.randperm(call.total, generator=torch.Generator().manual_seed(3))
            call = call.dropping(order[: call.total - round(call.total * self.drop)].sort().values)
        result = proceed(call)
        if call.index == self.last:
            assert call.keep is not None
            result = result.restoring(self.everything.index_copy(1, call.keep, result.tokens))
        return result


# Dynamo looks at the gradient of every tensor it meets, and torch warns about those that have none.
compiles = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
RECOMPUTE = Recompute(RecomputeOptions(every=1))
SECOND = Recompute(RecomputeOptions(every=2))


def assert_identical(actual: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(actual[0], expected[0])
    assert actual[1].keys() == expected[1].keys()
    different = [name for name, gradient in actual[1].items() if not torch.equal(gradient, expected[1][name])]
    assert different == []


@pytest.mark.parametrize(
    "middleware",
    [[Tap()], [RECOMPUTE], [SECOND], [Route(1, 2, 0.0)], [Route(1, 2, 0.0), RECOMPUTE, Tap()]],
    ids=["tap", "recompute", "interval", "route", "all"],
)
def test_what_changes_nothing_is_bit_identical(case: Any, middleware: list[Any]) -> None:
    expected = case.run()

    with BlockStack(case.denoiser, case.groups, middleware):
        actual = case.run()

    assert_identical(actual, expected)


@pytest.mark.parametrize("recompute", [RECOMPUTE, SECOND], ids=["every", "second"])
def test_a_route_has_the_same_gradients_with_and_without_recompute(case: Any, recompute: Recompute) -> None:
    with BlockStack(case.denoiser, case.groups, [Route(1, 2, 0.5)]):
        expected = case.run()

    with BlockStack(case.denoiser, case.groups, [recompute, Route(1, 2, 0.5)]):
        actual = case.run()

    assert_identical(actual, expected)


def test_a_route_changes_the_prediction(case: Any) -> None:
    unchanged, _ = case.run()

    with BlockStack(case.denoiser, case.groups, [Route(1, 2, 0.5)]):
        changed, _ = case.run()

    assert not torch.equal(changed, unchanged)


def test_taps_see_fewer_tokens_inside_the_route_alone(case: Any) -> None:
    tap = Tap()

    with BlockStack(case.denoiser, case.groups, [Route(1, 2, 0.5), tap]):
        case.run()

    blocks = len(find_blocks(case.denoiser, case.groups))
    assert tap.counts == {index: case.tokens // 2 if index == 1 else case.tokens for index in range(blocks)}


def test_a_pass_that_failed_inside_a_route_does_not_disturb_the_next(case: Any) -> None:
    class Fails(Tap):
        failing = True

        def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
            if self.failing and call.index == 2:
                raise RuntimeError("out of memory")
            return proceed(call)

    tap = Fails()
    with BlockStack(case.denoiser, case.groups, [Route(1, 2, 0.5)]):
        expected = case.run()

    with BlockStack(case.denoiser, case.groups, [Route(1, 2, 0.5), tap]):
        with pytest.raises(RuntimeError, match="out of memory"):
            case.run()
        tap.failing = False
        actual = case.run()

    assert_identical(actual, expected)


def test_names_and_weights_do_not_change(case: Any) -> None:
    names = [name for name, _ in case.denoiser.named_modules()]
    state = {name: tensor.clone() for name, tensor in case.denoiser.state_dict().items()}

    with BlockStack(case.denoiser, case.groups, [Tap()]):
        assert [name for name, _ in case.denoiser.named_modules()] == names
        assert list(case.denoiser.state_dict()) == list(state)


def test_removal_leaves_the_denoiser_as_it_was(case: Any) -> None:
    blocks = [block for block, _ in find_blocks(case.denoiser, case.groups)]
    before = [set(block.__dict__) for block in blocks]

    with BlockStack(case.denoiser, case.groups, [Tap()]):
        assert all("forward" in block.__dict__ for block in blocks)

    assert [set(block.__dict__) for block in blocks] == before
    assert not case.denoiser._forward_pre_hooks


def test_without_middleware_nothing_is_installed(case: Any) -> None:
    BlockStack(case.denoiser, case.groups, [])

    assert not any("forward" in block.__dict__ for block, _ in find_blocks(case.denoiser, case.groups))
    assert not case.denoiser._forward_pre_hooks


@compiles
@pytest.mark.parametrize(("name", "compiled"), [("sd3", False), ("flux", False), ("wan", False), ("wan", True)])
def test_a_copy_is_independent_of_its_original(make_case: Callable[[str], Any], name: str, compiled: bool) -> None:
    case = make_case(name)
    compile_blocks(case.denoiser, case.groups, CompileOptions(blocks=compiled, backend="eager"))
    with BlockStack(case.denoiser, case.groups, [Route(1, 2, 0.5), RECOMPUTE]):
        expected = case.run()
        copy = deepcopy(case.denoiser)
        with torch.no_grad():
            for parameter in case.denoiser.parameters():
                parameter.zero_()

        actual = case.run(copy)

    assert_identical(actual, expected)
    assert all(block.forward.__self__ is block for block, _ in find_blocks(copy, case.groups))


def test_a_copy_shares_the_middleware_and_nothing_else(make_case: Callable[[str], Any]) -> None:
    class HoldsARun(Tap):
        def __deepcopy__(self, memo: dict[int, Any]) -> HoldsARun:
            raise AssertionError("a run was copied")

    case = make_case("sd3")

    with BlockStack(case.denoiser, case.groups, [HoldsARun()]) as stack:
        copy = deepcopy(case.denoiser)
        first = copy.transformer_blocks[0]

    assert first._st_place.stack is not stack
    assert first._st_place.stack._chain is stack._chain


@compiles
@pytest.mark.parametrize(("name", "backend"), [("flux", "eager"), ("wan", "aot_eager")])
def test_compiled_blocks_have_no_graph_breaks(make_case: Callable[[str], Any], name: str, backend: str) -> None:
    case = make_case(name)
    middleware = [Route(1, 2, 0.5), RECOMPUTE, Tap()]
    with BlockStack(case.denoiser, case.groups, middleware):
        expected, gradients = case.run()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    kinds = compile_blocks(case.denoiser, case.groups, CompileOptions(blocks=True, backend=backend))
    with BlockStack(case.denoiser, case.groups, middleware):
        prediction, compiled = case.run()

    assert kinds == len({type(block) for block, _ in find_blocks(case.denoiser, case.groups)})
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    # A compiler may reorder sums: the last digits of float32 at gradients of order 1.
    torch.testing.assert_close(prediction, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled, gradients, rtol=1e-4, atol=1e-6)


@compiles
def test_blocks_of_one_class_share_a_graph(make_case: Callable[[str], Any]) -> None:
    case = make_case("wan")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    compile_blocks(case.denoiser, case.groups, CompileOptions(blocks=True, backend="eager"))
    case.run()

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiling_is_off_by_default(make_case: Callable[[str], Any]) -> None:
    case = make_case("wan")

    assert compile_blocks(case.denoiser, case.groups, CompileOptions()) == 0
    assert not any("forward" in block.__dict__ for block in case.denoiser.blocks)


def test_recompute_repeats_dropout(make_case: Callable[[str], Any]) -> None:
    case = make_case("wan")
    for block in case.denoiser.blocks:
        block.ffn.net.append(nn.Dropout(0.5))
    torch.manual_seed(7)
    expected = case.run()

    torch.manual_seed(7)
    with BlockStack(case.denoiser, case.groups, [RECOMPUTE]):
        actual = case.run()

    assert_identical(actual, expected)


def test_recompute_runs_each_block_again(make_case: Callable[[str], Any]) -> None:
    case = make_case("wan")
    calls: list[int] = []
    for index, block in enumerate(case.denoiser.blocks):
        block.norm1.register_forward_hook(lambda *_, index=index: calls.append(index))

    with BlockStack(case.denoiser, case.groups, [SECOND]):
        case.run()

    assert sorted(calls) == [0, 0, 1, 2, 2, 3]


def test_a_shared_sequence_needs_a_count(make_case: Callable[[str], Any]) -> None:
    case = make_case("shared")
    groups = [BlockGroup("single_transformer_blocks", TokenStream(place="last"))]

    with pytest.raises(PluginError, match="share their sequence with text"):
        BlockStack(case.denoiser, groups, [Tap()])


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (BlockGroup("blocks", TokenStream(argument="x")), "no argument 'x'"),
        (BlockGroup("layers"), "no blocks at 'layers'"),
    ],
)
def test_a_wrong_declaration_is_refused(make_case: Callable[[str], Any], group: BlockGroup, message: str) -> None:
    case = make_case("wan")

    with pytest.raises(PluginError, match=message):
        BlockStack(case.denoiser, [group], [Tap()])


def test_a_block_that_needs_every_token_refuses_to_lose_one(make_case: Callable[[str], Any]) -> None:
    case = make_case("sd3")
    groups = [BlockGroup("transformer_blocks", TokenStream(returned=1, droppable=False))]

    with BlockStack(case.denoiser, groups, [Route(1, 2, 0.5)]), pytest.raises(StError, match="block 1 needs every"):
        case.run()


class Scale(nn.Module):
    """Its forward is called partly by position, as denoisers do under their own checkpointing."""

    def forward(self, hidden_states: Tensor, factor: float, bias: float = 0.5, *, offset: float) -> Tensor:
        return hidden_states * factor + bias + offset


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Scale() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, 2.0, offset=1.0)
        return x


def test_positional_arguments_and_defaults_are_passed_on() -> None:
    half, tap = Half(), Tap()
    expected = half(torch.ones(1, 3, 2))

    with BlockStack(half, [BlockGroup("blocks")], [tap]):
        actual = half(torch.ones(1, 3, 2))

    assert torch.equal(actual, expected)
    assert tap.counts == {0: 3, 1: 3}


def test_experts_inside_a_container_count_their_own_tokens() -> None:
    experts = nn.ModuleDict({"high": Half(), "low": Half()})
    groups = [BlockGroup("high.blocks"), BlockGroup("low.blocks")]
    tap = Tap()

    with BlockStack(experts, groups, [Route(2, 3, 0.5), tap]):
        experts["low"](torch.ones(1, 6, 2))
        experts["high"](torch.ones(1, 3, 2))

    assert tap.counts == {0: 3, 1: 3, 2: 3, 3: 6}


def test_importing_blocks_leaves_torch_alone() -> None:
    code = (
        "import sys, st.model.inside.blocks, st.model.inside.recompute, st.model.inside.compiling, "
        "st.model.adapters.lora, st.model.adapters.full, "
        "st.model.pipelines.pipeline_family, st.model.files.formats; sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
