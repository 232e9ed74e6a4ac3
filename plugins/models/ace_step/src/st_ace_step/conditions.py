"""Conditions: tags, lyrics and facts of a song as the denoiser is told them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from st import Encoder, StError
from st.model.checkpoint.networks import load_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st.data.encoder import Encode, Input
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder

PARTS = ("text_encoder", "tokenizer", "condition_encoder")
NAME = "encoder_hidden_states"
MAX_TEXT_TOKENS, MAX_LYRIC_TOKENS = 256, 2048
TIMBRE_SECONDS = 30


class Conditions(Encoder):
    """Text encoder and condition encoder of the pipeline: rows of lyrics, one of timbre, then rows of text.

    There is no recording to take the timbre from: it is that of silence. Each song is encoded by itself, since the
    text encoder sees padding. Where the model can be asked without a condition, a song of which nothing is told is the
    one row that it learnt for that. facts: ``bpm`` a number, ``key`` such as "C major", ``timesignature`` such as "4",
    ``language`` a code, ``seconds`` the length of the sound.
    """

    name = "conditions"
    reads = ("caption",)
    facts = ("lyrics", "bpm", "key", "timesignature", "language", "seconds")

    def __init__(
        self, folder: CheckpointFolder, dtype: str, language: str, rows_per_second: float, nothing: bool
    ) -> None:
        self.folder, self.dtype, self.language = folder, dtype, language
        self.rows_per_second, self.nothing = rows_per_second, nothing

    @property
    def fingerprint(self) -> str:
        asked = f"{self.language}-{self.rows_per_second:g}-{self.nothing}-{MAX_TEXT_TOKENS}-{MAX_LYRIC_TOKENS}"
        return f"{type(self).__name__}-{self.folder.fingerprint(PARTS)}-{self.dtype}-{asked}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch
        from diffusers import AceStepPipeline

        from st.model.pipelines.pipeline_text import load_pipeline

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.dtype]
        pipeline = load_pipeline(AceStepPipeline, self.folder, PARTS, dtype).to(device)

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            with torch.no_grad():
                rows = [self._encode(pipeline, one.caption or "", one.facts, device) for one in inputs]
            return [{NAME: one.to("cpu", copy=True)} for one in rows]

        yield encode

    def count_tokens(self, caption: str) -> tuple[int, int]:
        """Of the text that a caption becomes. What is told of tempo and length is at its end, and cut off first."""
        from diffusers import AceStepPipeline

        wording: Any = AceStepPipeline.__new__(AceStepPipeline)
        text, _ = wording._format_prompt(caption)
        tokens = len(self._tokenizer(text, truncation=False, verbose=False).input_ids)
        return tokens, min(tokens, MAX_TEXT_TOKENS)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder, "tokenizer")

    def _encode(self, pipeline: Any, caption: str, facts: Mapping[str, str], device: torch.device) -> Tensor:
        """(L, D) of one song."""
        import torch

        encoder = pipeline.condition_encoder
        told = {name: text for name, text in facts.items() if name != "seconds" and text.strip()}
        if self.nothing and not caption and not told:
            nothing: Tensor = encoder.null_condition_emb[0]
            return nothing
        text, text_mask, lyrics, lyrics_mask = pipeline.encode_prompt(
            prompt=caption, lyrics=facts.get("lyrics", ""), device=device, **asked(facts, self.language)
        )
        silence = encoder.silence_latent[:, : -int(-TIMBRE_SECONDS * self.rows_per_second // 1)]
        states, _ = encoder(
            text_hidden_states=text,
            text_attention_mask=text_mask,
            lyric_hidden_states=lyrics,
            lyric_attention_mask=lyrics_mask,
            refer_audio_acoustic_hidden_states_packed=silence,
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=device),
        )
        rows: Tensor = states[0]
        return rows


def asked(facts: Mapping[str, str], language: str) -> dict[str, Any]:
    """Facts of a song as arguments of the pipeline's ``encode_prompt``. Raises StError for one that is no number."""
    arguments: dict[str, Any] = {
        "vocal_language": facts.get("language", "").strip() or language,
        "keyscale": facts.get("key", "").strip() or None,
        "timesignature": facts.get("timesignature", "").strip() or None,
        "max_text_length": MAX_TEXT_TOKENS,
        "max_lyric_length": MAX_LYRIC_TOKENS,
    }
    if tempo := _number("bpm", facts):
        arguments["bpm"] = round(tempo)
    if seconds := _number("seconds", facts):
        arguments["audio_duration"] = seconds
    return arguments


def _number(name: str, facts: Mapping[str, str]) -> float:
    text = facts.get(name, "").strip()
    try:
        return float(text or 0)
    except ValueError as error:
        raise StError(f"the {name} of a song is {text!r}, which is no number", fix="correct that fact") from error
