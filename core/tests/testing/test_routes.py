"""The kit's middleware passes the kit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from st.model.inside.blocks import BlockCall, BlockResult, Proceed
from st.model.inside.recompute import Recompute, RecomputeOptions
from st.testing import BlockMiddlewareTests, not_applicable
from st.testing.subjects.routes import KeepTokens, Tap


class TestTap(BlockMiddlewareTests):
    @pytest.fixture
    def build(self) -> Callable[[], Tap]:
        return Tap


class TestKeepTokens(BlockMiddlewareTests):
    test_it_is_off_outside_training = not_applicable("tests route in eval mode too")

    @pytest.fixture
    def build(self) -> Callable[[], KeepTokens]:
        return lambda: KeepTokens(0, 1, torch.arange(0, 64, 2))


class TestRecompute(BlockMiddlewareTests):
    @pytest.fixture
    def build(self) -> Callable[[], Recompute]:
        return lambda: Recompute(RecomputeOptions(every=1))


class Lottery(KeepTokens):
    """Drops another half of the tokens in each pass of training."""

    def __init__(self) -> None:
        super().__init__(0, 1, torch.arange(64))
        self.passes = 0

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        if not torch.is_grad_enabled():
            return proceed(call)
        if call.index == 0:
            order = torch.randperm(call.total, generator=torch.Generator().manual_seed(self.passes))
            self.keep = order[: call.total // 2].sort().values
            self.passes += 1
        return super().__call__(call, proceed)

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self.passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passes = state["passes"]


class TestLottery(BlockMiddlewareTests):
    @pytest.fixture
    def build(self) -> Callable[[], Lottery]:
        return Lottery
