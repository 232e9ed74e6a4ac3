"""Batches of made-up samples, encoded by a family's own parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encoder, Input, LatentCodec
    from st.data.geometry import Geometry
    from st.data.sample import Kind, Media
    from st.diffusion.objective import Batch, Noised
    from st.model.family import ModelFamily

CAPTIONS = ("a red square on a table", "a wide landscape with a tree, a river and two hills behind it")

CLIP_RATE = 8.0
"""Frames of an example clip in a second."""


def example_inputs(codec: LatentCodec, geometry: Geometry, captions: Sequence[str] = CAPTIONS) -> list[Input]:
    """Inputs for a codec: smooth pictures, clips or sounds of this size; the same arguments give the same ones.

    Beside pictures and clips there is one reference for each.
    """
    from dataclasses import replace

    from st.data.encoder import Input

    def made(number: int) -> dict[str, Any]:
        if "audio" in codec.reads:
            seconds = geometry.seconds or geometry.frames / CLIP_RATE
            return {
                "audio": example_sound(replace(geometry, seconds=seconds), codec.sample_rate, codec.channels, number)
            }
        shown = example_pixels(replace(geometry, frames=1), number + 7)
        return {"pixels": example_pixels(geometry, number), "references": (shown,)}

    return [
        Input(f"{number}", geometry, caption, fps=CLIP_RATE * (geometry.frames > 1), **made(number))
        for number, caption in enumerate(captions)
    ]


def example_media(geometry: Geometry) -> Media:
    """A sample that has exactly this size."""
    from st.data.sample import Media

    kind: Kind = "audio" if not geometry.height else "image" if geometry.frames == 1 else "video"
    return Media(kind, geometry.height, geometry.width, geometry.frames, seconds=geometry.seconds)


def example_sound(geometry: Geometry, sample_rate: int, channels: int, number: int) -> Tensor:
    """(channels, samples), float32 in [-1, 1]: swelling tones that are others for each ``number``."""
    import torch

    moments = torch.arange(round(geometry.seconds * sample_rate)) / sample_rate
    tones = [torch.sin((40 + 30 * number + 20 * channel) * 6.2832 * moments) for channel in range(channels)]
    return torch.stack(tones) * (0.3 + 0.2 * torch.sin(3 * moments))


def example_pixels(geometry: Geometry, number: int) -> Tensor:
    """(3, H, W), or (3, F, H, W) for a clip, float32 in [0, 1]: waves that are others for each ``number``."""
    import torch

    rows = torch.linspace(0, 1, geometry.height)[:, None]
    columns = torch.linspace(0, 1, geometry.width)[None, :]
    waves = [torch.sin(7 * (rows * (number + channel) + columns * (2 - channel)) + number) for channel in range(3)]
    picture = torch.stack(waves) * 0.4 + 0.5
    if geometry.frames == 1:
        return picture
    return torch.stack([picture.roll(frame, -1) for frame in range(geometry.frames)], dim=1)


def encoded(encoder: Encoder, inputs: Sequence[Input], device: torch.device) -> list[Mapping[str, Tensor]]:
    """What an encoder gives of these inputs, each told only what it reads."""
    from dataclasses import replace

    blank: dict[str, Any] = {"caption": None, "pixels": None, "audio": None, "references": (), "role": "caption"}

    def told(item: Input) -> Input:
        read: dict[str, Any] = {what: getattr(item, what) for what in encoder.reads}
        return replace(item, **(blank | read))

    with encoder.open(device) as encode:
        return list(encode([told(item) for item in inputs]))


def example_batch(family: ModelFamily[Any], geometry: Geometry, captions: Sequence[str] = CAPTIONS) -> Batch:
    """A batch as training would see it: encoded, collated, on the CPU."""
    import torch

    from st.diffusion.objective import Batch

    cpu = torch.device("cpu")
    codec = family.codec()
    inputs = example_inputs(codec, geometry, captions)
    rows = encoded(codec, inputs, cpu)
    further = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "latents"}
    conditions: list[dict[str, Tensor]] = [{} for _ in inputs]
    for encoder in family.text_encoders():
        for entry, given in zip(conditions, encoded(encoder, inputs, cpu), strict=True):
            entry.update(given)
    size = torch.tensor([[geometry.height, geometry.width]] * len(inputs))
    return Batch(
        keys=tuple(item.key for item in inputs),
        indices=tuple(range(len(inputs))),
        dataset="examples",
        latents=torch.stack([row["latents"] for row in rows]),
        conditions=family.collate(conditions),
        extras={"original_size": size, "target_size": size, "crop": torch.zeros_like(size), **further},
        streams=_example_streams(family, geometry, captions),
    )


def _example_streams(family: ModelFamily[Any], geometry: Geometry, captions: Sequence[str]) -> dict[str, Tensor]:
    """All of several streams by name; nothing of one."""
    import torch

    from st.model.streams import streams_of

    cpu = torch.device("cpu")
    rows = {
        name: encoded(codec, example_inputs(codec, geometry, captions), cpu)
        for name, codec in streams_of(family).items()
    }
    return {name: torch.stack([row["latents"] for row in entries]) for name, entries in rows.items()}


def example_noised(family: ModelFamily[Any], batch: Batch, seed: int = 0) -> Noised:
    """The batch mixed with noise at times spread over (0, 1); the same seed gives the same noise."""
    import torch

    from st.diffusion.objective import Noised

    generator = torch.Generator().manual_seed(seed)
    clean = batch.clean
    noise = torch.randn(clean.shape, generator=generator)
    count = len(batch.latents)
    t = placed(family, (torch.arange(count) + 0.5) / count, batch)
    return Noised(x=family.path(t).of(clean, noise), t=t, clean=clean, noise=noise)


def placed(family: ModelFamily[Any], t: Tensor, batch: Batch) -> Tensor:
    """The times of positions where the family gives them their own; t otherwise."""
    from st.model.streams import PlacesTimes

    return family.times(t, batch, None) if isinstance(family, PlacesTimes) else t


def awake_denoiser(family: ModelFamily[Any]) -> nn.Module:
    """The denoiser in float32 on the CPU with every weight moved a little, always by the same amount, and frozen.

    At the start of training many denoisers pass their tokens on unchanged, or answer zero: every claim about their
    blocks would hold for nothing.
    """
    import torch

    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return denoiser


def row(batch: Batch, noised: Noised, index: int) -> tuple[Batch, Noised]:
    """One sample of a batch as a batch of its own; conditions keep their padding."""
    from dataclasses import replace

    at = slice(index, index + 1)
    single = replace(
        batch,
        keys=batch.keys[at],
        indices=batch.indices[at],
        latents=batch.latents[at],
        streams={name: tensor[at] for name, tensor in batch.streams.items()},
        lacking={name: tensor[at] for name, tensor in batch.lacking.items()},
        conditions={name: tensor[at] for name, tensor in batch.conditions.items()},
        extras={name: tensor[at] for name, tensor in batch.extras.items()},
    )
    return single, replace(noised, x=noised.x[at], t=noised.t[at], clean=noised.clean[at], noise=noised.noise[at])
