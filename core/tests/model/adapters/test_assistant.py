"""An adapter that is beside the weights in training, and not in previews."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from st import StError
from st.model.adapters.assistant import add_assistant, bring_assistant, find_assistant, without_assistant
from st.model.files.adapter_file import write_adapter_file
from st.testing import TinyFamily, example_batch, example_noised
from st.testing.examples import awake_denoiser
from st.testing.family import ModelFamilyTests


@pytest.fixture
def family(tmp_path: Path) -> TinyFamily:
    return TinyFamily.tiny(tmp_path / "tiny")


@pytest.fixture
def ask(family: TinyFamily) -> Callable[[Any], Tensor]:
    """What a denoiser answers to one batch."""
    batch = example_batch(family, ModelFamilyTests.geometries[0])
    noised = example_noised(family, batch)
    return lambda denoiser: family.predict(denoiser, noised, batch).detach()


def an_adapter(where: Path, path: str, width: int) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"transformer.{path}.lora_A.weight": torch.randn(2, width, generator=generator),
        f"transformer.{path}.lora_B.weight": torch.randn(width, 2, generator=generator),
    }
    write_adapter_file(where / "a.safetensors", tensors, {})
    return where / "a.safetensors"


def test_it_counts_in_training_as_if_it_were_merged(
    family: TinyFamily, ask: Callable[[Any], Tensor], tmp_path: Path
) -> None:
    denoiser, merged = awake_denoiser(family), awake_denoiser(family)
    layer: Any = merged.get_submodule("blocks.0.attn.to_q")
    file = an_adapter(tmp_path, "blocks.0.attn.to_q", layer.in_features)
    bare = ask(denoiser)
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((2, layer.in_features), (layer.out_features, 2)))
    with torch.no_grad():
        layer.weight += 0.5 * up @ down

    count = add_assistant(denoiser, file, family.adapter_formats(), 0.5)

    assert count == 1
    torch.testing.assert_close(ask(denoiser), ask(merged), rtol=0, atol=1e-5)
    assert not torch.allclose(ask(denoiser), bare, atol=1e-3)


def test_it_is_away_where_previews_are_made_and_back_after_an_error(
    family: TinyFamily, ask: Callable[[Any], Tensor], tmp_path: Path
) -> None:
    denoiser = awake_denoiser(family)
    bare = ask(denoiser)
    width: Any = denoiser.get_submodule("blocks.0.attn.to_q")
    add_assistant(
        denoiser, an_adapter(tmp_path, "blocks.0.attn.to_q", width.in_features), family.adapter_formats(), 1.0
    )
    training = ask(denoiser)

    with pytest.raises(ZeroDivisionError), without_assistant(denoiser):
        assert torch.equal(ask(denoiser), bare)
        raise ZeroDivisionError

    assert torch.equal(ask(denoiser), training)
    assert not any("lora" in name for name, _ in denoiser.named_parameters())


def test_one_of_another_model_is_refused(family: TinyFamily, tmp_path: Path) -> None:
    file = an_adapter(tmp_path, "single_blocks.0.to_q", 8)

    with pytest.raises(StError, match=r"model.assistant: 'a.safetensors' fits no TinyTransformer"):
        add_assistant(awake_denoiser(family), file, family.adapter_formats(), 1.0)


def test_one_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StError, match=r"model.assistant = .*there is no such file"):
        find_assistant(str(tmp_path / "none.safetensors"))


def test_no_strength_is_no_assistant(family: TinyFamily, tmp_path: Path) -> None:
    said: list[str] = []

    class Heard:
        def note(self, text: str, kind: str = "note", **facts: object) -> None:
            said.append(text)

    denoiser = awake_denoiser(family)
    layer: Any = denoiser.get_submodule("blocks.0.attn.to_q")
    file = an_adapter(tmp_path, "blocks.0.attn.to_q", layer.in_features)
    for strength in (0.0, 1.0):
        bring_assistant(denoiser, str(file), strength, family.adapter_formats(), Heard())  # type: ignore[arg-type]

    assert said == [f"assistant {str(file)!r} beside 1 layers, in training only"]
