"""What optimum-quanto makes of weights is what is trained on."""

from __future__ import annotations

import pytest
import torch
from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qfloat8_e4m3fn, qint8, quantize_weight
from optimum.quanto.tensor.grouped import ungroup

from st import StError
from st.testing import HookPluginTests, QuantizerTests, TinyRunner
from st_quanto.quantizer import GROUPS, GroupOptions, InBytes, InGroups, RowOptions


class TestPlugin(HookPluginTests):
    plugin = "quanto"
    settings = '[quantizer]\nkind = "int4-quanto"'


class TestInt8(QuantizerTests):
    plugin, kind, error, bits = "quanto", "int8-quanto", 0.008, 8.1


class TestFp8(QuantizerTests):
    plugin, kind, error, bits = "quanto", "fp8-quanto", 0.027, 8.1


class TestInt4(QuantizerTests):
    plugin, kind, error, bits = "quanto", "int4-quanto", 0.11, 4.25


class TestInt2(QuantizerTests):
    plugin, kind, error, bits = "quanto", "int2-quanto", 0.52, 2.25


def random(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("number", "name"), [(qint8, "qint8"), (qfloat8_e4m3fn, "qfloat8_e4m3fn")])
def test_bytes_are_those_of_the_library(number, name):
    weight = random(48, 80)

    packed = InBytes("any", name, RowOptions()).pack(weight)

    scale = AbsmaxOptimizer()(weight, qtype=number, axis=0)
    theirs = quantize_weight(weight, number, 0, scale, optimized=False).dequantize()
    assert torch.equal(packed.restore(packed.parts), theirs)


@pytest.mark.parametrize(
    ("bits", "shape"), [(4, (48, 256)), (2, (48, 256)), (4, (33, 96)), (2, (3, 32)), (2, (1, 160))]
)
def test_groups_are_those_of_the_library(bits, shape):
    weight = random(*shape)
    quantizer = InGroups("any", bits, GroupOptions())

    packed = quantizer.pack(weight)

    # The library's own dequantize() would compile an extension; this is its arithmetic before anything is packed.
    group = {256: 128, 96: 96, 32: 32, 160: 32}[shape[1]]
    scale, shift = MaxOptimizer()(weight, qtype=_number(bits), axis=0, group_size=group)
    numbers = torch.ops.quanto.quantize_affine(weight, bits, 0, group, scale, shift)
    theirs = ungroup(scale * numbers - shift, axis=0, orig_shape=weight.shape)
    assert torch.equal(packed.restore(packed.parts), theirs)


def _number(bits: int):
    from optimum.quanto import qtypes

    return qtypes[f"qint{bits}"]


def test_smaller_groups_are_more_exact():
    weight = random(64, 256)

    def off(group: int) -> float:
        packed = InGroups("any", 2, GroupOptions(group=group)).pack(weight)
        return float((packed.restore(packed.parts) - weight).norm())

    assert off(32) < off(64) < off(128)


@pytest.mark.parametrize("kind", GROUPS)
def test_widths_that_no_group_divides_are_left_and_counted(kind, tiny_run: TinyRunner) -> None:
    quantizer = InGroups(kind, GROUPS[kind], GroupOptions())

    assert quantizer.unfit((64, 40)) == "of a width that is no multiple of 32"
    assert quantizer.unfit((64, 160)) == ""


def test_layers_that_the_run_file_names_are_kept_and_counted(tiny_run: TinyRunner) -> None:
    run = tiny_run(plugins=["quanto"], text='[quantizer]\nkind = "int8-quanto"\nkeep = ["time_in", "*.to_out"]')

    (note,) = [event for event in run.events() if event.get("kind") == "quantizer"]
    assert "quantized 17 of 23 linear layers" in note["text"]
    assert "5 to be kept" in note["text"]


def test_a_name_that_keeps_nothing_is_refused(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="'to_nothing' names no linear layer of TinyTransformer"):
        tiny_run(plugins=["quanto"], text='[quantizer]\nkind = "int8-quanto"\nkeep = ["to_nothing"]')


def test_text_encoders_that_cannot_be_quantized_are_named(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match=r"text encoders cannot be quantized \('text'\)"):
        tiny_run(plugins=["quanto"], text='[quantizer]\nkind = "int8-quanto"\ntext_encoders = true')


def test_a_group_size_of_another_kind_is_refused(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="group"):
        tiny_run(plugins=["quanto"], text='[quantizer]\nkind = "int8-quanto"\ngroup = 64')


def test_a_device_without_such_numbers_is_refused_with_what_to_do() -> None:
    with pytest.raises(StError, match="cannot pack float32 weights on meta") as raised:
        InBytes("int8-quanto", "qint8", RowOptions()).check(torch.device("meta"), torch.float32)

    assert "leave out [quantizer]" in raised.value.fix
