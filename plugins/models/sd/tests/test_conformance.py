"""The family keeps the promises of every family, and is held to the upstream pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from st.testing import PipelineFamilyTests, not_applicable
from st_sd import Sd

# A guard of diffusers warns where the text encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CONVOLVES = not_applicable("the U-Net changes its resolution, and convolves between its transformer blocks")


class TestFirst(PipelineFamilyTests):
    test_token_count_matches_the_stream = CONVOLVES
    test_dropping_no_tokens_changes_nothing = CONVOLVES
    test_dropped_tokens_rejoin_unchanged = CONVOLVES
    test_routed_tokens_have_gradients = CONVOLVES
    test_dropped_tokens_are_the_same_alone_and_batched = CONVOLVES

    @pytest.fixture
    def family(self, make: Callable[..., Sd]) -> Sd:
        return make("1.5")

    def times(self, scheduler: Any) -> Sequence[float]:
        return [*((float(index) + 1) / 1000 for index in scheduler.timesteps), 0.0]


@pytest.mark.alone
class TestSecond(TestFirst):
    @pytest.fixture
    def family(self, make: Callable[..., Sd]) -> Sd:
        return make("2.1")
