"""The kit's middleware passes the kit."""

from collections.abc import Callable

import pytest
import torch

from st.model.recompute import Recompute, RecomputeOptions
from st.testing import BlockMiddlewareTests, not_applicable
from st.testing.routes import KeepTokens, Tap


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
