"""What bitsandbytes makes of weights is what is trained on."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit

from st import StError
from st.testing import HookPluginTests, QuantizerTests, TinyRunner
from st_bitsandbytes.quantizer import INT8, NF4, Int8, Nf4, Nf4Options, RowOptions


class TestPlugin(HookPluginTests):
    plugin = "bitsandbytes"
    settings = '[quantizer]\nkind = "nf4-bnb"\ndouble = true'


class TestNf4(QuantizerTests):
    plugin, kind, error, bits = "bitsandbytes", NF4, 0.093, 4.5


class TestInt8(QuantizerTests):
    plugin, kind, error, bits = "bitsandbytes", INT8, 0.008, 8.1


def random(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(48, 256), (33, 95), (7, 150), (1, 64)])
@pytest.mark.parametrize("double", [False, True])
def test_blocks_are_those_of_the_librarys_layer(double, shape):
    weight = random(*shape)
    theirs = bitsandbytes.nn.Linear4bit(shape[1], shape[0], quant_type="nf4", compress_statistics=double, bias=False)
    theirs.weight = bitsandbytes.nn.Params4bit(
        weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=double, blocksize=64
    )
    theirs = theirs.to("cpu")

    packed = Nf4(NF4, Nf4Options(double=double)).pack(weight)

    expected = dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)
    assert torch.equal(packed.restore(packed.parts), expected)


def test_layers_smaller_than_a_block_stay():
    quantizer = Nf4(NF4, Nf4Options(block=128, smallest=0))

    assert quantizer.unfit((1, 127)) == "of fewer weights than a block of 128"
    assert quantizer.unfit((2, 64)) == ""


def test_rows_are_multiples_of_a_127th_of_their_largest():
    weight = random(48, 80).half().float()

    packed = Int8(INT8, RowOptions()).pack(weight)

    step = weight.abs().amax(dim=1, keepdim=True) / 127
    restored = packed.restore(packed.parts)
    assert torch.allclose(restored / step, (restored / step).round(), atol=1e-4)
    assert ((restored - weight).abs() <= 0.5001 * step).all()


def test_double_quantization_takes_less_room_and_is_nearly_as_exact():
    weight = random(256, 512).bfloat16()

    def measured(double: bool) -> tuple[float, float]:
        packed = Nf4(NF4, Nf4Options(double=double)).pack(weight)
        size = sum(part.numel() * part.element_size() for part in packed.parts.values())
        return 8 * size / weight.numel(), float((packed.restore(packed.parts) - weight).norm() / weight.norm())

    (bits, off), (fewer, slightly_more) = measured(False), measured(True)

    # 1 KiB of each weight is a table; in layers of real models that is nothing.
    assert fewer < bits - 0.3
    assert abs(slightly_more - off) < 0.001


def test_smaller_blocks_are_more_exact():
    weight = random(64, 512)

    def off(block: int) -> float:
        packed = Nf4(NF4, Nf4Options(block=block)).pack(weight)
        return float((packed.restore(packed.parts) - weight).norm())

    assert off(64) < off(128) < off(256)


def test_double_is_no_option_of_eight_bits(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="double"):
        tiny_run(plugins=["bitsandbytes"], text='[quantizer]\nkind = "int8-bnb"\ndouble = true')


def test_an_unknown_kind_is_answered_with_the_closest(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="Did you mean 'nf4-bnb'"):
        tiny_run(plugins=["bitsandbytes"], text='[quantizer]\nkind = "nf4bnb"')


def test_a_device_that_cannot_do_it_is_refused_with_what_to_do() -> None:
    with pytest.raises(StError, match="cannot pack bfloat16 weights on meta") as raised:
        Nf4(NF4, Nf4Options()).check(torch.device("meta"), torch.bfloat16)

    assert "leave out [quantizer]" in raised.value.fix


def test_pictures_in_between_do_not_change_what_is_learnt(tiny_run: TinyRunner) -> None:
    """The library's own layers would repack their weights in eval mode."""
    section = '[quantizer]\nkind = "nf4-bnb"\n'
    plain = tiny_run(plugins=["bitsandbytes"], text=section)
    pictures = '[validation]\nevery = 1\nsteps = 2\nprompts = ["a red square"]\nresolutions = ["64x64"]\n'

    shown = tiny_run(plugins=["bitsandbytes"], text=section + pictures)

    assert shown.weights() == plain.weights()
    assert list((shown.directory / "samples").rglob("*.png"))
