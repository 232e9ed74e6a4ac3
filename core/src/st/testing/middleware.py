"""BlockMiddlewareTests: what every block middleware promises."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from st.model.inside.blocks import BlockStack, Layer
from st.testing.declared import Conformance
from st.testing.examples import example_batch, example_noised
from st.testing.subjects.routes import Tap
from st.testing.subjects.tiny import TinyFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from st.diffusion.objective import Batch, Noised
    from st.model.inside.blocks import BlockMiddleware

    Build = Callable[[], BlockMiddleware]


class BlockMiddlewareTests(Conformance):
    """Subclass it beside a ``build`` fixture: a function that makes the middleware anew, in the same state each time.

    It surrounds the three blocks of TinyFamily.
    """

    @pytest.fixture
    def build(self) -> Build:
        """Makes the middleware under test; every subclass gives its own."""
        raise NotImplementedError("give the test class a `build` fixture: a function that makes the middleware")

    @pytest.fixture
    def family(self, tmp_path: Path) -> TinyFamily:
        """The family whose blocks are surrounded."""
        return TinyFamily.tiny(tmp_path / "tiny")

    @pytest.fixture
    def denoiser(self, family: TinyFamily) -> nn.Module:
        """Its denoiser, every weight learning."""
        import torch

        return family.load_denoiser(torch.device("cpu"), torch.float32)

    @pytest.fixture
    def batch(self, family: TinyFamily) -> Batch:
        """Two samples of 64 tokens."""
        from st.data.geometry import Geometry

        return example_batch(family, Geometry(64, 64))

    @pytest.fixture
    def noised(self, family: TinyFamily, batch: Batch) -> Noised:
        """The batch on its way to noise."""
        return example_noised(family, batch)

    def test_claims_lie_inside_the_denoiser(self, build: Build, family: TinyFamily, denoiser: nn.Module) -> None:
        claims = build().claims(3)

        assert set(claims.drops_tokens) | claims.reads_all_tokens <= {0, 1, 2}

    def test_claims_are_honest(
        self, build: Build, family: TinyFamily, denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        middleware, tap = build(), Tap()
        total = family.tokens(batch.latents)

        with BlockStack(denoiser, family.blocks(), [tap, middleware]), torch.enable_grad():
            family.predict(denoiser, noised, batch)

        missing = {index for index, tokens in tap.outputs.items() if tokens.shape[1] < total}
        assert missing == set(middleware.claims(3).drops_tokens)

    def test_it_is_off_outside_training(
        self, build: Build, family: TinyFamily, denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        with torch.no_grad():
            plain = family.predict(denoiser, noised, batch)
            with BlockStack(denoiser, family.blocks(), [build()]):
                surrounded = family.predict(denoiser, noised, batch)

        assert torch.equal(surrounded, plain)

    def test_it_survives_recomputation(
        self, build: Build, family: TinyFamily, denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        from st.model.inside.recompute import Recompute, RecomputeOptions

        if build().layer is Layer.RECOMPUTE:
            pytest.skip("it is the recomputation")
        kept = self.gradients(family, denoiser, noised, batch, [build()])
        recomputed = self.gradients(family, denoiser, noised, batch, [build(), Recompute(RecomputeOptions(every=1))])

        assert [name for name in kept if not torch.equal(kept[name], recomputed[name])] == []

    def test_it_survives_a_copy_of_the_denoiser(
        self, build: Build, family: TinyFamily, denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        with BlockStack(denoiser, family.blocks(), [build()]), torch.no_grad():
            copy = deepcopy(denoiser)
            for parameter in denoiser.parameters():
                parameter.zero_()
            copied = family.predict(copy, noised, batch)

        assert copied.any()

    def test_a_denoiser_is_left_as_it_was_found(
        self, build: Build, family: TinyFamily, denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        names = list(denoiser.state_dict())
        plain = family.predict(denoiser, noised, batch)

        with BlockStack(denoiser, family.blocks(), [build()]):
            assert list(denoiser.state_dict()) == names

        assert torch.equal(family.predict(denoiser, noised, batch), plain)

    def test_its_state_restores(
        self, build: Build, family: TinyFamily, denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        used: Any = build()
        if not hasattr(used, "state_dict"):
            pytest.skip("it has no state")
        self.gradients(family, denoiser, noised, batch, [used])
        restored: Any = build()
        restored.load_state_dict(deepcopy(used.state_dict()))

        expected = self.gradients(family, denoiser, noised, batch, [used])
        actual = self.gradients(family, denoiser, noised, batch, [restored])

        assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []

    def gradients(
        self,
        family: TinyFamily,
        denoiser: nn.Module,
        noised: Noised,
        batch: Batch,
        around: Sequence[BlockMiddleware],
    ) -> dict[str, Tensor]:
        """Gradients of the summed squares of the prediction, by parameter."""
        import torch

        denoiser.zero_grad(set_to_none=True)
        with BlockStack(denoiser, family.blocks(), around):
            torch.autograd.backward(family.predict(denoiser, noised, batch).square().sum())
        return {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}
