"""TextStack: text encoders of a checkpoint that learn together with its denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from st.data.encoder import Encoder, Input
from st.model.files.format_parts import Part

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encode
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder
    from st.model.pipelines.learning_text import WithText

    Read = Callable[[Mapping[str, nn.Module], Mapping[str, Tensor]], Mapping[str, Tensor]]

INSIDE = "text_model."
"""Begins the names of a CLIP encoder's weights in files, whether or not its class has a module of that name."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Ends of the names of attention's layers in encoders of the CLIP kind."""


@dataclass(frozen=True, slots=True)
class TextStack:
    """What is cached of captions, the encoders as modules, and how they make conditions.

    folder: the checkpoint. denoiser: what the denoiser's component is called. tokenizers: each text encoder that
    learns, with the component that makes its tokens. read: from those encoders by name and a batch's conditions, which
    hold what ``captions`` caches, to the conditions that replace or join them; gradients flow through it. targets: ends
    of the names of layers that adapters attach to. in_comfyui, in_kohya: what ComfyUI calls the encoders, and what
    begins the names of their layers in kohya's files, in their order.
    """

    folder: CheckpointFolder
    denoiser: str
    tokenizers: Mapping[str, str]
    read: Read
    targets: Sequence[str] = ATTENTION
    in_comfyui: Sequence[str] = ("clip_l", "clip_g")
    in_kohya: Sequence[str] = ("lora_te1", "lora_te2")

    def captions(self, counter: Encoder) -> Encoder:
        """What is cached instead of embeddings. counter: says how many tokens of a caption are read."""
        return TokenisedCaptions(self.folder, tuple(self.tokenizers.values()), counter)

    def join(self, denoiser: nn.Module, device: torch.device, dtype: torch.dtype) -> WithText:
        """The denoiser and the encoders, with their weights, as one module in eval mode."""
        from st.model.pipelines.learning_text import WithText, load_text_encoder

        encoders = {name: load_text_encoder(self.folder, name, dtype) for name in self.tokenizers}
        joined = WithText(self.denoiser, denoiser, encoders, self.read)
        return joined.to(device).eval()

    def save(self, joined: nn.Module, directory: Path) -> None:
        """Write the encoders into a checkpoint in diffusers' layout, in place of those that are there."""
        from st.model.pipelines.learning_text import save_text_encoder

        for name in self.tokenizers:
            save_text_encoder(joined.get_submodule(name), directory / name)

    def parts(self, layout: Literal["diffusers", "kohya"], denoiser: Part) -> Iterator[Part]:
        """The shares of the denoiser and of each encoder in an adapter file of this layout."""
        from st.model.files.composed import reading_also
        from st.model.files.formats import comfyui_format, kohya_format
        from st.model.files.peft_layout import diffusers_format
        from st.model.pipelines.learning_text import text_modules

        yield denoiser
        for component, name, begins in zip(self.tokenizers, self.in_comfyui, self.in_kohya, strict=False):
            modules = text_modules(self.folder, component)
            ours = f"{component}.{INSIDE if any(path.startswith(INSIDE) for path in modules) else ''}"
            if layout == "diffusers":
                yield Part(ours, INSIDE, (f"{component}.",), diffusers_format(component))
            else:
                inside = [INSIDE + path.removeprefix(INSIDE) for path in modules]
                saved = f"text_encoders.{name}.transformer"
                flat = reading_also(kohya_format(inside, begins), comfyui_format(saved))
                yield Part(ours, INSIDE, (f"{begins}_", f"{saved}."), flat)


class TokenisedCaptions(Encoder):
    """The ids of a caption by each tokenizer, (L,) int64 padded to its length: ``tokens``, ``tokens_2``."""

    name = "tokens"
    reads = ("caption",)

    def __init__(self, folder: CheckpointFolder, tokenizers: Sequence[str], counter: Encoder) -> None:
        self.folder, self.tokenizers, self.counter = folder, tokenizers, counter

    @property
    def fingerprint(self) -> str:
        return f"tokens-{self.folder.fingerprint(self.tokenizers)}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        from st.model.checkpoint.networks import load_tokenizer

        tokenizers: dict[str, Any] = {
            name.replace("tokenizer", "tokens"): load_tokenizer(self.folder, name) for name in self.tokenizers
        }

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            texts = [one.caption or "" for one in inputs]
            found = {
                name: tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
                for name, tokenizer in tokenizers.items()
            }
            return [{name: ids[row].clone() for name, ids in found.items()} for row in range(len(inputs))]

        yield encode

    def count_tokens(self, caption: str) -> tuple[int, int] | None:
        return self.counter.count_tokens(caption)
