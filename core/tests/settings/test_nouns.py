"""The reference of public names is whole: each is there, is told about, and says the shapes of its tensors."""

from __future__ import annotations

import pytest

import st
import st.testing
from st.settings.nouns import MODULES, Member, Noun, nouns, nouns_page, untold


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_says_what_it_is_and_the_shapes_of_its_tensors(module: str) -> None:
    assert [line for noun in nouns(module) for line in untold(noun)] == []


def test_no_public_name_is_missing() -> None:
    page = nouns_page()

    names = [*st.__all__, *st.testing.__all__, "clip", "t5", "language", "seeing", "autoencoder", "save_pipeline"]
    assert [name for name in names if f"### `{name}`" not in page] == []


def test_a_name_without_shapes_is_found() -> None:
    bare = Noun("st", "ask", "ask(x: Tensor) -> Tensor", "Ask the denoiser.")
    told = Noun("st", "ask", "ask(x: Tensor) -> Tensor", "Ask the denoiser about (B, C, H, W).")
    field = Noun("st", "Batch", "class Batch", "Samples.", (Member("latents", "latents: Tensor", ""),))

    assert list(untold(bare)) == ["st.ask says no shapes"]
    assert list(untold(told)) == []
    assert list(untold(field)) == ["st.Batch.latents says no shapes"]


def test_fields_come_with_what_stands_under_them() -> None:
    (shot,) = [noun for noun in nouns("st") if noun.name == "Shot"]

    assert {member.name: member.told for member in shot.members}["steps"] == "Sampling steps."
    assert [member.signature for member in shot.members][-1] == "on_step: OnStep = unwatched"
