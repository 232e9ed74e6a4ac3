"""Filling the caches of flux and SDXL: per picture and per caption, beside a bare program and diffusers' scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoding import BATCH, Answer, decoded, filled, in_turn
from pictures import caption

if TYPE_CHECKING:
    from st.data.cache.cache import CacheOptions


Both = tuple[Answer, Answer]


def both(family: str, precision: str, run_file: str, checkpoint: str, photos: str, turns: int) -> Both:
    """Pictures and captions; networks are loaded in every turn, by the bare program too."""
    from st.report.report import Report
    from st.settings.assembly import assemble
    from st.train.stages import read_data

    config, plugins = assemble(Path(run_file), training=True)
    sets, codec = read_data(config, plugins, Report.silent()), plugins.family.codec()
    encoders = plugins.family.text_encoders()
    files = sorted(Path(photos).glob("*.jpg"))
    # Tokenizers that spell, as these do, make more than CLIP's 77 tokens of a usual caption, and a pipeline then says
    # which words it leaves out.
    texts = [f"{number} {caption(number)[:60]}" for number in range(4 * len(files))]

    def our_pictures(options: CacheOptions) -> float:
        return filled(sets, codec, (), options, ())

    def our_captions(options: CacheOptions) -> float:
        return filled((), codec, encoders, options, texts)

    low = family == "flux" and precision == "bf16"
    bare = partial(_flux_texts if family == "flux" else _sdxl_texts, checkpoint, texts)
    bare_pictures = partial(_pictures, checkpoint, files, low)
    return (
        in_turn(bare_pictures, our_pictures, config.cache, len(files), turns),
        in_turn(bare, our_captions, config.cache, len(texts), turns),
    )


def _pictures(checkpoint: str, files: list[Path], low: bool) -> Iterator[Callable[[], object]]:
    """low: in bf16, as diffusers' script for flux does it; the one for SDXL keeps to float32."""
    import torch
    from diffusers import AutoencoderKL

    upstream, dtype = AutoencoderKL, torch.bfloat16 if low else torch.float32
    network: Any = upstream.from_pretrained(checkpoint, subfolder="vae", torch_dtype=dtype).eval()
    for start in range(0, len(files), BATCH):
        pixels = decoded(files[start : start + BATCH]).to(dtype)
        yield lambda pixels=pixels: network.encode(pixels * 2 - 1).latent_dist.mode()


def _flux_texts(checkpoint: str, texts: list[str]) -> Iterator[Callable[[], object]]:
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    first, second = (AutoTokenizer.from_pretrained(f"{checkpoint}/{name}") for name in ("tokenizer", "tokenizer_2"))
    clip, t5 = _loaded(CLIPTextModel, checkpoint, "text_encoder"), _loaded(T5EncoderModel, checkpoint, "text_encoder_2")
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        short, long = _ids(first, some, 77), _ids(second, some, 512)
        yield lambda short=short, long=long: (clip(short).pooler_output, t5(long)[0])


def _sdxl_texts(checkpoint: str, texts: list[str]) -> Iterator[Callable[[], object]]:
    from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection

    tokenizers = [AutoTokenizer.from_pretrained(f"{checkpoint}/{name}") for name in ("tokenizer", "tokenizer_2")]
    networks = [
        _loaded(CLIPTextModel, checkpoint, "text_encoder"),
        _loaded(CLIPTextModelWithProjection, checkpoint, "text_encoder_2"),
    ]
    for start in range(0, len(texts), BATCH):
        ids = [_ids(one, texts[start : start + BATCH], 77) for one in tokenizers]
        yield lambda ids=ids: [one(some, output_hidden_states=True) for one, some in zip(networks, ids, strict=True)]


def _loaded(kind: Any, checkpoint: str, folder: str) -> Any:
    import torch

    return kind.from_pretrained(f"{checkpoint}/{folder}", dtype=torch.bfloat16).eval()


def _ids(tokenizer: Any, texts: list[str], length: int) -> Any:
    asked = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return tokenizer(texts, **asked).input_ids


CASES: dict[str, Callable[..., Both]] = {"both": both}
