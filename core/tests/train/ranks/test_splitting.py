"""Weights are split block by block, and no more than one block is ever whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from st.model.inside.blocks import find_blocks
from st.testing.subjects.tiny import TinyFamily
from st.train.ranks.fsdp import Fsdp
from st.train.ranks.ranks import RanksOptions


class Watched(Fsdp):
    """Notes, before and after each unit, the whole weights that are alive."""

    def watch(self, weights: list[nn.Parameter]) -> None:
        self.weights, self.before, self.after, self.units = weights, [], [], []

    def _split(self, unit: nn.Module, denoiser: nn.Module) -> None:
        self.units.append(unit)
        self.before.append(self._whole())
        super()._split(unit, denoiser)
        self.after.append(self._whole())

    def _whole(self) -> int:
        return sum(weight.numel() for weight in self.weights)


@pytest.fixture
def engine() -> Iterator[Watched]:
    one = Watched(torch.device("cpu"), RanksOptions())
    yield one
    one.close(clean=True)


def test_each_unit_lets_go_of_its_whole_weights_before_the_next_is_brought(engine: Watched, tmp_path: Path) -> None:
    family = TinyFamily.tiny(tmp_path / "tiny")
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
    expected: dict[str, Tensor] = {name: one.detach().clone() for name, one in denoiser.named_parameters()}
    blocks = [block for block, _ in find_blocks(denoiser, family.blocks())]
    sizes = [sum(one.numel() for one in block.parameters()) for block in blocks]
    engine.watch(list(denoiser.parameters()))

    engine.shard(denoiser, family.blocks())

    assert engine.units == [*blocks, denoiser]
    assert [first - then for first, then in zip(engine.before, engine.after, strict=True)][: len(blocks)] == sizes
    assert engine.before[1:] == engine.after[:-1]
    assert engine.after[-1] == 0
    for name, parameter in denoiser.named_parameters():
        assert torch.equal(parameter.full_tensor(), expected[name]), name  # type: ignore[attr-defined]
