"""Claims that contradict are refused in words."""

from __future__ import annotations

import pytest

from st import BlockCall, BlockResult, Claims, Layer, Proceed
from st.model.inside.claims import check_claims


class Claiming:
    """A middleware that does nothing but claim."""

    layer = Layer.TAP

    def __init__(self, claimed: Claims) -> None:
        self.claimed = claimed

    def claims(self, count: int) -> Claims:
        return self.claimed

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        return proceed(call)


ROUTE = ("skip", Claiming(Claims(drops_tokens=range(2, 24), settings=("first", "last"))))


def reading(*blocks: int) -> tuple[str, Claiming]:
    return "align", Claiming(Claims(reads_all_tokens=frozenset(blocks), settings=("block",)))


def test_a_reader_inside_a_route_is_refused_in_words() -> None:
    (problem,) = check_claims([ROUTE, reading(8)], 30)

    assert problem.where == "align.block"
    assert problem.what == "align reads every token of block 8, but skip drops tokens in blocks 2-24."
    assert problem.fix == "Set align.block below 2 or above 24, or move skip.first / skip.last."


@pytest.mark.parametrize("block", [0, 1, 24, 29])
def test_a_reader_outside_the_route_is_fine(block: int) -> None:
    assert check_claims([reading(block), ROUTE], 30) == []


def test_only_the_blocks_in_the_way_are_named() -> None:
    (problem,) = check_claims([ROUTE, reading(1, 8, 12)], 30)

    assert problem.what.startswith("align reads every token of blocks 8, 12, but")


def test_a_block_that_does_not_exist_is_refused() -> None:
    (problem,) = check_claims([reading(30)], 30)

    assert problem.what == "align asks for block 30, but this denoiser has blocks 0-29."


def test_two_routes_may_follow_each_other_and_not_overlap() -> None:
    after = ("other", Claiming(Claims(drops_tokens=range(25, 28))))
    over = ("other", Claiming(Claims(drops_tokens=range(24, 28))))

    assert check_claims([ROUTE, after], 30) == []
    assert [problem.what for problem in check_claims([ROUTE, over], 30)] == [
        "skip and other both drop tokens, in blocks 2-24 and blocks 24-28."
    ]


def test_a_route_keeps_clear_of_blocks_that_need_every_token() -> None:
    (problem,) = check_claims([ROUTE], 30, whole=range(20, 30))

    assert problem.what == "skip drops tokens in blocks 2-24, but block 20 needs every token."
