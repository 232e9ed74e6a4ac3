"""Nothing that is not finite is saved or exported; where it began is said; fp16 leaves steps out instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from st.report.log.events import read_events
from st.testing.runs import RUN_FILE, TinyRun, TinyRunner
from st.train import stages
from st.train.ranks.ranks import Single
from st.train.saving.state import read_state

SPOILER = f"{Path(__file__).parent / 'spoiler.py'}:Spoiler"
SAVES = "[checkpoint]\nevery = 1\n"


def failed(runner: TinyRunner, text: str, **settings: int) -> tuple[str, Path]:
    """What a run that has to fail said, and its folder."""
    with pytest.raises(AssertionError) as error:
        runner(plugins=[SPOILER], text=text, **settings)
    return str(error.value), runner.root / f"run-{runner.count}"


def checkpoints(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("at", [1, 2])
def test_a_gradient_that_is_not_finite_is_named_and_never_saved(tiny_run, at):
    said, directory = failed(tiny_run, SAVES + f"[spoiler]\nat = {at}\n", steps=3, accumulate=2)

    assert f"the gradient of step {at + 1} is not finite in '" in said
    assert f"the checkpoint of step {at} is from before it" in said
    assert ".png'" in said
    assert checkpoints(directory) == [f"step-{step:08d}" for step in range(1, at + 1)]
    assert not list(directory.glob("adapter*")) + list(directory.glob("model"))


def test_a_gradient_that_is_not_finite_is_found_before_pictures_are_made_of_it(tiny_run, monkeypatch):
    text = (
        "[spoiler]\nat = 0\n[checkpoint]\nevery = 0\n"
        '[validation]\nevery = 1\nprompts = ["a cat"]\nresolutions = ["64"]\nsteps = 1\nguidance = 1.0\n'
        "at_start = false"
    )
    monkeypatch.setattr("st.testing.runs.RUN_FILE", RUN_FILE.replace("every = 1", "every = 100"))
    with pytest.raises(AssertionError, match="the gradient of step 1 is not finite"):
        tiny_run(plugins=[SPOILER], text=text, steps=3)

    events = list(read_events(tiny_run.root / "run-1" / "events.jsonl"))
    assert not [event for event in events if event["event"] == "pictures"]


def test_weights_that_are_not_finite_are_named_and_never_saved(tiny_run):
    said, directory = failed(tiny_run, SAVES + "[spoiler]\nat = 1\nwhat = 'weight'\n", steps=3)

    assert "is not finite after step 2" in said
    assert "lora" in said
    assert checkpoints(directory) == ["step-00000001"]


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch, tiny_run: TinyRunner) -> TinyRunner:
    """Runs in fp16 on a CPU, which users are refused for its slowness."""

    def start_ranks(config, plugins):
        torch.manual_seed(config.seed)
        return Single(torch.device("cpu"))

    monkeypatch.setattr(stages, "start_ranks", start_ranks)
    monkeypatch.setattr("st.testing.runs.RUN_FILE", RUN_FILE.replace('precision = "fp32"', 'precision = "fp16"'))
    return tiny_run


def scales(run: TinyRun) -> list[float]:
    return run.metrics()["optimizer/loss_scale"]


def test_fp16_trains_with_scaled_losses(half):
    run = half(steps=4, text="[optimizer]\nlr = 1e-2\n")

    losses = run.metrics()["loss"]
    assert scales(run) == [65536.0] * 4
    assert run.metrics()["skipped_steps"] == [0.0] * 4
    assert all(0 < norm < 100 for norm in run.metrics()["grad_norm"])
    assert len(set(losses)) == 4


def test_a_step_whose_gradients_overflow_fp16_changes_nothing_and_halves_the_scale(half):
    one = half(plugins=[SPOILER], steps=1, text="[spoiler]\nat = 0\n")
    other = half(plugins=[SPOILER], steps=2, text="[spoiler]\nat = 1\n")

    assert one.metrics()["skipped_steps"] == [1.0]
    assert scales(one) == [32768.0]
    assert [e["steps"] for e in one.events() if e.get("kind") == "skipped"] == [1]
    straight = half(steps=1)
    assert other.weights() == straight.weights()


def test_the_loss_scale_goes_on_where_it_was(half):
    text = SAVES + "[spoiler]\nat = 0\n"
    first = half(plugins=[SPOILER], steps=2, text=text)
    again = half(plugins=[SPOILER], steps=3, text=text, resume=first)

    assert scales(again)[-1] == 32768.0
    state = read_state(again.directory / "checkpoints" / "step-00000003" / "state", "scaler")
    assert state["scale"] == 32768.0
