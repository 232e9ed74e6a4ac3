"""The kit on a placement that copies weights, and on ones that do not keep their promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from st.model.inside.placement import Direction
from st.testing import PlacementTests, TinyFamily
from st.testing.subjects.placement import Away


class Copying:
    """A block's weights are copies while it computes, and on the host otherwise."""

    def adopt(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        self.host: list[dict[nn.Parameter, Tensor]] = [
            {one: one.data for one in block.parameters() if not one.requires_grad} for block in blocks
        ]

    def enter(self, index: int, direction: Direction) -> None:
        for parameter, kept in self.host[index].items():
            parameter.data = kept.to(self.device, copy=True)

    def leave(self, index: int, direction: Direction) -> None:
        for parameter, kept in self.host[index].items():
            parameter.data.fill_(torch.nan)
            parameter.data = kept


class TestCopying(PlacementTests):
    @pytest.fixture
    def build(self) -> Callable[[], Copying]:
        return Copying


class Forwards(Copying):
    """Does not come back for backward."""

    def enter(self, index: int, direction: Direction) -> None:
        if direction == "forward":
            super().enter(index, direction)
        else:
            self.leave(index, direction)


@pytest.mark.parametrize(
    ("build", "test"),
    [
        (Forwards, lambda kit, *given: kit.test_weights_that_are_away_are_whole_and_readable(*given)),
        (Away, lambda kit, *given: kit.test_weights_that_are_away_are_whole_and_readable(*given)),
    ],
    ids=["forwards", "away"],
)
def test_the_kit_finds_what_breaks_its_promise(
    tmp_path: Path, build: Callable[[], Away], test: Callable[..., None]
) -> None:
    with pytest.raises(AssertionError):
        test(PlacementTests(), build, TinyFamily.tiny(tmp_path))
