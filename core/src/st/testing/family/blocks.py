"""BlocksTests: where tokens pass through a family's denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.testing.examples import example_batch, example_noised, row
from st.testing.family.subject import FamilyTests
from st.testing.subjects.routes import KeepTokens, Tap

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st.diffusion.objective import Batch, Noised
    from st.model.family import ModelFamily
    from st.model.inside.blocks import BlockMiddleware

WRONG = "does not say where the picture's tokens are beside a longer caption"


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

    def test_taps_read_the_same_tokens_alone_and_batched(self, family: ModelFamily[Any], denoiser: nn.Module) -> None:
        together, alone = Tap(), Tap()
        both, single = self.uneven(family)

        self.predict(family, denoiser, *both, together)
        self.predict(family, denoiser, *single, alone)

        for block, tokens in together.outputs.items():
            self.agree(alone.outputs[block][0], tokens[0])

    def test_dropped_tokens_are_the_same_alone_and_batched(self, family: ModelFamily[Any], denoiser: nn.Module) -> None:
        import torch

        both, single = self.uneven(family)
        keep = torch.arange(0, family.tokens(both[1].latents), 2)
        last = self.num_blocks(family, denoiser) - 1

        together = self.predict(family, denoiser, *both, KeepTokens(0, last, keep))
        alone = self.predict(family, denoiser, *single, KeepTokens(0, last, keep))

        self.agree(alone[0], together[0])

    def test_weights_that_come_and_go_give_the_same_gradients(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        from st.model.inside.blocks import BlockStack, find_blocks
        from st.model.inside.placement import settle
        from st.model.inside.recompute import Recompute, RecomputeOptions
        from st.testing.subjects.placement import Away

        self.outside(family, denoiser)
        plain = self.gradients(family, denoiser, noised, batch)
        away, recompute = Away(), Recompute(RecomputeOptions(every=2))
        settle(denoiser, family.blocks(), away, torch.device("cpu"))
        denoiser.zero_grad(set_to_none=True)
        with BlockStack(denoiser, family.blocks(), [recompute], away):
            torch.autograd.backward(family.predict(denoiser, noised, batch).float().square().sum())
        placed = {name: p.grad for name, p in denoiser.named_parameters() if p.grad is not None}

        assert len(away.calls) >= len(find_blocks(denoiser, family.blocks()))
        assert placed.keys() == plain.keys() != set()
        assert [name for name in plain if not torch.equal(plain[name], placed[name])] == []

    def outside(self, family: ModelFamily[Any], denoiser: nn.Module) -> None:
        """Let everything learn that lies outside of blocks."""
        from st.model.inside.blocks import find_blocks

        denoiser.requires_grad_(True)
        for block, _ in find_blocks(denoiser, family.blocks()):
            block.requires_grad_(False)

    def uneven(self, family: ModelFamily[Any]) -> tuple[tuple[Noised, Batch], tuple[Noised, Batch]]:
        """Two samples, of which the first has far fewer words, and the first as it is encoded by itself."""
        from dataclasses import replace

        short, long = "a", "a much longer caption that is there so that the first one is padded"
        batch = example_batch(family, self.geometries[0], (short, long))
        noised = example_noised(family, batch)
        first, noised_first = row(batch, noised, 0)
        unpadded = example_batch(family, self.geometries[0], (short,)).conditions
        return (noised, batch), (noised_first, replace(first, conditions=unpadded))

    def agree(self, alone: Tensor, together: Tensor) -> None:
        """Whether tokens are those of the same places."""
        import torch

        # Without padding, matrix products are of another size and may add in another order.
        torch.testing.assert_close(
            alone, together, rtol=1e-4, atol=1e-5, msg=lambda said: f"the TokenStream {WRONG}\n{said}"
        )

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
