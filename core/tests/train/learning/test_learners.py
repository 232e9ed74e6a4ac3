"""Several learn in one run: each from its own loss, saved, resumed and reported like the first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from st import Learner, Losses
from st.errors import StError
from st.progress import Progress
from st.testing import TinyRun, TinyRunner
from st.train.learning.learners import Together, build_learners
from st.train.ranks.ranks import Single

DISTILLING = f"{Path(__file__).parents[1] / 'techniques'}/distilling.py:Distilling"
SETTINGS = "[optimizer]\nlr = 1e-2\nepsilon = 1e-4\n[recompute]\nevery = 1\n"


BRINGS = '''
import st

class Brings:
    """Bring what the test says."""

    class Options(st.Options):
        pass

    def __init__(self, options):
        pass

    @st.hookimpl
    def {hook}(self, run):
        import torch
        return {answer}
'''


SLOWER = """
import st

class Slower:
    \"\"\"Halve the rate of one learner after the first step, and ask for one that does not exist.\"\"\"

    class Options(st.Options):
        pass

    def __init__(self, options):
        pass

    @st.hookimpl
    def st_step_end(self, run):
        if run.progress.step == 1:
            run.requests.set("learners.critic.lr", "x0.5")
            run.requests.set("learners.judge.lr", "x0.5")
"""


def state_of(run: TinyRun, name: str) -> dict[str, torch.Tensor]:
    newest = sorted((run.directory / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "state" / f"{name}.safetensors")


def test_a_learner_learns_and_is_reported(tiny_run: TinyRunner) -> None:
    run = tiny_run(plugins=[DISTILLING], text=SETTINGS, steps=6)

    found = run.metrics()
    assert found["learner/critic/lr"] == [pytest.approx(1e-3)] * 6
    assert len(found["learner/critic/grad_norm"]) == 6
    assert found["learner/critic/loss"][-1] < found["learner/critic/loss"][0]


def test_a_resumed_run_has_every_weight_and_optimizer_bit_for_bit(tiny_run: TinyRunner) -> None:
    straight = tiny_run(plugins=[DISTILLING], text=SETTINGS, steps=4)
    first = tiny_run(plugins=[DISTILLING], text=SETTINGS, steps=2)
    resumed = tiny_run(plugins=[DISTILLING], text=SETTINGS, steps=4, resume=first)

    for name in ("adapter", "optimizer", "learner-critic", "network-average"):
        expected, actual = state_of(straight, name), state_of(resumed, name)
        assert [key for key in expected if not torch.equal(expected[key], actual[key])] == [], name


def test_each_learner_has_a_rate_that_can_be_set_and_stays_set(tiny_run: TinyRunner, tmp_path: Path) -> None:
    asking = tmp_path / "slower.py"
    asking.write_text(SLOWER)
    plugins = [DISTILLING, f"{asking}:Slower"]

    first = tiny_run(plugins=plugins, text=SETTINGS, steps=3)
    resumed = tiny_run(plugins=plugins, text=SETTINGS, steps=4, resume=first)

    answers = [event["text"] for event in first.events() if event.get("kind") == "request"]
    assert answers[0] == "learners.critic.lr is 0.0005 from step 2, as a plugin asked"
    assert answers[1].startswith("asked by a plugin to set: 'learners.judge.lr' cannot change while a run trains")
    assert "what can: optimizer.lr, learners.critic.lr" in answers[1]
    assert resumed.metrics()["learner/critic/lr"] == pytest.approx([1e-3, 5e-4, 5e-4, 5e-4])
    assert resumed.metrics()["lr"] == [1e-2] * 4


def test_the_first_learner_rests_where_a_step_is_anothers_alone(tiny_run: TinyRunner) -> None:
    both = tiny_run(plugins=[DISTILLING], text=SETTINGS, steps=1)
    critic = tiny_run(plugins=[DISTILLING], text=f"{SETTINGS}[distilling]\nevery = 2\n", steps=2)

    assert critic.weights() == both.weights()
    assert len(critic.metrics()["grad_norm"]) == 1
    assert len(critic.metrics()["learner/critic/grad_norm"]) == 2


@pytest.mark.parametrize("stays", ["host", "swapped"])
def test_where_a_teacher_stays_changes_nothing(tiny_run: TinyRunner, stays: str) -> None:
    here = tiny_run(plugins=[DISTILLING], text=SETTINGS)

    there = tiny_run(plugins=[DISTILLING], text=f'{SETTINGS}[distilling]\nteacher = "{stays}"\n')

    assert there.weights() == here.weights()


def test_learners_and_networks_are_shared_out_like_the_denoiser(tiny_run: TinyRunner) -> None:
    text = f"repeats = 1\n{SETTINGS}"
    alone = tiny_run(plugins=[DISTILLING], text=text, steps=2, batch=4)

    shared = tiny_run(plugins=[DISTILLING], text=f'{text}[ranks]\nengine = "fsdp"\nprocesses = 2\n', steps=2, batch=2)

    for name in ("adapter", "learner-critic", "network-average"):
        expected, actual = state_of(alone, name), state_of(shared, name)
        # Sums over ranks are added up in another order.
        for key in expected:
            torch.testing.assert_close(actual[key].cpu(), expected[key], rtol=1e-3, atol=2e-5)


def test_a_loss_reaches_its_own_learner_alone() -> None:
    first, critic = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    run: Any = SimpleNamespace(ranks=Single(torch.device("cpu")), progress=Progress())
    others = {"critic": SimpleNamespace(learner=Learner("critic", critic), parameters=tuple(critic.parameters()))}
    together = Together(run, SimpleNamespace(parameters=tuple(first.parameters()), others=others), None)  # type: ignore[arg-type]
    drawn = first(torch.ones(3, 2))
    fooled, judged = critic(drawn), critic(drawn.detach()).sum()
    expected = torch.autograd.grad(fooled.sum(), list(first.parameters()), retain_graph=True)
    wanted = torch.autograd.grad(judged + fooled.sum(), list(critic.parameters()), retain_graph=True)

    # The critic's loss is computed from the very graph that the student's is.
    together.backward(Losses(fooled.flatten() * 3).teaching("critic", judged + fooled.sum()), 1)

    torch.testing.assert_close([one.grad for one in first.parameters()], list(expected))
    torch.testing.assert_close([one.grad for one in critic.parameters()], list(wanted))


def test_a_learner_that_steps_now_and_then_uses_its_own_steps_losses() -> None:
    learner = Learner("critic", torch.nn.Linear(1, 1), every=3)

    assert [step for step in range(7) if learner.due(step)] == [2, 5]


@pytest.mark.parametrize(
    ("hook", "answer", "said"),
    [
        ("st_learners", "[st.Learner('one', torch.nn.Linear(1, 1))] * 2", "both bring a learner named 'one'"),
        ("st_networks", "[st.Network('one', torch.nn.Linear(1, 1))] * 2", "both bring a network named 'one'"),
        ("st_networks", "[st.Network('one', torch.nn.Linear(1, 1), learns=True)]", "no learner has it"),
        ("st_networks", "[st.Network('a', torch.nn.Linear(1, 1), learns=True, stays='host')]", "stays on the device"),
        ("st_learners", "[st.Learner('one', torch.nn.ReLU())]", "has no weights that learn"),
        ("st_learners", "[st.Learner('one', torch.nn.Linear(1, 1), {'kind': 'sgd', 'lr': -1})]", "a wrong lr"),
    ],
    ids=["learners", "networks", "untaught", "away", "nothing", "option"],
)
def test_what_cannot_learn_stops_the_run(
    tmp_path: Path, tiny_run: TinyRunner, hook: str, answer: str, said: str
) -> None:
    file = tmp_path / "brings.py"
    file.write_text(BRINGS.format(hook=hook, answer=answer))

    with pytest.raises(AssertionError, match=said):
        tiny_run(plugins=[f"{file}:Brings"])


@pytest.mark.parametrize(
    ("precision", "several", "why"),
    [("fp16", True, "which fp16 does not allow"), ("fp32", False, "which this engine cannot: deepspeed")],
)
def test_a_learner_beside_the_denoiser_is_refused_where_it_could_not_learn(
    precision: str, several: bool, why: str
) -> None:
    ranks = SimpleNamespace(trains_several=several, describe=lambda: "deepspeed")
    answers: dict[str, Any] = {"st_learners": [("mine", [Learner("critic", torch.nn.Linear(2, 2))])]}
    plugins: Any = SimpleNamespace(answers=lambda hook, run: answers[hook])
    run: Any = SimpleNamespace(config=SimpleNamespace(precision=precision), ranks=ranks, networks={})

    with pytest.raises(StError, match=f"mine.* trains 'critic' beside the denoiser, {why}"):
        build_learners(run, plugins)
