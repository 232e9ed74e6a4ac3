"""Networks beside the denoiser: where they are, when, and what they are asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st import Geometry, Network, StError
from st.testing import TinyFamily, example_batch, example_noised
from st.testing.subjects.built_in import built_in_adapter
from st.train.parts.networks import ask

CPU, DEVICE = torch.device("cpu"), torch.device("meta")


class Moves(nn.Module):
    """Remembers where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[torch.device] = []

    def to(self, device: torch.device) -> Moves:  # type: ignore[override]
        self.places.append(device)
        return self


def test_a_swapped_network_is_on_the_device_while_anybody_uses_it() -> None:
    network = Network("teacher", Moves(), stays="swapped")

    with network.in_use(DEVICE), network.in_use(DEVICE):
        assert network.used

    assert not network.used
    assert network.module.places == [DEVICE, CPU]


@pytest.mark.parametrize("stays", ["device", "host"])
def test_one_that_stays_is_not_moved(stays: Any) -> None:
    network = Network("teacher", Moves(), stays=stays)

    with network.in_use(DEVICE):
        assert network.used

    assert network.module.places == []


@pytest.fixture
def run(tmp_path: Path) -> Any:
    family = TinyFamily.tiny(tmp_path / "tiny")
    denoiser = family.load_denoiser(CPU, torch.float32)
    config = SimpleNamespace(precision="bf16")
    adapter = built_in_adapter("full")
    teacher = Network("teacher", family.load_denoiser(CPU, torch.float32).requires_grad_(False), stays="swapped")
    with torch.no_grad():
        teacher.module.image_out.bias += 1
    return SimpleNamespace(
        family=family, denoiser=denoiser, adapter=adapter, config=config, device=CPU, networks={"teacher": teacher}
    )


def test_conditions_of_one_caption_are_asked_for_every_sample(run: Any) -> None:
    batch = example_batch(run.family, Geometry(64, 64), ("one", "two"))
    noised, other = example_noised(run.family, batch), example_batch(run.family, Geometry(64, 64), ("blurry",))
    repeated = example_batch(run.family, Geometry(64, 64), ("blurry", "blurry"))

    asked = ask(run, noised, batch, other.conditions, None)

    with torch.autocast("cpu", torch.bfloat16):
        expected = run.family.predict(run.denoiser, noised, replace(batch, conditions=repeated.conditions))
    torch.testing.assert_close(asked, expected, rtol=0, atol=0)


def test_a_network_is_asked_by_its_name_in_the_precision_of_the_run(run: Any) -> None:
    batch = example_batch(run.family, Geometry(64, 64))
    noised = example_noised(run.family, batch)

    with torch.no_grad():
        student, teacher = ask(run, noised, batch, None, None), ask(run, noised, batch, None, "teacher")

    assert student.dtype == teacher.dtype == torch.bfloat16
    assert float((teacher - student).float().mean()) == pytest.approx(1, abs=0.1)


def test_gradients_through_a_network_that_would_be_gone_are_refused(run: Any) -> None:
    batch = example_batch(run.family, Geometry(64, 64))
    noised = example_noised(run.family, batch)
    x = noised.x.clone().requires_grad_()

    with pytest.raises(StError, match="would be gone when backward needs it"):
        ask(run, replace(noised, x=x), batch, None, "teacher")
    with run.networks["teacher"].in_use(CPU):
        answer: Tensor = ask(run, replace(noised, x=x), batch, None, "teacher")
        torch.autograd.backward(answer.float().sum())

    assert x.grad is not None and x.grad.any()


def test_a_name_that_there_is_not_is_said_with_those_there_are(run: Any) -> None:
    batch = example_batch(run.family, Geometry(64, 64))

    with pytest.raises(StError, match="no network 'judge'") as refused:
        ask(run, example_noised(run.family, batch), batch, None, "judge")

    assert refused.value.why == "plugins of this run bring: teacher"
