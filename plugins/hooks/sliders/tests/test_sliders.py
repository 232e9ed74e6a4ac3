"""A batch is learnt at the strength of its data set, and everything else sees the adapter as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from st.testing import HookPluginTests, TinyRun, TinyRunner
from st.testing.runs import TINY
from st_sliders import SlidersOptions

BACKWARDS = "[sliders.strengths]\nphotos = -1.0\n"


class TestPlugin(HookPluginTests):
    plugin = "sliders"
    settings = BACKWARDS


def updates(run: TinyRun) -> dict[str, torch.Tensor]:
    """B A of each layer."""
    with safe_open(run.directory / "adapter.safetensors", framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {name: found[name] @ found[name.replace("lora_B", "lora_A")] for name in sorted(found) if "lora_B" in name}


def other_set(tmp_path: Path, name: str = "others") -> str:
    url = tmp_path / "tiny-runs" / "photos"
    return f'[[dataset]]\nurl = "{url}"\nname = "{name}"\nresolution = 64\nalign = 8\n'


def test_a_strength_of_minus_one_learns_the_opposite_update(tiny_run: TinyRunner) -> None:
    forwards, backwards = updates(tiny_run()), updates(tiny_run(plugins=["sliders"], text=BACKWARDS))

    # The denoisers of both runs are the same in every step: W + B A with B of the opposite sign. Adam is odd.
    assert max(float(update.abs().max()) for update in forwards.values()) > 1e-5
    assert all(torch.equal(forwards[name], -backwards[name]) for name in forwards)


def test_losses_are_those_of_the_same_denoiser(tiny_run: TinyRunner) -> None:
    forwards, backwards = tiny_run(steps=4), tiny_run(plugins=["sliders"], text=BACKWARDS, steps=4)

    assert forwards.metrics()["loss"] == backwards.metrics()["loss"]


def test_recomputed_blocks_are_as_strong_as_they_were(tiny_run: TinyRunner, tmp_path: Path) -> None:
    both = other_set(tmp_path) + "[sliders.strengths]\nphotos = 0.5\nothers = -2.0\n"
    kept = tiny_run(plugins=["sliders"], text=both, steps=6)

    recomputed = tiny_run(plugins=["sliders"], text=f"{both}[recompute]\nevery = 1\n", steps=6)

    assert kept.weights() == recomputed.weights()


def test_mixtures_resume_bit_for_bit(tiny_run: TinyRunner, tmp_path: Path) -> None:
    both = other_set(tmp_path) + "[sliders.strengths]\nothers = -1.0\n[average]\n"
    straight = tiny_run(plugins=["sliders"], text=both, steps=6, accumulate=2, batch=1)
    first = tiny_run(plugins=["sliders"], text=both, steps=3, accumulate=2, batch=1)

    resumed = tiny_run(plugins=["sliders"], text=both, steps=6, accumulate=2, batch=1, resume=first)

    assert resumed.weights() == straight.weights()


def test_the_same_data_forwards_and_backwards_differ_from_forwards_alone(tiny_run: TinyRunner, tmp_path: Path) -> None:
    plain = tiny_run(text=other_set(tmp_path), steps=6)

    both = tiny_run(plugins=["sliders"], text=other_set(tmp_path) + "[sliders.strengths]\nothers = -1.0\n", steps=6)

    assert updates(both).keys() == updates(plain).keys()
    assert all(not torch.equal(updates(both)[name], update) for name, update in updates(plain).items())


def test_validation_sees_the_adapter_at_full_strength(tiny_run: TinyRunner) -> None:
    held = "[evaluation]\nevery = 1\n"
    url = tiny_run.root / "photos"
    held += f'[[dataset]]\nurl = "{url}"\nname = "held"\nrole = "evaluation"\nresolution = 64\nalign = 8\n'
    forwards = tiny_run(text=held, steps=3).metrics()
    backwards = tiny_run(plugins=["sliders"], text=held + BACKWARDS, steps=3).metrics()

    (name,) = [name for name in forwards if name.startswith("eval") and "held" in name][:1]
    assert forwards[name][0] == backwards[name][0]
    assert forwards[name][1:] != backwards[name][1:]


def test_a_data_set_without_strength_is_named_in_the_report(tiny_run: TinyRunner, tmp_path: Path) -> None:
    run = tiny_run(plugins=["sliders"], text=other_set(tmp_path) + "[sliders.strengths]\nothers = -0.5\n", steps=1)

    (said,) = [event["text"] for event in run.events() if event.get("kind") == "sliders"]
    assert said == "strength of the adapter by data set: 'others' -0.5; 'photos' +1, which no strength is set for"
    assert run.warnings("no opposite") == []


def test_strengths_of_one_sign_are_warned_of(tiny_run: TinyRunner) -> None:
    assert len(tiny_run(plugins=["sliders"], text=BACKWARDS, steps=1).warnings("no opposite to learn from")) == 1


def test_an_unknown_data_set_is_refused(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="names 'photo', which is no data set that this run trains on"):
        tiny_run(plugins=["sliders"], text="[sliders.strengths]\nphoto = -1.0\n")


def test_strengths_that_change_nothing_are_refused(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="every data set is learnt at strength 1"):
        tiny_run(plugins=["sliders"])


def test_a_strength_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="at strength 0 nothing is learnt from 'others'"):
        SlidersOptions(strengths={"others": 0.0})


def test_training_every_weight_is_refused(run_file, st_cli, tmp_path: Path) -> None:
    file = run_file(
        f'plugins = ["{TINY}:TinyFamily", "sliders"]\noutput = "{tmp_path}/out"\nsteps = 1\n'
        f'[adapter]\nkind = "full"\n[[dataset]]\nurl = "photos"\n{BACKWARDS}'
    )

    result = st_cli("train", file, "--dry-run")

    assert result.code == 2
    assert "adapter.kind = 'full' has none" in result.err


def test_an_adapter_that_rescales_layers_is_refused_before_the_first_step(run_file, st_cli, tiny_run) -> None:
    plain = tiny_run(steps=1)
    text = (tiny_run.root / "run-1.toml").read_text(encoding="utf-8")
    text = text.replace('kind = "lora"', 'kind = "lora"\nuse_dora = true').replace(
        'TinyFamily"', 'TinyFamily", "sliders"'
    )
    file = run_file(text.replace(str(plain.directory), f"{plain.directory}-dora") + BACKWARDS)

    result = st_cli("train", file)

    assert result.code != 0
    assert "a LoRA with use_dora cannot be trained at another strength" in result.err
