"""The transformer of PackedFamily."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from st.testing.subjects.tiny_parts import CHANNELS, NUM_BLOCKS, TEXT_WIDTH, WIDTH, grid_of, waves


class PackedAttention(nn.Module):
    """Attention of every row over those that are present."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_k = nn.Linear(WIDTH, WIDTH)
        self.to_v = nn.Linear(WIDTH, WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: Tensor, present: Tensor) -> Tensor:
        """rows: (B, S, D). present: (B, S) bool."""
        query, key, value = (
            layer(rows).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=present[:, None, None, :])
        answer: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return answer


class PackedBlock(nn.Module):
    """One block. ``positions`` (B, S, D) and ``present`` (B, S) are indexed by row, of text and padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = PackedAttention()
        self.feed = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, hidden_states: Tensor, positions: Tensor, present: Tensor) -> Tensor:
        """hidden_states: (B, S, D) in and out."""
        hidden_states = hidden_states + self.attn(self.norm(hidden_states) + positions, present)
        answer: Tensor = hidden_states + self.feed(hidden_states)
        return answer


class PackedTransformer(nn.Module):
    """Latents (B, C, H, W), times (B,) and text (B, L, E) to a prediction like the latents, a token per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.image_in = nn.Linear(CHANNELS, WIDTH)
        self.text_in = nn.Linear(TEXT_WIDTH, WIDTH)
        self.time_in = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(PackedBlock() for _ in range(NUM_BLOCKS))
        self.image_out = nn.Linear(WIDTH, CHANNELS)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        count, longest = height * width, text.shape[1]
        picture = (
            self.image_in(x.flatten(2).transpose(1, 2)) + self.time_in(waves(t.float(), WIDTH).to(x.dtype))[:, None]
        )
        starts, place = lengths(text, text_mask)[:, None], torch.arange(longest + count, device=x.device)[None]
        # Text and picture side by side, of which each sample takes its own rows; those behind are padding.
        order = torch.where(place < starts, place, (place - starts + longest).clamp(max=longest + count - 1))
        grid = grid_of(height, width, x.device).to(x.dtype)
        nowhere = grid.new_zeros(longest, WIDTH)
        positions = torch.cat([nowhere, grid])[order]
        rows = torch.cat([self.text_in(text), picture], dim=1).gather(1, order[..., None].expand(-1, -1, WIDTH))
        present = place < starts + count
        for block in self.blocks:
            rows = block(hidden_states=rows, positions=positions, present=present)
        tokens = torch.stack(
            [one[start : start + count] for one, start in zip(rows, starts[:, 0].tolist(), strict=True)]
        )
        answer: Tensor = self.image_out(tokens).transpose(1, 2).unflatten(2, (height, width))
        return answer


def lengths(text: Tensor, text_mask: Tensor | None) -> Tensor:
    """How many rows of text each sample has, (B,)."""
    if text_mask is None:
        return torch.full((len(text),), text.shape[1], device=text.device)
    return text_mask.sum(1)
