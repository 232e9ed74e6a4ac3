"""BlocksTests: where tokens pass through a family's denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.testing.family.subject import FamilyTests
from st.testing.routes import KeepTokens, Tap

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st.diffusion.objective import Batch, Noised
    from st.model.family import ModelFamily
    from st.model.inside.blocks import BlockMiddleware


class BlocksTests(FamilyTests):
    """A family without ``blocks()`` declares each of these not applicable."""

    def test_token_count_matches_the_stream(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        tap = Tap()

        self.predict(family, denoiser, noised, batch, tap)

        assert tap.inputs, "family.blocks() is empty, or none of its blocks ran"
        assert {tokens.shape[1] for tokens in tap.inputs.values()} == {family.tokens(batch.latents)}
        assert {tokens.shape[0] for tokens in tap.inputs.values()} == {len(batch.keys)}

    def test_no_middleware_changes_nothing(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        plain = family.predict(denoiser, noised, batch)
        names = list(denoiser.state_dict())

        surrounded = self.predict(family, denoiser, noised, batch, Tap())

        assert torch.equal(surrounded, plain)
        assert list(denoiser.state_dict()) == names
        assert torch.equal(family.predict(denoiser, noised, batch), plain)

    def test_recompute_gives_the_same_gradients(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        from st.model.inside.recompute import Recompute, RecomputeOptions

        denoiser.requires_grad_(True)
        plain = self.gradients(family, denoiser, noised, batch)
        recomputed = self.gradients(family, denoiser, noised, batch, Recompute(RecomputeOptions(every=1)))

        assert recomputed.keys() == plain.keys() != set()
        assert [name for name in plain if not torch.equal(plain[name], recomputed[name])] == []

    def test_dropping_no_tokens_changes_nothing(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        plain = family.predict(denoiser, noised, batch)
        everything = torch.arange(family.tokens(batch.latents))
        last = self.num_blocks(family, denoiser) - 1

        routed = self.predict(family, denoiser, noised, batch, KeepTokens(0, last, everything))

        assert torch.equal(routed, plain)

    def test_dropped_tokens_rejoin_unchanged(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        total = family.tokens(batch.latents)
        keep = torch.arange(0, total, 2)
        dropped = torch.arange(1, total, 2)
        count = self.num_blocks(family, denoiser)
        first, last = min(1, count - 1), count - 1
        tap = Tap()

        self.predict(family, denoiser, noised, batch, tap, KeepTokens(first, last, keep))

        assert torch.equal(tap.outputs[last][:, dropped], tap.inputs[first][:, dropped])
        assert not torch.equal(tap.outputs[last][:, keep], tap.inputs[first][:, keep])
        assert [tap.outputs[index].shape[1] for index in range(first, last)] == [len(keep)] * (last - first)

    def test_routed_tokens_have_gradients(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        denoiser.requires_grad_(True)
        keep = torch.arange(0, family.tokens(batch.latents), 2)
        last = self.num_blocks(family, denoiser) - 1

        gradients = self.gradients(family, denoiser, noised, batch, KeepTokens(0, last, keep))

        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())

    def predict(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch, *around: BlockMiddleware
    ) -> Tensor:
        """The prediction with middleware around every block, which is taken off again."""
        from st.model.inside.blocks import BlockStack

        with BlockStack(denoiser, family.blocks(), sorted(around, key=lambda one: one.layer)):
            return family.predict(denoiser, noised, batch)

    def gradients(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch, *around: BlockMiddleware
    ) -> dict[str, Tensor]:
        """Gradients of the summed squares of the prediction, by parameter."""
        import torch

        from st.model.inside.blocks import BlockStack

        denoiser.zero_grad(set_to_none=True)
        with BlockStack(denoiser, family.blocks(), around):
            torch.autograd.backward(family.predict(denoiser, noised, batch).float().square().sum())
        return {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}

    def num_blocks(self, family: ModelFamily[Any], denoiser: nn.Module) -> int:
        """How many blocks the family declares."""
        from st.model.inside.blocks import find_blocks

        return len(find_blocks(denoiser, family.blocks()))
