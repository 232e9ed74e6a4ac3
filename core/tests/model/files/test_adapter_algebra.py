"""Adapter files added up, made smaller and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from st import StError
from st.model.files.adapter_algebra import (
    AdapterFile,
    Update,
    comparable,
    distance,
    merge,
    open_adapter,
    resize,
    write_adapter,
)
from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.model.files.formats import AdapterFormat, LoraShape, comfyui_format, kohya_format
from st.model.files.peft_layout import diffusers_format

SIZES = {"blocks.0.to_q": (6, 5), "blocks.1.to_q": (6, 5), "conv_in": (4, 5)}
FORMATS: dict[str, AdapterFormat] = {
    "diffusers": diffusers_format("transformer"),
    "comfyui": comfyui_format(),
    "kohya": kohya_format(SIZES),
}


def random_update(path: str, rank: int, alpha: float, seed: int) -> Update:
    draws = torch.Generator().manual_seed(seed)
    inputs, outputs = SIZES[path]
    kernel = (3, 3) if path == "conv_in" else ()
    down = torch.randn(rank, inputs, *kernel, generator=draws)
    return Update(down, torch.randn(outputs, rank, *[1 for _ in kernel], generator=draws), alpha)


def a_file(path: Path, layout: str = "kohya", rank: int = 3, seed: int = 0) -> AdapterFile:
    updates = {name: random_update(name, rank + (name == "conv_in"), 1.5, seed + i) for i, name in enumerate(SIZES)}
    state: dict[str, Tensor] = {f"{name}.lora_A.weight": one.down for name, one in updates.items()}
    state |= {f"{name}.lora_B.weight": one.up for name, one in updates.items()}
    shape = LoraShape({name: one.rank for name, one in updates.items()}, dict.fromkeys(updates, 1.5))
    write_adapter_file(path, *FORMATS[layout].to_file(state, shape))
    return open_adapter(path)


def whole(one: Update) -> Tensor:
    up, down = one.factors()
    return up @ down


@pytest.mark.parametrize("layout", FORMATS)
def test_a_file_is_written_as_it_was_read(tmp_path: Path, layout: str) -> None:
    opened = a_file(tmp_path / "a.safetensors", layout)

    write_adapter(opened, tmp_path / "b.safetensors", opened.updates)

    (before, header), (after, header_after) = (read_adapter_file(tmp_path / f"{name}.safetensors") for name in "ab")
    trained = {"st_trained_alphas"}
    assert header_after == {name: text for name, text in header.items() if name not in trained}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    scales = {one.alpha / one.rank for one in opened.updates.values()}
    assert scales == ({1.0} if layout == "diffusers" else {1.5 / 3, 1.5 / 4})


@pytest.mark.parametrize("layout", FORMATS)
def test_merging_adds_the_weighted_updates(tmp_path: Path, layout: str) -> None:
    one = a_file(tmp_path / "a.safetensors", layout)
    other = a_file(tmp_path / "b.safetensors", layout, rank=2, seed=7)

    write_adapter(one, tmp_path / "c.safetensors", merge([one, other], [1.0, -0.5]))

    both = open_adapter(tmp_path / "c.safetensors")
    assert both.updates.keys() == one.updates.keys()
    for stem, update in both.updates.items():
        expected = whole(one.updates[stem]) - 0.5 * whole(other.updates[stem])
        torch.testing.assert_close(whole(update), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", SIZES)
def test_a_product_of_low_rank_is_found_again(path: str) -> None:
    one, nothing = random_update(path, 2, 3.0, 0), random_update(path, 3, 4.5, 1)
    padded = Update(torch.cat([one.down, nothing.down]), torch.cat([one.up, 0 * nothing.up], dim=1), 7.5)

    smaller, kept = resize(padded, 2)

    assert smaller.rank == 2
    assert smaller.alpha / smaller.rank == padded.alpha / padded.rank
    assert kept == pytest.approx(1.0)
    torch.testing.assert_close(whole(smaller), whole(padded), rtol=0, atol=1e-5)


def test_a_lower_rank_is_the_closest_there_is() -> None:
    one = random_update("blocks.0.to_q", 4, 4.0, 0)
    values = torch.linalg.svdvals(whole(one))

    smaller, kept = resize(one, 2)

    torch.testing.assert_close(torch.linalg.norm(whole(one) - whole(smaller)), values[2:].norm(), rtol=1e-4, atol=0)
    assert kept == pytest.approx(float(values[:2].norm() / values.norm()), rel=1e-4)
    assert resize(one, 9) == (one, 1.0)


def test_the_same_update_is_at_no_distance_however_it_is_factored() -> None:
    one = random_update("blocks.0.to_q", 3, 6.0, 0)
    same = Update(one.down * 2, one.up, 3.0)
    opposite = Update(one.down, -one.up, 6.0)

    assert distance(one, same) < 1e-6
    assert distance(one, opposite) == pytest.approx(2.0)
    assert distance(Update(0 * one.down, one.up, 1.0), Update(0 * one.down, one.up, 1.0)) == 0.0


def test_files_of_two_layouts_are_not_mixed(tmp_path: Path) -> None:
    one, other = a_file(tmp_path / "a.safetensors", "kohya"), a_file(tmp_path / "b.safetensors", "comfyui")

    with pytest.raises(StError, match="have no layer in common") as caught:
        merge([one, other], [1.0, 1.0])
    assert "st adapter convert" in caught.value.fix


def test_files_of_two_models_name_the_tensor(tmp_path: Path) -> None:
    one, other = a_file(tmp_path / "a.safetensors"), a_file(tmp_path / "b.safetensors")
    wider = {stem: random_update("conv_in", 3, 1.5, 0) for stem in other.updates if stem.endswith("to_q")}
    updates = {**other.updates, **wider}
    write_adapter(other, tmp_path / "c.safetensors", updates)

    with pytest.raises(StError, match=r"'lora_unet_blocks_0_to_q.lora_down.weight' is \(4, 3, 3\) beside its rank"):
        comparable(one, open_adapter(tmp_path / "c.safetensors"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.dora_scale", "is not plain LoRA"),
        ("a.diff_b", "is not plain LoRA"),
        ("a.hada_w1_a", "1 of 3 tensors belong nowhere, such as 'a.hada_w1_a'"),
        ("b.hada_w1_a", "1 of 3 tensors belong nowhere, such as 'b.hada_w1_a'"),
        ("b.lora_down.weight", "'b' has no lora_B.weight"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, name: str, message: str) -> None:
    names = ("a.lora_down.weight", "a.lora_up.weight", name)
    write_adapter_file(tmp_path / "a.safetensors", {one: torch.zeros(2, 2) for one in names}, {})

    with pytest.raises(StError, match=message):
        open_adapter(tmp_path / "a.safetensors").plain()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    write_adapter_file(tmp_path / "a.safetensors", {"weight": torch.zeros(1)}, {})

    with pytest.raises(StError, match="is no adapter file"):
        open_adapter(tmp_path / "a.safetensors")
