"""The networks of TinyFamily: a transformer, a codec and a text encoder, small enough for any test."""

from __future__ import annotations

import hashlib
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from st.data.encoder import Encoder, LatentCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from st.data.encoder import Encode, Input

PATCH = 8
CHANNELS = 3 * PATCH * PATCH
WIDTH = 32
TEXT_WIDTH = 16
NUM_BLOCKS = 3
MAX_BYTES = 32


class TinyAttention(nn.Module):
    """Attention of image tokens over themselves and the caption."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_k = nn.Linear(WIDTH, WIDTH)
        self.to_v = nn.Linear(WIDTH, WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, text: Tensor, text_mask: Tensor | None) -> Tensor:
        """tokens: (B, S, D). text: (B, L, D). text_mask: (B, L), True where a row is real. Returns (B, S, D)."""
        everything = torch.cat([tokens, text], dim=1)
        query, key, value = (
            layer(rows).unflatten(-1, (2, -1)).transpose(1, 2)
            for layer, rows in ((self.to_q, tokens), (self.to_k, everything), (self.to_v, everything))
        )
        mask = None
        if text_mask is not None:
            present = text_mask.new_ones(len(tokens), tokens.shape[1])
            mask = torch.cat([present, text_mask], dim=1)[:, None, None, :]
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        answer: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return answer


class TinyBlock(nn.Module):
    """One transformer block. ``positions`` (S, D) is indexed by token, as rotary tables are in real families."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = TinyAttention()
        inner = 2 * WIDTH
        self.feed = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, inner), nn.GELU(), nn.Linear(inner, WIDTH))

    def forward(self, hidden_states: Tensor, positions: Tensor, text: Tensor, text_mask: Tensor | None) -> Tensor:
        """hidden_states: (B, S, D) in and out."""
        hidden_states = hidden_states + self.attn(self.norm(hidden_states) + positions, text, text_mask)
        answer: Tensor = hidden_states + self.feed(hidden_states)
        return answer


class TinyTransformer(nn.Module):
    """Latents (B, C, H, W), times (B,) and text (B, L, E) to a prediction like the latents, a token per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.image_in = nn.Linear(CHANNELS, WIDTH)
        self.text_in = nn.Linear(TEXT_WIDTH, WIDTH)
        self.time_in = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(TinyBlock() for _ in range(NUM_BLOCKS))
        self.image_out = nn.Linear(WIDTH, CHANNELS)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        time = self.time_in(waves(t.float(), WIDTH).to(x.dtype))
        tokens = self.image_in(x.flatten(2).transpose(1, 2)) + time[:, None]
        positions = grid_of(height, width, x.device).to(x.dtype)
        caption = self.text_in(text)
        for block in self.blocks:
            tokens = block(hidden_states=tokens, positions=positions, text=caption, text_mask=text_mask)
        answer: Tensor = self.image_out(tokens).transpose(1, 2).unflatten(2, (height, width))
        return answer


def waves(values: Tensor, width: int) -> Tensor:
    """Sines and cosines of (N,) values in about [0, 1] at rising frequencies, (N, width)."""
    frequencies = torch.exp(torch.linspace(0.0, math.log(1000.0), width // 2, device=values.device))
    angles = values[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_of(height: int, width: int, device: torch.device) -> Tensor:
    """Where each token lies, (H * W, D)."""
    rows = waves(torch.arange(height, device=device) / 64, WIDTH // 2)
    columns = waves(torch.arange(width, device=device) / 64, WIDTH // 2)
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=-1)


class TinyCodec(LatentCodec):
    """Exact: each 8x8 patch of pixels becomes the channels of one latent pixel, scaled by the checkpoint's factor."""

    name = "codec"
    reads = ("pixels",)

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def fingerprint(self) -> str:
        return file_digest(self.file)

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        scale = load_file(self.file)["scale"].to(device)

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            pixels = torch.stack([item.pixels for item in inputs if item.pixels is not None]).to(device)
            latents = nn.functional.pixel_unshuffle((pixels * 2 - 1) * scale, PATCH)
            return [{"latents": row.clone()} for row in latents.cpu()]

        yield encode

    @contextmanager
    def decoder(self, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
        scale = load_file(self.file)["scale"].to(device)

        def decode(latents: Tensor) -> Tensor:
            return (nn.functional.pixel_shuffle(latents.to(device), PATCH) / scale / 2 + 0.5).clamp(0, 1)

        yield decode


class TinyText(Encoder):
    """The first 32 bytes of a caption, each looked up in a table."""

    name = "text"
    reads = ("caption",)

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def fingerprint(self) -> str:
        return f"{file_digest(self.file)}-{MAX_BYTES}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        table = load_file(self.file)["table"].to(device)

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            return [{"text": table[codes(item.caption or "")].cpu()} for item in inputs]

        yield encode

    def count_tokens(self, caption: str) -> tuple[int, int]:
        length = len(caption.encode()) + 1
        return length, min(length, MAX_BYTES)


def codes(caption: str) -> list[int]:
    """Bytes of the caption after a start byte 0, so that an empty caption is one token."""
    return [0, *caption.encode()][:MAX_BYTES]


def file_digest(file: Path) -> str:
    """The same for equal bytes, wherever they lie."""
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
