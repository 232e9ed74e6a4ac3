"""Options that contradict each other are refused, and those that decide something decide it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from st import StError
from st_wan import Wan, WanOptions


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flavour": "t2v-14b", "experts": "low"}, "t2v-14b is one denoiser"),
        ({"flavour": "t2v-a14b", "denoiser": "x.safetensors"}, "set experts to the one"),
        ({"flavour": "i2v-480p", "first_frame": 0.5}, "first_frame has no effect with i2v-480p"),
        ({"flavour": "t2v-1.3b", "first_frame": 0.5}, "first_frame has no effect"),
        ({"flavour": "vace-14b", "first_frame": 0.5}, "0 or 1 with VACE"),
        ({"flavour": "ti2v-5b", "first_frame": 0.5, "times": "sample"}, "not with first_frame"),
        ({"flavour": "t2v-1.3b", "times": "sample"}, "goes with ti2v-5b"),
        ({"checkpoint": "wan.safetensors"}, "name a single file of weights in denoiser"),
        ({"flavour": "t2v-2b"}, "t2v-1.3b"),
    ],
)
def test_what_has_no_effect_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        WanOptions(**options)


def test_a_flavour_decides_repository_sizes_and_speed() -> None:
    five, one = Wan(WanOptions(flavour="ti2v-5b")), Wan(WanOptions())

    assert (one.options.checkpoint, five.options.checkpoint) == (
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    )
    assert (one.geometry.multiple, five.geometry.multiple) == (16, 32)
    assert [one.geometry.frames(count) for count in (1, 4, 5, 83)] == [1, 1, 5, 81]
    assert (one._codec().frames_per_second, five._codec().frames_per_second) == (16, 24)


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({}, ("to_q", "to_k", "to_v", "to_out.0")),
        ({"flavour": "i2v-720p"}, ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")),
        ({"targets": "attention+ffn"}, ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")),
    ],
)
def test_targets_are_those_of_the_flavour(options: dict[str, Any], targets: tuple[str, ...]) -> None:
    assert Wan(WanOptions(**options)).adapter_targets() == targets


def test_prompts_show_a_picture_only_where_one_is_read() -> None:
    assert Wan(WanOptions()).references() is None
    assert Wan(WanOptions(flavour="ti2v-5b")).references() is None
    for options in ({"flavour": "i2v-a14b"}, {"flavour": "ti2v-5b", "first_frame": 0.1}, {"flavour": "i2v-480p"}):
        read = Wan(WanOptions(**options)).references()
        assert read is not None and (read.at_least, read.at_most) == (0, 1)


def test_a_checkpoint_that_does_not_say_where_experts_meet_is_named(make_family: Any) -> None:
    import torch

    family = make_family("t2v-a14b", checkpoint=make_family().options.checkpoint)

    with pytest.raises(StError, match="does not say where its experts meet"):
        family.is_noisy(torch.tensor([0.5]))
