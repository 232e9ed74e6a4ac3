"""Batches of made-up samples, encoded by a family's own parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encoder, Input
    from st.data.geometry import Geometry
    from st.diffusion.objective import Batch, Noised
    from st.model.family import ModelFamily

CAPTIONS = ("a red square on a table", "a wide landscape with a tree, a river and two hills behind it")


def example_inputs(geometry: Geometry, captions: Sequence[str] = CAPTIONS) -> list[Input]:
    """Inputs with smooth pictures (or clips) of this size; the same arguments give the same pixels."""
    from st.data.encoder import Input

    return [
        Input(key=f"{number}.png", geometry=geometry, caption=caption, pixels=example_pixels(geometry, number))
        for number, caption in enumerate(captions)
    ]


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

    blank: dict[str, Any] = {"caption": None, "pixels": None, "audio": None}
    shown = [replace(item, **{**blank, encoder.reads: getattr(item, encoder.reads)}) for item in inputs]
    with encoder.open(device) as encode:
        return list(encode(shown))


def example_batch(family: ModelFamily[Any], geometry: Geometry, captions: Sequence[str] = CAPTIONS) -> Batch:
    """A batch as training would see it: encoded, collated, on the CPU."""
    import torch

    from st.diffusion.objective import Batch

    cpu = torch.device("cpu")
    inputs = example_inputs(geometry, captions)
    latents = torch.stack([row["latents"] for row in encoded(family.codec(), inputs, cpu)])
    conditions: list[dict[str, Tensor]] = [{} for _ in inputs]
    for encoder in family.text_encoders():
        for entry, given in zip(conditions, encoded(encoder, inputs, cpu), strict=True):
            entry.update(given)
    size = torch.tensor([[geometry.height, geometry.width]] * len(inputs))
    return Batch(
        keys=tuple(item.key for item in inputs),
        indices=tuple(range(len(inputs))),
        dataset="examples",
        latents=latents,
        conditions=family.collate(conditions),
        extras={"original_size": size, "target_size": size, "crop": torch.zeros_like(size)},
    )


def example_noised(family: ModelFamily[Any], batch: Batch, seed: int = 0) -> Noised:
    """The batch mixed with noise at times spread over (0, 1); the same seed gives the same noise."""
    import torch

    from st.diffusion.objective import Noised

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch.latents.shape, generator=generator)
    count = len(batch.latents)
    t = (torch.arange(count) + 0.5) / count
    return Noised(x=family.path(t).of(batch.latents, noise), t=t, clean=batch.latents, noise=noise)


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
        conditions={name: tensor[at] for name, tensor in batch.conditions.items()},
        extras={name: tensor[at] for name, tensor in batch.extras.items()},
    )
    return single, replace(noised, x=noised.x[at], t=noised.t[at], clean=noised.clean[at], noise=noised.noise[at])
