"""PipelineFamilyTests: a family is held to the diffusers pipeline that its users load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from st.data.geometry import Geometry
from st.testing.declared import not_applicable
from st.testing.family import ModelFamilyTests

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from st.diffusion.objective import Batch
    from st.model.pipelines.pipeline_family import PipelineFamily


@dataclass
class Walk:
    """What a pipeline's scheduler was asked on the way to a picture. asked: (latents, answer, latents after it)."""

    asked: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    times: Sequence[float] = ()
    """Those at which it asked, in [0, 1], then 0."""
    result: Any = None


class PipelineFamilyTests(ModelFamilyTests):
    """Subclass it in place of ``ModelFamilyTests`` for a family whose pipeline takes a prompt and steps a scheduler.

    The pipeline is loaded from the family's own tiny checkpoint, as a user loads it, and asked with texts; the family
    is asked with its cached conditions. So templates, padding, masks, negatives, packing, signs, the scale of time,
    shifts and statistics are all compared at once. A family that needs more says it in the methods here.
    """

    size: ClassVar[Geometry] = Geometry(64, 96)
    strengths: ClassVar[Sequence[float]] = (1.0, 3.0)
    """Strengths of guidance that the pipeline is asked with."""
    wanted: ClassVar[str] = "a red square on a table"
    against: ClassVar[str] = "blurry"
    tolerance: ClassVar[float] = 1e-5
    """Largest difference of one prediction, relative to the largest value of the pipeline's."""

    test_matches_reference = not_applicable(  # type: ignore[assignment]
        "each of the pipeline's steps is compared, with and without guidance"
    )

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        super().pytest_generate_tests(metafunc)
        if "strength" in metafunc.fixturenames:
            metafunc.parametrize("strength", self.strengths)

    @pytest.fixture
    def upstream(self, family: PipelineFamily[Any], denoiser: nn.Module) -> Any:
        """The pipeline, in float32, with the denoiser of these tests."""
        import diffusers

        pipeline = getattr(diffusers, family.pipeline).from_pretrained(family.folder.location)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.register_modules(**{family.denoiser: denoiser})
        return pipeline

    def call(self, family: PipelineFamily[Any]) -> Mapping[str, Any]:
        """What a user gives the pipeline, beside texts and sizes, for what the family's options say."""
        return {**family.prompt_arguments(), **family.render_arguments(self.size)}

    def ours(self, latents: Tensor) -> Tensor:
        """The pipeline's latents as the family has them, (B, C, [F,] h, w); overridden where the pipeline packs."""
        return latents

    def combined(self, wanted: Tensor, against: Tensor, strength: float) -> Tensor:
        """How the pipeline guides where the family says nothing of it; overridden where that is not the plain sum."""
        return against + strength * (wanted - against)

    def extras(self, family: PipelineFamily[Any]) -> Mapping[str, Tensor]:
        """``Batch.extras`` of a sample that the pipeline's call is given too, such as references."""
        return {}

    def times(self, scheduler: Any) -> Sequence[float]:
        """The times of a walk as the family counts them, then 0."""
        times: Sequence[float] = scheduler.sigmas.tolist()
        return times

    def test_every_step_of_the_pipeline_is_the_familys(
        self, family: PipelineFamily[Any], denoiser: nn.Module, upstream: Any, strength: float
    ) -> None:
        import torch

        walk = self.walked(family, upstream, strength, "latent")
        predict = self.predictor(family, denoiser, strength)

        assert len(walk.times) == len(walk.asked) + 1 >= 3
        with torch.no_grad():
            for (latents, answer, _), time in zip(walk.asked, walk.times, strict=False):
                x, expected = self.ours(latents.float()), self.ours(answer.float())
                ours = predict(x, x.new_full((len(x),), time))
                assert float((ours - expected).abs().max()) <= self.tolerance * max(1.0, float(expected.abs().max()))

    def test_the_sampler_draws_what_the_pipeline_draws(
        self, family: PipelineFamily[Any], denoiser: nn.Module, upstream: Any, strength: float
    ) -> None:
        import torch

        from st.diffusion.sampler import sample

        walk = self.walked(family, upstream, strength, "latent")
        predict, start = self.predictor(family, denoiser, strength), self.ours(walk.asked[0][0].float())

        with torch.no_grad():
            latents = sample(predict, family.path, family.target, start, walk.times)

        expected = self.ours(walk.asked[-1][2].float())
        assert float((latents - expected).abs().max()) <= self.reference_tolerance

    def test_a_preview_is_the_pipelines(
        self, family: PipelineFamily[Any], denoiser: nn.Module, upstream: Any, strength: float
    ) -> None:
        """Bit for bit: so are the conditions, whatever template, padding and masks they went through."""
        import torch

        from st.model.shot import Shot

        wanted, against = self.told(family)
        shot = Shot(wanted, against if strength > 1 else None, self.size, seed=5, steps=2, guidance=strength)

        with torch.no_grad():
            picture = family.render(denoiser, shot)
        expected = self.walked(family, upstream, strength, "pt", steps=2).result

        assert torch.equal(picture, expected.reshape(picture.shape))

    def test_times_are_shifted_as_the_pipeline_shifts_them(
        self, family: PipelineFamily[Any], batch: Batch, upstream: Any
    ) -> None:
        from st.diffusion.shift import shift

        walk = self.walked(family, upstream, 1.0, "latent")
        latents = self.ours(walk.asked[0][0])

        even = self.unshifted(len(walk.asked), upstream.scheduler)
        k = family.time_shift(family.tokens(latents))

        expected = ended([shift(time, k) for time in even], upstream.scheduler)
        assert expected == pytest.approx(list(walk.times), abs=1e-4)

    def test_decoded_latents_are_the_pipelines(self, family: PipelineFamily[Any], upstream: Any) -> None:
        import torch

        latents = self.ours(self.walked(family, upstream, 1.0, "latent", steps=2).asked[-1][2])
        expected = self.walked(family, upstream, 1.0, "pt", steps=2).result

        with family.codec().decoder(torch.device("cpu")) as decode:
            decoded = decode(latents)

        torch.testing.assert_close(decoded.reshape(expected.shape), expected, rtol=0, atol=1e-5)

    def test_encoded_pictures_are_the_autoencoders(self, family: PipelineFamily[Any], batch: Batch) -> None:
        """Latents without their statistics are what the autoencoder finds likeliest."""
        import torch

        from st.testing.examples import example_inputs

        codec: Any = family.codec()
        autoencoder = codec.load(torch.device("cpu"))
        pixels = [one.pixels for one in example_inputs(codec, self.geometries[0])]
        media = torch.stack([one for one in pixels if one is not None]) * 2 - 1

        with torch.no_grad():
            encoded = autoencoder.encode(media.unsqueeze(2) if codec.takes_frames and media.ndim == 4 else media)
        answer = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent

        torch.testing.assert_close(codec.denormalise(autoencoder, batch.latents.float()), answer, rtol=1e-5, atol=1e-5)

    def unshifted(self, steps: int, scheduler: Any) -> Sequence[float]:
        """The pipeline's times before they are shifted, then 0: evenly spread from 1 to 1 / steps."""
        return [*(1 - step / steps for step in range(steps)), 0.0]

    def told(self, family: PipelineFamily[Any]) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The conditions of both texts, each read as what it is used for."""
        return self.conditions(family, self.wanted), self.conditions(family, self.against, "negative")

    def predictor(
        self, family: PipelineFamily[Any], denoiser: nn.Module, strength: float
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) to what the family answers for the two texts, combined."""
        from st.diffusion.objective import Batch, Noised
        from st.model.shot import Guides

        combine = family.guide if isinstance(family, Guides) else self.combined
        conditions = self.told(family)
        extras = self.extras(family)

        def ask(x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
            batch = Batch(("a",), (0,), "a", latents=x, conditions=told, extras=extras)
            return family.predict(denoiser, Noised(x=x, t=t, clean=x, noise=x), batch)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            wanted = ask(x, t, conditions[0])
            return wanted if strength <= 1 else combine(wanted, ask(x, t, conditions[1]), strength)

        return predict

    def walked(
        self, family: PipelineFamily[Any], pipeline: Any, strength: float, output: str, *, steps: int = 4
    ) -> Walk:
        """The pipeline asked for a picture by its texts, and what its scheduler was asked on the way."""
        import inspect

        import torch

        walk, step = Walk(), pipeline.scheduler.step

        def told(answer: Tensor, time: Any, latents: Tensor, *args: Any, **keywords: Any) -> Any:
            stepped = step(answer, time, latents, *args, **keywords)
            after = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
            walk.asked.append((latents.clone(), answer.clone(), after.clone()))
            return stepped

        known = inspect.signature(pipeline.__call__).parameters
        wanted = {
            "prompt": self.wanted,
            "height": self.size.height,
            "width": self.size.width,
            "num_inference_steps": steps,
            family.guidance: strength,
            "negative_prompt": self.against if strength > 1 else None,
            "generator": torch.Generator().manual_seed(5),
            "output_type": output,
            "return_dict": False,
            **self.call(family),
        }
        pipeline.scheduler.step = told
        try:
            with torch.no_grad():
                walk.result = pipeline(**{name: one for name, one in wanted.items() if name in known})[0]
        finally:
            pipeline.scheduler.step = step
        walk.times = self.times(pipeline.scheduler)
        return walk


def ended(times: Sequence[float], scheduler: Any) -> list[float]:
    """Shifted times, 0 at their end, as a scheduler with ``shift_terminal`` stretches them, for its pictures alone."""
    terminal = scheduler.config.get("shift_terminal")
    if not terminal:
        return list(times)
    last = 1 - times[-2]
    return [*(1 - (1 - time) / last * (1 - terminal) for time in times[:-1]), 0.0]
