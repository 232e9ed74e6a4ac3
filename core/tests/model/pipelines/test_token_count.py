"""What a pipeline puts around a caption is counted, and a negative is read as the pipeline reads one."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, QwenImagePipeline
from transformers import Gemma2Config, Gemma2Model, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from st.data.encoder import Input
from st.data.sets.words import DROPPED, Words
from st.model.checkpoint.checkpoint_folder import CheckpointFolder
from st.model.pipelines.pipeline_text import PipelineText, Prompting
from st.model.pipelines.tiny_tokenizer import character_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CPU = torch.device("cpu")
SYSTEM = "Be brief. "
POSITIVE = ("prompt_embeds", "mask", None, None)
NEGATIVE = (None, None, "prompt_embeds", "mask")


def written(folder: Path, pipeline: type, encoder: Any, tokenizer: Any) -> CheckpointFolder:
    """A checkpoint of a pipeline's text parts, as much of it as encoding captions needs."""
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": pipeline.__name__,
        "text_encoder": ["transformers", type(encoder).__name__],
        "tokenizer": ["transformers", type(tokenizer).__name__],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": [None, None],
        "vae": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return CheckpointFolder(str(folder), "", "")


@pytest.fixture(scope="module")
def lumina(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFolder:
    """A tiny text encoder that is given a system prompt before prompts only."""
    tokenizer, count = character_tokenizer(sorted(set(string.printable) - set(string.whitespace)))
    config = Gemma2Config(
        vocab_size=count, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Gemma2Model(config)
    return written(tmp_path_factory.mktemp("lumina"), Lumina2Pipeline, encoder, tokenizer)


def text(folder: CheckpointFolder, negatives: Any = NEGATIVE) -> PipelineText:
    arguments = {"system_prompt": SYSTEM.strip(), "max_sequence_length": 60}
    prompting = Prompting(
        Lumina2Pipeline, ("transformer", "vae"), POSITIVE, {"prompt_embeds": "mask"}, arguments, negatives
    )
    return PipelineText(folder, prompting, "fp32")


def test_a_system_prompt_takes_its_place_among_the_tokens(lumina: CheckpointFolder) -> None:
    encoder = text(lumina)
    alone = len(encoder._readings[0].tokenizer("red").input_ids)

    counted = encoder.count_tokens("red")

    assert counted is not None
    assert counted[0] == counted[1] == alone + len(f"{SYSTEM}<Prompt Start> ")
    assert encoder.count_tokens("x" * 50) == (counted[0] + 47, 60)


def test_negatives_and_dropped_captions_are_read_as_the_pipeline_reads_negatives(lumina: CheckpointFolder) -> None:
    encoder = text(lumina)
    asked = [Words("red"), Words("grey", role="negative"), DROPPED, Words("")]
    upstream = Lumina2Pipeline.from_pretrained(lumina.root([]), transformer=None, vae=None)

    with encoder.open(CPU) as encode:
        entries = encode([words.input(encoder) for words in asked])

    for words, entry in zip(asked, entries, strict=True):
        with torch.no_grad():
            values = upstream.encode_prompt(
                [words.caption], negative_prompt=[words.caption], system_prompt=SYSTEM.strip(), max_sequence_length=60
            )
        embeds, mask = values[:2] if words.role == "caption" else values[2:]
        torch.testing.assert_close(entry["prompt_embeds"], embeds[0][mask[0].bool()])
    assert len(entries[1]["prompt_embeds"]) < len(entries[0]["prompt_embeds"])


def test_a_family_that_says_nothing_of_negatives_reads_all_alike(lumina: CheckpointFolder) -> None:
    alike, told = text(lumina, ()), text(lumina)
    negative = Words("grey", role="negative")

    with alike.open(CPU) as encode:
        first, second = encode([negative.input(alike), Input("grey", caption="grey")])

    assert torch.equal(first["prompt_embeds"], second["prompt_embeds"])
    assert (alike.reads, told.reads) == (("caption",), ("caption", "role"))
    assert alike.fingerprint != told.fingerprint


def test_a_template_that_is_cut_out_of_the_embeddings_takes_nothing_from_the_caption(tmp_path: Path) -> None:
    tokenizer, count = character_tokenizer(sorted(set(string.printable) - set(string.whitespace)))
    text_config = {
        "vocab_size": count, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text_config, vision_config=vision)
    folder = written(tmp_path, QwenImagePipeline, Qwen2_5_VLForConditionalGeneration(config), tokenizer)
    prompting = Prompting(
        QwenImagePipeline, ("transformer", "vae"), ("prompt_embeds", None), {}, {"max_sequence_length": 20}
    )
    encoder = PipelineText(folder, prompting, "fp32")

    around = encoder.count_tokens("")
    whole, cut = encoder.count_tokens("x" * 5), encoder.count_tokens("x" * 100)

    assert around is not None and whole is not None and cut is not None
    assert whole == (around[0] + 5, around[0] + 5)
    assert cut[0] == around[0] + 100
    assert around[0] > 100 and around[0] < cut[1] <= around[0] + 20
