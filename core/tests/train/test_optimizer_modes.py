"""An optimizer may show numbers of its own and have other weights used than those that are trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import TinyRunner
from st.train.reopening import open_run
from st.train.saving.state import read_state

PLUGIN = '''
from contextlib import contextmanager

import st


class Shifted:
    """An optimizer whose weights to be used are larger by 1."""

    Options = st.Options

    def __init__(self, options):
        self.options = options

    @st.hookimpl
    def st_register(self, register):
        register.add(st.OPTIMIZER, "shifted", build, st.Options)


def build(groups, options):
    import torch

    class Optimizer(torch.optim.SGD):
        asked = 0

        def metrics(self):
            self.asked += 1
            return {"asked": float(self.asked)}

        @contextmanager
        def evaluating(self):
            parameters = [p for group in self.param_groups for p in group["params"]]
            trained = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                torch._foreach_add_(parameters, 1.0)
            yield
            with torch.no_grad():
                torch._foreach_copy_(parameters, trained)

    return Optimizer(groups, lr=0.1)
'''
SECTION = '[optimizer]\nkind = "shifted"\n'


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    (tmp_path / "shifted.py").write_text(PLUGIN)
    return f"{tmp_path}/shifted.py:Shifted"


def test_weights_to_be_used_are_exported_and_reopened_and_trained_ones_resumed(
    plugin: str, tiny_run: TinyRunner
) -> None:
    straight = tiny_run(plugins=[plugin], text=SECTION, steps=4)
    first = tiny_run(plugins=[plugin], text=SECTION, steps=2)

    resumed = tiny_run(plugins=[plugin], text=SECTION, steps=4, resume=first)

    assert resumed.weights() == straight.weights()
    state = straight.directory / "checkpoints" / "step-00000004" / "state"
    trained, used = read_state(state, "adapter"), read_state(state, "evaluated")
    assert all((used[name] == trained[name] + 1).all() for name in trained)
    exported = sorted(straight.weights().values())
    assert exported == sorted(tensor.numpy().tobytes() for tensor in used.values())
    opened, _ = open_run(straight.directory, trust=True)
    held = opened.adapter.state(opened.denoiser)
    assert all((held[name].detach() == used[name]).all() for name in used)


def test_numbers_of_an_optimizer_are_asked_for_once_a_reading(plugin: str, tiny_run: TinyRunner) -> None:
    run = tiny_run(plugins=[plugin], text=SECTION, steps=3)

    assert run.metrics()["optimizer/asked"] == [1.0, 2.0, 3.0]


def test_an_average_beside_weights_to_be_used_is_refused(plugin: str, tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match=r"\[average\] does not go with optimizer.kind = 'shifted'"):
        tiny_run(plugins=[plugin], text=SECTION + "[average]\ndecay = 0.9\n")
