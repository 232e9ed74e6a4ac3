"""Data sets that are named learn the base model's answer, and others are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from st import Batch, Mix, Noised
from st.diffusion.densities import Uniform, UniformOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.path import straight
from st.diffusion.target import clean, epsilon, v, velocity
from st.diffusion.weightings import Uniform as Even
from st.diffusion.weightings import UniformOptions as EvenOptions
from st.testing import HookPluginTests, TinyRunner
from st.testing.runs import TINY
from st_prior.technique import parts_of


class TestPlugin(HookPluginTests):
    plugin = "prior"


@pytest.mark.parametrize("target", [velocity, epsilon, v, clean])
def test_the_target_is_the_answer(target):
    answer = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    output: Mix = target(straight(torch.tensor([0.001, 0.5, 1.0])))

    made = output.of(*parts_of(answer, output))

    assert torch.allclose(made, answer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", [velocity, epsilon, v, clean])
def test_the_loss_is_the_distance_to_the_answer(target):
    generator = torch.Generator().manual_seed(1)
    answer, prediction, x = (torch.randn(3, 4, 2, 2, generator=generator) for _ in range(3))
    t = torch.tensor([0.001, 0.5, 1.0])
    objective = Objective(straight, target, Uniform(UniformOptions()), Even(EvenOptions()), L2(L2Options()))
    taught, noise = parts_of(answer, target(straight(t)))
    batch = Batch(("a", "b", "c"), (0, 1, 2), "others", x, {})

    losses = objective.loss(prediction, Noised(x=x, t=t, clean=taught, noise=noise), batch)

    plain = [
        sum((p - a) ** 2 for p, a in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)) / 16
        for one, other in zip(prediction, answer, strict=True)
    ]
    assert losses.samples.tolist() == pytest.approx(plain, rel=1e-6)


def test_an_adapter_that_has_learnt_nothing_has_nothing_to_lose(tiny_run: TinyRunner) -> None:
    run = tiny_run(plugins=["prior"], steps=3)

    # A LoRA starts at the base model, so its first answers are those that are asked for.
    assert max(run.metrics()["term/prior"]) < 1e-10


def test_data_sets_that_are_not_named_train_as_before(tiny_run: TinyRunner, tmp_path: Path) -> None:
    held = f'[[dataset]]\nurl = "{tmp_path / "tiny-runs" / "photos"}"\nname = "others"\nresolution = 64\nalign = 8\n'
    never = "start_step = 1000\n"
    plain = tiny_run(text=held + never)

    named = tiny_run(plugins=["prior"], text=held + never + '[prior]\ndatasets = ["others"]')

    assert named.weights() == plain.weights()
    assert "term/prior" not in named.metrics()


def test_a_mixture_keeps_close_to_the_base(tiny_run: TinyRunner, tmp_path: Path) -> None:
    both = f'[[dataset]]\nurl = "{tmp_path / "tiny-runs" / "photos"}"\nname = "others"\nresolution = 64\nalign = 8\n'

    run = tiny_run(plugins=["prior"], text=both + '[prior]\ndatasets = ["others"]', steps=6)

    assert any(value > 0 for value in run.metrics()["term/prior"])


def test_an_unknown_data_set_is_refused(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="names 'other', which is no data set of this run"):
        tiny_run(plugins=["prior"], text='[prior]\ndatasets = ["other"]')


def test_training_every_weight_is_refused(run_file, st_cli, tmp_path: Path) -> None:
    file = run_file(
        f'plugins = ["{TINY}:TinyFamily", "prior"]\noutput = "{tmp_path}/out"\nsteps = 1\n'
        '[adapter]\nkind = "full"\n[[dataset]]\nurl = "photos"\n'
    )

    result = st_cli("train", file, "--dry-run")

    assert result.code == 2
    assert "prior asks the base model, and adapter.kind = 'full' changes its weights" in result.err
