"""PipelineCodec: a pipeline's autoencoder as a codec."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from st.data.encoder import Input, LatentCodec
from st.model.checkpoint.networks import load_component

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encode, Reads
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder


class PipelineCodec(LatentCodec):
    """The autoencoder of a checkpoint in diffusers' layout, with the statistics that its own configuration holds.

    Latents are (z - mean) * scaling / std: ``shift_factor`` and ``scaling_factor`` for pictures, ``latents_mean`` and
    ``latents_std`` per channel where they are given. Other arithmetic: override ``normalise`` and ``denormalise``. z is
    the mode of what the encoder predicts, or one sample of it, drawn with a seed made from the pixels: the same picture
    gives the same latents either way. Media other than pixels: override ``enter`` and ``leave``.
    """

    name = "vae"
    reads: tuple[Reads, ...] = ("pixels",)

    takes_frames: ClassVar[bool] = False
    """Whether the autoencoder wants (B, 3, F, H, W): a picture is a clip of one frame, and its latents keep F."""

    def __init__(
        self, folder: CheckpointFolder, component: str, dtype: str, latents: Literal["mode", "sample"] = "mode"
    ) -> None:
        self.folder, self.component, self.dtype, self.latents = folder, component, dtype, latents

    @property
    def fingerprint(self) -> str:
        return f"{type(self).__name__}-{self.folder.fingerprint([self.component])}-{self.dtype}-{self.latents}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch

        autoencoder = self.load(device)
        # Asking a model of diffusers for its type walks through all of its modules.
        dtype: torch.dtype = autoencoder.dtype

        def together(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            (media_read,) = self.reads
            given = [one for one in (getattr(item, media_read) for item in inputs) if one is not None]
            assert len(given) == len(inputs), f"this codec reads {media_read}"
            media = torch.stack([self._clip(one) for one in given]).to(device, dtype)
            with torch.no_grad():
                entered = self.enter(media)
                z = self._chosen(autoencoder.encode(entered), given)
                named = {"latents": self.normalise(autoencoder, z.float()), **self.further(autoencoder, entered)}
            return [
                {name: value[row].to("cpu", dtype, copy=True) for name, value in named.items()}
                for row in range(len(inputs))
            ]

        def one_by_one(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            return [entry for one in inputs for entry in together([one])]

        # A CPU gains nothing from a batch, and loses 15 to 25 % where the activations no longer fit its caches.
        yield one_by_one if device.type == "cpu" else together

    @contextmanager
    def decoder(self, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
        import torch

        autoencoder = self.load(device)

        def decode(latents: Tensor) -> Tensor:
            with torch.no_grad():
                z = self.denormalise(autoencoder, latents.to(device).float()).to(autoencoder.dtype)
                decoded: Tensor = autoencoder.decode(z).sample
            return self.leave(decoded.float())

        yield decode

    def load(self, device: torch.device) -> Any:
        """The autoencoder with its weights."""
        import torch

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.dtype]
        loaded = load_component(self.folder, self.component, dtype)
        return loaded.to(device).eval().requires_grad_(False)

    def enter(self, media: Tensor) -> Tensor:
        """What the autoencoder is given of pixels in [0, 1], (B, 3, [F,] H, W), or of what else ``reads`` names."""
        return media * 2 - 1

    def leave(self, decoded: Tensor) -> Tensor:
        """What it decodes, float32, as ``decoder`` promises it: the inverse of ``enter``, kept in range."""
        return (decoded / 2 + 0.5).clamp(0, 1)

    def further(self, autoencoder: Any, entered: Tensor) -> Mapping[str, Tensor]:
        """Tensors (B, ...) that entries hold beside ``latents``; they arrive in ``Batch.extras``.

        entered: what ``enter`` gave, which the latents are made of.
        """
        return {}

    def normalise(self, autoencoder: nn.Module, z: Tensor) -> Tensor:
        """z, (B, C, [F,] h, w) float32, as the denoiser expects it."""
        mean, scale = _statistics(autoencoder, z)
        return (z - mean) * scale

    def denormalise(self, autoencoder: nn.Module, latents: Tensor) -> Tensor:
        """The inverse of ``normalise``."""
        mean, scale = _statistics(autoencoder, latents)
        return latents / scale + mean

    def _clip(self, media: Tensor) -> Tensor:
        return media.unsqueeze(1) if self.takes_frames and media.ndim == 3 else media

    def _chosen(self, encoded: Any, given: Sequence[Tensor]) -> Tensor:
        import torch

        if not hasattr(encoded, "latent_dist"):
            latent: Tensor = encoded.latent if hasattr(encoded, "latent") else encoded.latents
            return latent
        distribution = encoded.latent_dist
        mode: Tensor = distribution.mode()
        if self.latents == "mode":
            return mode
        noise = [torch.randn(mode.shape[1:], generator=_generator(one)) for one in given]
        deviation: Tensor = distribution.std
        return mode + deviation * torch.stack(noise).to(mode)


class StillCodec(PipelineCodec):
    """An autoencoder of clips as a codec of pictures: each is a clip of one frame, and latents are (C, h, w)."""

    takes_frames = True

    def normalise(self, autoencoder: nn.Module, z: Tensor) -> Tensor:
        return super().normalise(autoencoder, z).squeeze(2)

    def denormalise(self, autoencoder: nn.Module, latents: Tensor) -> Tensor:
        return super().denormalise(autoencoder, latents.unsqueeze(2))

    def leave(self, decoded: Tensor) -> Tensor:
        return super().leave(decoded).squeeze(2)


def _generator(media: Tensor) -> torch.Generator:
    import torch

    digest = hashlib.blake2b(media.contiguous().numpy().tobytes(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def _statistics(autoencoder: Any, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """(mean, scaling / std), numbers or (1, C, 1, ...)."""
    import torch

    config = autoencoder.config
    mean = config.get("latents_mean")
    scaling = float(config.get("scaling_factor") or 1.0)
    if mean is None:
        return float(config.get("shift_factor") or 0.0), scaling
    shape = (1, -1, *[1] * (like.ndim - 2))
    means = torch.tensor(mean, device=like.device, dtype=like.dtype).view(shape)
    deviations = torch.tensor(config["latents_std"], device=like.device, dtype=like.dtype).view(shape)
    return means, scaling / deviations
