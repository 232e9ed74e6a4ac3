"""A quantizer of one file passes the kit, and quantizers that break a promise do not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from st.model.quantize.quantizer import PackedWeight, Quantizer, QuantizerOptions
from st.testing import QuantizerTests

PLUGIN = f"{Path(__file__).with_name('plugins') / 'rounding.py'}:Rounds"


class TestRounding(QuantizerTests):
    plugin, kind, error, bits = PLUGIN, "rounding", 0.008, 8.1


class Copied(Quantizer):
    """Keeps the weight as it is."""

    def pack(self, weight: Tensor) -> PackedWeight:
        return PackedWeight({"weight": weight.clone()}, given)


class Random(Quantizer):
    """Rounds up or down by chance."""

    def pack(self, weight: Tensor) -> PackedWeight:
        return PackedWeight({"weight": weight + 0.001 * torch.rand_like(weight)}, given)


class Divided(Quantizer):
    """Divides rows by their largest, which may be zero."""

    def pack(self, weight: Tensor) -> PackedWeight:
        scale = weight.abs().amax(dim=1, keepdim=True)
        return PackedWeight({"weight": weight / scale, "scale": scale}, lambda parts: parts["weight"] * parts["scale"])


class Spoiled(Quantizer):
    """Works in the weight that it is given."""

    def pack(self, weight: Tensor) -> PackedWeight:
        return PackedWeight({"weight": weight.mul_(0.99)}, given)


class Absolute(Quantizer):
    """Steps of one size, whatever the weights are."""

    def pack(self, weight: Tensor) -> PackedWeight:
        return PackedWeight({"weight": (weight * 100).round() / 100}, given)


def given(parts: Any) -> Tensor:
    weight: Tensor = parts["weight"]
    return weight


@pytest.mark.parametrize(
    ("quantizer", "promise"),
    [
        (Copied, "test_a_restored_weight_is_off_by_no_more_than_is_said"),
        (Copied, "test_a_weight_takes_no_more_room_than_is_said"),
        (Random, "test_equal_weights_are_packed_equally"),
        (Divided, "test_rows_of_zeros_stay_zeros"),
        (Spoiled, "test_the_weight_that_was_given_is_left_alone"),
        (Absolute, "test_small_and_large_weights_are_restored_alike"),
    ],
)
def test_a_broken_promise_is_found(quantizer: Any, promise: str) -> None:
    build = partial(quantizer, "any", QuantizerOptions())

    with pytest.raises(AssertionError):
        getattr(TestRounding(), promise)(build)


def test_a_promise_that_is_kept_passes() -> None:
    TestRounding().test_equal_weights_are_packed_equally(partial(Absolute, "any", QuantizerOptions()))
