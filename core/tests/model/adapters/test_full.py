"""Training a denoiser's own weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from st import StError
from st.model.adapters.full import FullAdapter, FullOptions
from st.testing.subjects.tiny import TinyFamily


def test_every_weight_learns_and_is_restored_exactly(make_case: Callable[[str], Any]) -> None:
    trained, fresh = make_case("sd3"), make_case("sd3")
    adapter = FullAdapter(FullOptions())
    groups = adapter.attach(trained.denoiser, ())
    trained.run()
    torch.optim.SGD(groups, lr=0.1).step()

    adapter.attach(fresh.denoiser, ())
    adapter.load(fresh.denoiser, adapter.state(trained.denoiser))

    assert adapter.state(fresh.denoiser).keys() == dict(trained.denoiser.named_parameters()).keys()
    assert torch.equal(fresh.run()[0], trained.run()[0])


def test_some_weights_learn_and_the_others_do_not(make_case: Callable[[str], Any]) -> None:
    case = make_case("sd3")
    adapter = FullAdapter(FullOptions(train=("*.bias",), freeze=("transformer_blocks.0.*",)))

    adapter.attach(case.denoiser, ())

    learning = {name for name, parameter in case.denoiser.named_parameters() if parameter.requires_grad}
    assert learning == set(adapter.state(case.denoiser))
    assert all(name.endswith("bias") and "blocks.0." not in name for name in learning)
    assert adapter.note.endswith("weights learn")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FullOptions(train=("*.baias",)), r"adapter.train = '\*.baias' names no weight of SD3"),
        (FullOptions(freeze=("x",)), "adapter.freeze = 'x' names no weight"),
        (FullOptions(freeze=("*",)), "leaves no weight that learns"),
    ],
)
def test_a_choice_that_learns_nothing_is_refused(
    make_case: Callable[[str], Any], options: FullOptions, message: str
) -> None:
    with pytest.raises(StError, match=message):
        FullAdapter(options).attach(make_case("sd3").denoiser, ())


def test_quantized_weights_are_refused() -> None:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)

    with pytest.raises(StError, match="'weight' is quantized"):
        FullAdapter(FullOptions()).attach(layer, ())


def test_master_weights_are_float32_by_default() -> None:
    assert FullAdapter(FullOptions()).base_dtype(torch.bfloat16) == torch.float32
    assert FullAdapter(FullOptions(dtype="precision")).base_dtype(torch.float16) == torch.float16


def test_there_is_no_untrained_model_to_ask() -> None:
    with pytest.raises(StError, match="no untrained model left to ask"):
        FullAdapter(FullOptions()).disabled(nn.Linear(1, 1))


def test_the_exported_folder_is_a_checkpoint(tmp_path: Path) -> None:
    family = TinyFamily.tiny(tmp_path / "tiny")
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
    adapter = FullAdapter(FullOptions())
    adapter.attach(denoiser, ())
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(1)

    folder = adapter.export(family, denoiser, tmp_path, {})
    folder = adapter.export(family, denoiser, tmp_path, {})
    again = TinyFamily(TinyFamily.Options(checkpoint=str(folder))).load_denoiser(torch.device("cpu"), torch.float32)

    assert folder == tmp_path / "model"
    assert all(torch.equal(a, b) for a, b in zip(denoiser.parameters(), again.parameters(), strict=True))
