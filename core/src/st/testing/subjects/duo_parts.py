"""The networks of TinyDuo: a transformer of two streams, and a codec for each of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from st.data.encoder import LatentCodec
from st.testing.subjects.tiny_parts import CHANNELS, PATCH, TEXT_WIDTH, WIDTH, TinyBlock, file_digest, waves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from st.data.encoder import Encode, Input
    from st.data.geometry import Geometry

RATE, FRAMES_PER_SECOND = 8000, 8
PIECES, PIECE = 5, 200
"""Pieces of sound for each frame, and numbers in each."""


class DuoBlock(nn.Module):
    """Each stream reads itself, the caption and the other stream."""

    def __init__(self) -> None:
        super().__init__()
        self.clip, self.sound = TinyBlock(), TinyBlock()

    def forward(
        self,
        hidden_states: Tensor,
        sound_states: Tensor,
        positions: Tensor,
        text: Tensor,
        text_mask: Tensor,
        silent: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states: (B, S, D), sound_states: (B, P, D); in and out. silent: (B,) bool, whose sound is none."""
        seen = text_mask.new_ones(hidden_states.shape[:2])
        heard = text_mask.new_ones(sound_states.shape[:2])
        if silent is not None:
            heard = heard & ~silent[:, None]
        moments = waves(torch.arange(sound_states.shape[1], device=text.device) / 64, WIDTH).to(text.dtype)
        clip = self.clip(hidden_states, positions, torch.cat([text, sound_states], 1), torch.cat([text_mask, heard], 1))
        sound = self.sound(sound_states, moments, torch.cat([text, hidden_states], 1), torch.cat([text_mask, seen], 1))
        return clip, sound


class DuoTransformer(nn.Module):
    """A clip (B, C, F, H, W) and its sound (B, C, P), each with times of its tokens, to a prediction of both."""

    def __init__(self) -> None:
        super().__init__()
        self.clip_in, self.sound_in = nn.Linear(CHANNELS, WIDTH), nn.Linear(PIECE, WIDTH)
        self.text_in = nn.Linear(TEXT_WIDTH, WIDTH)
        self.time_in = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(DuoBlock() for _ in range(2))
        self.clip_out, self.sound_out = nn.Linear(WIDTH, CHANNELS), nn.Linear(WIDTH, PIECE)

    def forward(
        self,
        clip: Tensor,
        sound: Tensor,
        clip_times: Tensor,
        sound_times: Tensor,
        text: Tensor,
        *,
        text_mask: Tensor | None = None,
        silent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """clip_times: (B, S), sound_times: (B, P). text: (B, L, E)."""
        tokens = self.clip_in(clip.flatten(2).transpose(1, 2)) + self._times(clip_times, clip.dtype)
        pieces = self.sound_in(sound.transpose(1, 2)) + self._times(sound_times, sound.dtype)
        caption = self.text_in(text)
        mask = caption.new_ones(caption.shape[:2], dtype=torch.bool) if text_mask is None else text_mask
        positions = waves(torch.arange(tokens.shape[1], device=clip.device) / 64, WIDTH).to(clip.dtype)
        for block in self.blocks:
            tokens, pieces = block(
                hidden_states=tokens,
                sound_states=pieces,
                positions=positions,
                text=caption,
                text_mask=mask,
                silent=silent,
            )
        answer = self.clip_out(tokens).transpose(1, 2).reshape(clip.shape)
        return answer, self.sound_out(pieces).transpose(1, 2)

    def _times(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        by_token = waves(times.float().flatten(), WIDTH).to(dtype)
        found: Tensor = self.time_in(by_token).unflatten(0, times.shape)
        return found


class ClipCodec(LatentCodec):
    """Exact: each 8x8 patch of each frame becomes the channels of one latent pixel.

    ``first`` beside the latents: those of the first frame alone, (C, 1, H, W).
    """

    name = "codec"
    reads = ("pixels",)
    frames_per_second = float(FRAMES_PER_SECOND)

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def fingerprint(self) -> str:
        return file_digest(self.file)

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        scale = load_file(self.file)["scale"].to(device)

        def one(pixels: Tensor) -> Mapping[str, Tensor]:
            clip = pixels.to(device).unsqueeze(1) if pixels.ndim == 3 else pixels.to(device)
            frames = nn.functional.pixel_unshuffle((clip.transpose(0, 1) * 2 - 1) * scale, PATCH)
            latents = frames.transpose(0, 1).contiguous().cpu()
            return {"latents": latents, "first": latents[:, :1].clone()}

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            return [one(item.pixels) for item in inputs if item.pixels is not None]

        yield encode

    @contextmanager
    def decoder(self, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
        scale = load_file(self.file)["scale"].to(device)

        def decode(latents: Tensor) -> Tensor:
            frames = nn.functional.pixel_shuffle(latents.to(device).transpose(1, 2), PATCH) / scale
            return (frames / 2 + 0.5).clamp(0, 1).transpose(1, 2)

        yield decode

    def latent_shape(self, geometry: Geometry) -> tuple[int, ...]:
        return CHANNELS, geometry.frames, geometry.height // PATCH, geometry.width // PATCH


class SoundCodec(LatentCodec):
    """Exact at eight frames a second: what is heard during a frame in five pieces, (C, 5 F)."""

    name = "heard"
    reads = ("audio",)
    sample_rate, channels = RATE, 1

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def fingerprint(self) -> str:
        return f"{file_digest(self.file)}-sound"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        def one(item: Input) -> Mapping[str, Tensor]:
            assert item.audio is not None and item.geometry is not None
            wanted = item.geometry.frames * PIECES * PIECE
            heard = nn.functional.interpolate(item.audio[None].to(device), size=wanted, mode="linear")
            return {"latents": heard.reshape(-1, PIECE).T.contiguous().cpu()}

        yield lambda inputs: [one(item) for item in inputs]

    @contextmanager
    def decoder(self, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
        yield lambda latents: latents.to(device).transpose(1, 2).flatten(1)[:, None].clamp(-1, 1)

    def latent_shape(self, geometry: Geometry) -> tuple[int, ...]:
        return PIECE, PIECES * geometry.frames
