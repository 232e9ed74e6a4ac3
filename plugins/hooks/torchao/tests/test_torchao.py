"""What torchao makes of weights is what is trained on."""

from __future__ import annotations

import pytest
import torch
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)

from st import StError
from st.testing import HookPluginTests, QuantizerTests, TinyRunner
from st_torchao.quantizer import FP8, INT4, INT8, GroupOptions, InGroups, InRows, RowOptions


class TestPlugin(HookPluginTests):
    plugin = "torchao"
    settings = '[quantizer]\nkind = "int4-torchao"'


class TestInt8(QuantizerTests):
    plugin, kind, error, bits = "torchao", INT8, 0.008, 8.1


class TestFp8(QuantizerTests):
    plugin, kind, error, bits = "torchao", FP8, 0.027, 8.1


class TestInt4(QuantizerTests):
    plugin, kind, error, bits = "torchao", INT4, 0.097, 4.5


def random(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def by_torchao(weight: torch.Tensor, config) -> torch.Tensor:
    """What a layer of these weights holds after torchao quantized it."""
    model = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight.data = weight.clone()
    quantize_(model, config)
    return model[0].weight.dequantize()


@pytest.mark.parametrize(("kind", "config"), [(INT8, Int8WeightOnlyConfig), (FP8, Float8WeightOnlyConfig)])
def test_rows_are_those_of_the_library(kind, config):
    weight = random(48, 80)

    packed = InRows(kind, RowOptions()).pack(weight)

    assert torch.equal(packed.restore(packed.parts), by_torchao(weight, config(set_inductor_config=False)))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_groups_are_those_of_the_library(group):
    weight = random(48, 256)

    packed = InGroups(INT4, GroupOptions(group=group)).pack(weight)

    theirs = by_torchao(weight, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group)))
    assert torch.equal(packed.restore(packed.parts), theirs)


def test_smaller_groups_are_more_exact():
    weight = random(64, 256)

    def off(group: int) -> float:
        packed = InGroups(INT4, GroupOptions(group=group)).pack(weight)
        return float((packed.restore(packed.parts) - weight).norm())

    assert off(32) < off(64) < off(128)


def test_widths_that_no_group_divides_are_left_and_counted(tiny_run: TinyRunner) -> None:
    run = tiny_run(plugins=["torchao"], text='[quantizer]\nkind = "int4-torchao"\ngroup = 64')

    (note,) = [event["text"] for event in run.events() if event.get("kind") == "quantizer"]
    # Of layers 64 or 192 wide there are four; the rest are 32 wide, or 16.
    assert "quantized 4 of 23 linear layers" in note
    assert "18 of a width that is no multiple of 64" in note


def test_a_group_size_that_torchao_is_not_asked_for_is_refused(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="group"):
        tiny_run(plugins=["torchao"], text='[quantizer]\nkind = "int4-torchao"\ngroup = 48')


def test_a_device_that_cannot_do_it_is_refused_with_what_to_do() -> None:
    with pytest.raises(StError, match="cannot pack bfloat16 weights on meta") as raised:
        InRows(FP8, RowOptions()).check(torch.device("meta"), torch.bfloat16)

    assert "leave out [quantizer]" in raised.value.fix
