"""Rendering: pictures of prompts, made by the denoiser in training as its users will make them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from st.data.sample import Media
from st.errors import StError
from st.model.shot import Guides, Shot
from st.model.streams import PlacesTimes, streams_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encoder, Input, LatentCodec
    from st.data.geometry import Geometry
    from st.data.sets.words import Words
    from st.diffusion.objective import Batch, Noised, Objective
    from st.diffusion.sampler import Predict as Ask
    from st.diffusion.sampler import Sampler
    from st.model.family import ModelFamily
    from st.report.files.sound_files import Sound
    from st.report.rendering.prompts import Prompt
    from st.report.rendering.shown import Shown

    Predict = Callable[[Noised, Batch], Tensor]
    Encodings = Mapping[Words, Mapping[str, Tensor]]
    """By caption and facts: what the text encoders gave for it, together, as ``ModelFamily.collate`` takes it."""

T = TypeVar("T")

FAILURES = (
    StError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a family's or library's code raises when one picture cannot be rendered; the others may still be."""


@runtime_checkable
class RendersPictures(Protocol):
    """A family that renders with the pipeline which its users will load the result into."""

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        """Pixels (1, 3, [F,] H, W) in [0, 1], or a sound (1, channels, samples) in [-1, 1]."""
        ...


def encode_texts(
    family: ModelFamily[Any], wanted: Sequence[Words], device: torch.device, encoders: Sequence[Encoder] = ()
) -> Encodings:
    """What the family's text encoders, or those given, say of each; an encoder is loaded once, one at a time."""
    merged: dict[Words, dict[str, Tensor]] = {words: {} for words in wanted}
    for encoder in encoders or family.text_encoders():
        if encoder.reads_samples:
            continue
        with encoder.open(device) as encode:
            entries = encode([words.input(encoder) for words in wanted])
        for words, entry in zip(wanted, entries, strict=True):
            merged[words] |= entry
    return merged


class Renderable(Protocol):
    """What rendering needs of a run."""

    @property
    def family(self) -> ModelFamily[Any]: ...
    @property
    def denoiser(self) -> nn.Module: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that could not be rendered. out_of_memory: whether smaller pictures would help."""

    reason: str
    out_of_memory: bool


@dataclass(slots=True)
class Renderer:
    """Renders prompts: by the family's own pipeline where it has one, else by the core's sampler and its codec.

    predict: how the denoiser is asked (the loop's precision); the family's own predict where it is None. Noise comes
    from a CPU generator of each prompt's own seed, so the same prompt gives the same noise on any device. shapes: of
    latents, as far as they are known. shown: the references of prompts, where the model reads any. sounds: what is
    heard with the clips that were rendered, by name and size, of families that make both. within: entered around each
    call of the denoiser by a family's own pipeline, which knows nothing of the loop's precision. on_step: told after
    each sampling step of a prompt how many are done.
    """

    run: Renderable
    sampler: Sampler
    predict: Predict | None = None
    shapes: dict[Geometry, tuple[int, ...]] = field(default_factory=dict)
    shown: Shown | None = None
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    sounds: dict[tuple[str, Geometry], Sound] = field(default_factory=dict)
    on_step: Callable[[Prompt, int], None] = field(default=lambda prompt, done: None)

    def geometry(self, prompt: Prompt, frames: int = 1) -> Geometry:
        """The size that the family accepts closest to the prompt's; its length, where it is a sound that is made."""
        media = _MADE[self.run.family.codec().reads[0]](prompt, frames)
        return self.run.family.geometry.nearest(media, media.height * media.width)

    def render(
        self, prompts: Sequence[tuple[Prompt, Geometry]], encodings: Encodings
    ) -> Iterator[tuple[Prompt, Geometry, Tensor | Failure]]:
        """Each prompt's pixels, (3, [F,] H, W) in [0, 1], or its sound, (channels, samples), on the CPU, in order.

        The codec is loaded after the last prediction, so that it and the activations are never in memory together.
        """
        family = self.run.family
        # A pipeline knows nothing of what an adapter is shown; the core's sampler asks as training does.
        if isinstance(family, RendersPictures) and not any(prompt.references for prompt, _ in prompts):
            for prompt, geometry in prompts:
                yield prompt, geometry, self._attempt(partial(self._by_family, family, prompt, geometry, encodings))
            return
        unlearnt = self._attempt(partial(self._learn, prompts))
        if isinstance(unlearnt, Failure):
            yield from ((prompt, geometry, unlearnt) for prompt, geometry in prompts)
            return
        latents = [self._attempt(partial(self._sample, prompt, geometry, encodings)) for prompt, geometry in prompts]
        further = [{} if isinstance(latent, Failure) else latent[1] for latent in latents]
        unheard = self._attempt(partial(self._decode_sounds, prompts, further))
        if isinstance(unheard, Failure):
            yield from ((prompt, geometry, unheard) for prompt, geometry in prompts)
            return
        with ExitStack() as stack:
            decode = self._attempt(lambda: stack.enter_context(family.codec().decoder(self.run.device)))
            for (prompt, geometry), latent in zip(prompts, latents, strict=True):
                if isinstance(latent, Failure):
                    yield prompt, geometry, latent
                elif isinstance(decode, Failure):
                    yield prompt, geometry, decode
                else:
                    yield prompt, geometry, self._attempt(partial(self._decode, decode, latent[0]))

    def _attempt(self, make: Callable[[], T]) -> T | Failure:
        try:
            return make()
        except FAILURES as error:
            failure = Failure(f"{type(error).__name__}: {error}", _is_out_of_memory(error))
        # Outside of the except clause: the traceback would keep the tensors that are to be freed.
        if failure.out_of_memory:
            _free(self.run.device)
        return failure

    def _by_family(self, family: RendersPictures, prompt: Prompt, geometry: Geometry, encodings: Encodings) -> Tensor:
        shot = self._shot(prompt, geometry, encodings)
        # The pipeline asks the denoiser by itself, and is to get the answers that training gets.
        with called_within(self.run.denoiser, self.within):
            pixels = family.render(self.run.denoiser, shot)
        return pixels[0].float().cpu()

    def _shot(self, prompt: Prompt, geometry: Geometry, encodings: Encodings) -> Shot:
        return Shot(
            self._conditions(prompt, prompt.words, geometry, encodings),
            self._conditions(prompt, prompt.against, geometry, encodings) if prompt.guided else None,
            geometry,
            prompt.seed,
            prompt.steps,
            prompt.guidance,
            partial(self.on_step, prompt),
        )

    def _decode(self, decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
        return decode(latents.to(self.run.device))[0].float().cpu()

    def _decode_sounds(
        self, prompts: Sequence[tuple[Prompt, Geometry]], further: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Decode what is heard with each clip, before the clip itself is handed out."""
        from st.report.files.sound_files import Sound

        for name, codec in list(streams_of(self.run.family).items())[1:]:
            if "audio" not in codec.reads or not any(name in latents for latents in further):
                continue
            with codec.decoder(self.run.device) as decode:
                for (prompt, geometry), latents in zip(prompts, further, strict=True):
                    if name in latents:
                        heard = self._decode(decode, latents[name])
                        self.sounds[prompt.name, geometry] = Sound(heard, codec.sample_rate)

    def _sample(self, prompt: Prompt, geometry: Geometry, encodings: Encodings) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Latents (1, C, ...) of a prompt, on the CPU, and those of further streams by name."""
        import torch

        from st.diffusion.sampler import guided, sample, times

        family, shot = self.run.family, self._shot(prompt, geometry, encodings)
        generator = torch.Generator().manual_seed(shot.seed)
        first = torch.randn((1, *self.shapes[geometry]), generator=generator).to(self.run.device)
        streams = self._noise_of_streams(first, geometry, generator)
        batch = self._batch(prompt, geometry, first, streams)
        moments = times(shot.steps, self.run.objective.shift(first))

        def ask(conditions: Mapping[str, Tensor]) -> Ask:
            return self._ask(replace(batch, conditions=conditions), moments)

        asked = ask(shot.conditions)
        if shot.negative is not None:
            combine = family.guide if isinstance(family, Guides) else None
            asked = guided(asked, ask(shot.negative), shot.guidance, combine=combine)
        positions, noise = None, batch.clean
        if isinstance(family, PlacesTimes):
            noise, positions = family.start(noise, batch), partial(family.times, batch=batch, draws=None)
        latents = sample(
            asked,
            family.path,
            family.target,
            noise,
            moments,
            sampler=self.sampler,
            positions=positions,
            on_step=shot.on_step,
        ).cpu()
        parts = {} if batch.layout is None else batch.layout.split(latents)
        return next(iter(parts.values()), latents), parts

    def _noise_of_streams(self, first: Tensor, geometry: Geometry, generator: torch.Generator) -> dict[str, Tensor]:
        """The noise of all of several streams; nothing of one. The first is the same as if it were alone."""
        import torch

        found: dict[str, Tensor] = {}
        for name, codec in streams_of(self.run.family).items():
            shape = codec.latent_shape(geometry) if found else None
            assert shape is not None or not found, f"codec {codec.name!r} of a further stream says its latent_shape"
            found[name] = first if shape is None else torch.randn((1, *shape), generator=generator).to(first.device)
        return found

    def _batch(self, prompt: Prompt, geometry: Geometry, like: Tensor, streams: Mapping[str, Tensor]) -> Batch:
        import torch

        from st.diffusion.objective import Batch

        size = torch.tensor([[float(geometry.height), float(geometry.width)]], device=like.device)
        extras = {"original_size": size, "crop": torch.zeros_like(size), "target_size": size}
        if self.shown is not None:
            extras |= self.shown.extras(prompt, geometry, like.device)
        return Batch((prompt.name,), (0,), "", like, {}, extras=extras, streams=streams)

    def _ask(self, batch: Batch, moments: Sequence[float]) -> Ask:
        from st.diffusion.objective import Noised
        from st.diffusion.sampler import following

        def ask(x: Tensor, t: Tensor) -> Tensor:
            told = {"target_time": following(t, moments, self.run.family.path)}
            noised = Noised(x=x, t=t, clean=x, noise=x, told=told)
            if self.predict is not None:
                return self.predict(noised, batch)
            return self.run.family.predict(self.run.denoiser, noised, batch)

        return ask

    def _conditions(self, prompt: Prompt, words: Words, geometry: Geometry, encodings: Encodings) -> dict[str, Tensor]:
        """A text of a prompt as the denoiser is told it; words: its prompt or its negative."""
        beside = {} if self.shown is None else self.shown.conditions(prompt, words, geometry, self.run.device)
        collated = self.run.family.collate([{**encodings[words], **beside}])
        return {name: tensor.to(self.run.device) for name, tensor in collated.items()}

    def _learn(self, prompts: Sequence[tuple[Prompt, Geometry]]) -> None:
        """What sampling needs to know beforehand: the shapes of latents, and what references encode to."""
        self._learn_shapes({geometry for _, geometry in prompts})
        if self.shown is not None:
            self.shown.learn(prompts, self.run.device)

    def _learn_shapes(self, geometries: set[Geometry]) -> None:
        """The shape of latents at each size, from the codec itself: it says so, or encodes nothing, once per size."""
        codec = self.run.family.codec()
        told = {geometry: codec.latent_shape(geometry) for geometry in geometries - self.shapes.keys()}
        self.shapes |= {geometry: shape for geometry, shape in told.items() if shape is not None}
        unknown = sorted(geometries - self.shapes.keys())
        if not unknown:
            return
        with codec.open(self.run.device) as encode:
            for geometry in unknown:
                (entry,) = encode([nothing(codec, geometry)])
                self.shapes[geometry] = tuple(entry["latents"].shape)


def nothing(codec: LatentCodec, geometry: Geometry) -> Input:
    """A grey picture or clip, or silence, of this size, for a codec."""
    return _NOTHING[codec.reads[0]](codec, geometry)


def _grey(codec: LatentCodec, geometry: Geometry) -> Input:
    import torch

    from st.data.encoder import Input

    frames = () if geometry.frames == 1 else (geometry.frames,)
    return Input(key="", geometry=geometry, pixels=torch.full((3, *frames, geometry.height, geometry.width), 0.5))


def _silence(codec: LatentCodec, geometry: Geometry) -> Input:
    import torch

    from st.data.encoder import Input

    silence = torch.zeros(codec.channels, round(geometry.seconds * codec.sample_rate))
    return Input(key="", geometry=geometry, audio=silence)


def _seen(prompt: Prompt, frames: int) -> Media:
    height, width = prompt.size
    return Media("video" if frames > 1 else "image", height=height, width=width, frames=frames)


def _heard(prompt: Prompt, frames: int) -> Media:
    return Media("audio", frames=0, seconds=prompt.seconds)


_MADE: Mapping[str, Callable[[Prompt, int], Media]] = MappingProxyType({"pixels": _seen, "audio": _heard})
"""By what a codec reads: the media that a prompt is."""
_NOTHING: Mapping[str, Callable[[LatentCodec, Geometry], Input]] = MappingProxyType(
    {"pixels": _grey, "audio": _silence}
)


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _free(device: torch.device) -> None:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def called_within(module: nn.Module, within: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Each call of a module that somebody else makes is inside of ``within``; its answer has the weights' dtype."""
    import torch
    from torch.utils._pytree import tree_map_only

    dtype = next((one.dtype for one in module.parameters() if one.is_floating_point()), torch.float32)
    entered: list[ExitStack] = []

    def enter(module: nn.Module, arguments: object) -> None:
        stack = ExitStack()
        stack.enter_context(within())
        entered.append(stack)

    def leave(module: nn.Module, arguments: object, answer: Any) -> Any:
        entered.pop().close()
        # Schedulers go on in the dtype of an answer, and what decodes has the weights'.
        return tree_map_only(torch.Tensor, lambda one: one.to(dtype) if one.is_floating_point() else one, answer)

    hooks = (module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
