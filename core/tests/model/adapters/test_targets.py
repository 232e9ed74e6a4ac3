"""Names of layers, and what is said of those that match nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from st import StError
from st.model.adapters.targets import match_modules


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("attn.to_q", 4),
        ("transformer_blocks.1.attn.to_q", 1),
        ("transformer_blocks.*.attn.to_[qk]", 8),
        ("transformer_blocks.[01].ff.net.*", 4),
    ],
)
def test_patterns_name_ends_of_paths(make_case: Callable[[str], Any], pattern: str, count: int) -> None:
    assert len(match_modules(make_case("sd3").denoiser, (pattern,))) == count


def test_a_layer_is_listed_once_in_the_denoisers_order(make_case: Callable[[str], Any]) -> None:
    found = match_modules(make_case("sd3").denoiser, ("attn.to_q", "to_q", "transformer_blocks.0.attn.to_q"))

    assert found == tuple(f"transformer_blocks.{index}.attn.to_q" for index in range(4))


def test_half_a_name_is_no_match() -> None:
    with pytest.raises(StError, match="'q' matches no layer"):
        match_modules(nn.ModuleDict({"to_q": nn.Linear(1, 1)}), ("q",))


def test_a_container_is_not_a_layer_and_its_layers_are_proposed(make_case: Callable[[str], Any]) -> None:
    with pytest.raises(StError, match=r"'attn.to_out' matches no layer") as raised:
        match_modules(make_case("sd3").denoiser, ("attn.to_out",))

    assert raised.value.why == "'transformer_blocks.0.attn.to_out' is a ModuleList"
    assert "'attn.to_out.0'" in raised.value.fix


def test_no_targets_at_all_are_refused() -> None:
    with pytest.raises(StError, match="no modules are named"):
        match_modules(nn.Linear(1, 1), ())
