"""LatentsTests: what a family says of latents that are more than one tensor at one time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from st.model.streams import PlacesTimes, streams_of
from st.testing.examples import encoded, example_inputs, example_noised
from st.testing.family.subject import FamilyTests

if TYPE_CHECKING:
    from torch import nn

    from st.data.geometry import Geometry
    from st.diffusion.objective import Batch, Noised
    from st.model.family import ModelFamily


class LatentsTests(FamilyTests):
    """Skipped by families of one stream whose positions share a time."""

    def test_further_streams_say_their_shape(self, family: ModelFamily[Any], geometry: Geometry) -> None:
        import torch

        for name, codec in self.further(family):
            (entry, *_) = encoded(codec, example_inputs(codec, geometry), torch.device("cpu"))

            assert codec.latent_shape(geometry) == tuple(entry["latents"].shape), name
            assert set(entry) == {"latents"}, f"{name}: further tensors of a further stream reach no batch"

    def test_the_first_stream_is_the_codecs(self, family: ModelFamily[Any], batch: Batch) -> None:
        import torch

        self.further(family)

        assert torch.equal(next(iter(batch.streams.values())), batch.latents)
        assert next(iter(streams_of(family).values())).fingerprint == family.codec().fingerprint

    def test_a_missing_stream_says_nothing_to_the_others(
        self, family: ModelFamily[Any], denoiser: nn.Module, batch: Batch
    ) -> None:
        import torch

        layout = batch.layout
        for name, _ in self.further(family):
            assert layout is not None
            gone = torch.zeros(len(batch.keys), dtype=torch.bool)
            gone[0] = True
            lacking = replace(batch, lacking={name: gone})
            noised = example_noised(family, lacking)
            parts = layout.split(noised.x)
            other = replace(noised, x=layout.join(parts | {name: parts[name] + 1}))

            before = layout.split(family.predict(denoiser, noised, lacking))
            after = layout.split(family.predict(denoiser, other, lacking))

            for stream in layout.shapes:
                if stream != name:
                    assert torch.equal(after[stream][0], before[stream][0]), f"{stream} heard {name}"
                    assert not torch.equal(after[stream][1], before[stream][1]), f"{stream} ignores {name}"

    def test_every_stream_depends_on_the_others(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        self.further(family)
        layout = batch.layout
        assert layout is not None
        parts, plain = layout.split(noised.x), layout.split(family.predict(denoiser, noised, batch))

        for changed in parts:
            x = layout.join(parts | {changed: parts[changed] + 1})
            found = layout.split(family.predict(denoiser, replace(noised, x=x), batch))

            assert all(not torch.equal(found[name], plain[name]) for name in parts), changed

    def test_what_is_given_is_shown_clean_and_stays(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        from st.diffusion.layout import broadcast
        from st.diffusion.sampler import sample, times

        if not isinstance(family, PlacesTimes) or noised.t.ndim == 1:
            pytest.skip("every position has the time of its sample")
        given = (broadcast(noised.t, noised.x.shape) == 0).expand_as(noised.x)
        start = family.start(noised.noise, batch)

        with torch.no_grad():
            made = sample(
                lambda x, t: family.predict(denoiser, replace(noised, x=x, t=t), batch),
                family.path,
                family.target,
                start,
                times(2),
                positions=lambda t: family.times(t, batch, None),
            )

        assert torch.equal(noised.x[given], noised.clean[given])
        assert torch.equal(start[given], noised.clean[given])
        assert torch.equal(made[given], noised.clean[given])
        assert torch.isfinite(made).all()

    def further(self, family: ModelFamily[Any]) -> list[tuple[str, Any]]:
        """The streams beside the first, with their codecs."""
        found = list(streams_of(family).items())[1:]
        if not found:
            pytest.skip("it makes one stream")
        return found
