"""The family keeps the promises of every family, and is held to the upstream pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from st.testing import PipelineFamilyTests, not_applicable
from st_kolors import Kolors

# A guard of diffusers warns where the text encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CONVOLVES = not_applicable("the U-Net changes its resolution, and convolves between its transformer blocks")


class TestKolors(PipelineFamilyTests):
    # At the last of 1100 times a thirtieth of the picture is left, and rounding of the first step grows as much.
    reference_tolerance = 5e-4
    test_token_count_matches_the_stream = CONVOLVES
    test_dropping_no_tokens_changes_nothing = CONVOLVES
    test_dropped_tokens_rejoin_unchanged = CONVOLVES
    test_routed_tokens_have_gradients = CONVOLVES
    test_dropped_tokens_are_the_same_alone_and_batched = CONVOLVES

    @pytest.fixture
    def family(self, make: Callable[..., Kolors]) -> Kolors:
        return make()

    def times(self, scheduler: Any) -> Sequence[float]:
        return [*((float(index) + 1) / 1100 for index in scheduler.timesteps), 0.0]

    def extras(self, family: Kolors) -> Mapping[str, Tensor]:
        size = torch.tensor([[self.size.height, self.size.width]])
        return {"original_size": size, "crop": torch.zeros_like(size), "target_size": size}
