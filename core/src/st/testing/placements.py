"""PlacementTests: what everything promises that brings the weights of blocks in and sends them away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from st.testing.declared import Conformance
from st.testing.examples import example_batch, example_noised
from st.testing.subjects.tiny import TinyFamily

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from st.model.inside.placement import Placement

    Build = Callable[[], Placement]


class PlacementTests(Conformance):
    """Subclass it beside a ``build`` fixture that makes the placement anew. It places TinyFamily's three blocks."""

    @pytest.fixture
    def build(self) -> Build:
        """Makes the placement under test; every subclass gives its own."""
        raise NotImplementedError("give the test class a `build` fixture: a function that makes the placement")

    @pytest.fixture
    def family(self, tmp_path: Path) -> TinyFamily:
        """The family whose blocks are placed."""
        return TinyFamily.tiny(tmp_path / "tiny")

    @pytest.mark.parametrize("every", [0, 1], ids=["kept", "recomputed"])
    def test_gradients_are_those_of_blocks_that_stay(self, build: Build, family: TinyFamily, every: int) -> None:
        import torch

        expected = self.gradients(family, self.frozen(family), None, every)

        actual = self.gradients(family, self.frozen(family), build(), every)

        assert actual.keys() == expected.keys() != set()
        assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []

    def test_weights_that_are_away_are_whole_and_readable(self, build: Build, family: TinyFamily) -> None:
        import torch

        before = {name: tensor.clone() for name, tensor in self.frozen(family).state_dict().items()}
        denoiser = self.frozen(family)

        self.gradients(family, denoiser, build(), 1)

        after = denoiser.state_dict()
        assert [name for name in before if not torch.equal(after[name].cpu(), before[name])] == []

    def test_a_pass_without_gradients_answers_the_same(self, build: Build, family: TinyFamily) -> None:
        import torch

        from st.data.geometry import Geometry
        from st.model.inside.blocks import BlockStack
        from st.model.inside.placement import settle

        denoiser, batch = self.frozen(family), example_batch(family, Geometry(64, 64))
        noised, placement = example_noised(family, batch), build()
        with torch.no_grad():
            plain = family.predict(denoiser, noised, batch)
            settle(denoiser, family.blocks(), placement, torch.device("cpu"))
            with BlockStack(denoiser, family.blocks(), [], placement):
                placed = family.predict(denoiser, noised, batch)

        assert torch.equal(placed, plain)

    def frozen(self, family: TinyFamily) -> nn.Module:
        """The family's denoiser, whose blocks are frozen."""
        import torch

        denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
        denoiser.get_submodule("blocks").requires_grad_(False)
        return denoiser.train()

    def gradients(
        self, family: TinyFamily, denoiser: nn.Module, placement: Placement | None, every: int
    ) -> dict[str, Tensor]:
        """Gradients of the summed squares of the prediction, by parameter."""
        import torch

        from st.data.geometry import Geometry
        from st.model.inside.blocks import BlockStack
        from st.model.inside.placement import settle
        from st.model.inside.recompute import Recompute, RecomputeOptions

        batch = example_batch(family, Geometry(64, 64))
        if placement is not None:
            settle(denoiser, family.blocks(), placement, torch.device("cpu"))
        around = [Recompute(RecomputeOptions(every=every))] if every else []
        with BlockStack(denoiser, family.blocks(), around, placement):
            torch.autograd.backward(family.predict(denoiser, example_noised(family, batch), batch).square().sum())
        return {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}
