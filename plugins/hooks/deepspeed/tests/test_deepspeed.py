"""ZeRO trains to the weights of one process, its runs go on with another engine, and what it cannot do is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from st.testing import HookPluginTests, TinyRun, TinyRunner
from st.testing.runs import TINY, call_cli
from st_deepspeed.engine import Fragment, _restore

TOLERANCE = 1e-6
"""Of the largest weight, in fp32: only the order of sums differs."""

SETTINGS = """repeats = 1
[optimizer]
epsilon = 1e-6
lr = 1e-3
[clip]
norm = 0.05
[recompute]
every = 1
[average]
decay = 0.9
[evaluation]
every = 2
times = 4
"""


class TestPlugin(HookPluginTests):
    plugin = "deepspeed"
    settings = '[deepspeed]\noffload = "optimizer"\n'


def weights(run: TinyRun) -> dict[str, torch.Tensor]:
    return load_file(run.directory / "adapter.safetensors")


@pytest.mark.alone
def test_zero2_with_offload_on_two_ranks_goes_on_as_zero3_to_the_weights_of_one_process(tmp_path):
    runner = TinyRunner(tmp_path)
    alone = runner(["deepspeed"], SETTINGS, steps=4, batch=4)
    half = f'{SETTINGS}[ranks]\nengine = "zero2"\nprocesses = 2\n[deepspeed]\noffload = "optimizer"\n'

    first = runner(["deepspeed"], half, steps=2, batch=2)
    file = tmp_path / "run-2.toml"
    changes = ["--set=ranks.engine=zero3", "--set=steps=4", "--set=deepspeed.offload=none"]
    result = call_cli("train", file, "--resume", "--accept=deepspeed.offload", *changes)

    assert result.code == 0, result.err
    engines = [event["text"] for event in first.events() if event.get("kind") == "engine"]
    assert [text.split(", gloo")[0] for text in engines] == ["running on zero2, 2 ranks", "running on zero3, 2 ranks"]
    assert first.metrics()["grad_norm"] == pytest.approx(alone.metrics()["grad_norm"], rel=1e-5)
    ours, theirs = weights(first), weights(alone)
    assert ours.keys() == theirs.keys()
    largest = max(tensor.abs().max().item() for tensor in theirs.values())
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) <= TOLERANCE * largest


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stored_state_is_cut_into_the_flat_one_where_the_parameter_lies(rank):
    flat = torch.zeros(7)
    fragment = Fragment(flat, at=2, start=3 * rank, count=3)
    mine: dict[str, torch.Tensor] = {}
    stored = {"step": torch.tensor(5.0), "exp_avg": torch.arange(6.0).reshape(2, 3)}

    _restore(mine, fragment, stored, torch.Size([2, 3]))

    assert mine["step"].item() == 5
    assert mine["exp_avg"].tolist() == [0, 0, *(float(number) for number in range(3 * rank, 3 * rank + 3)), 0, 0]
    assert fragment.within(mine["exp_avg"]).tolist() == fragment.of(stored["exp_avg"]).tolist()


@pytest.mark.parametrize(
    ("engine", "text", "words"),
    [
        ("zero2", "[deepspeed]\noffload = 'all'", "deepspeed.offload = 'all' needs ranks.engine = 'zero3'"),
        ("zero2", "[clip]\nvalue = 0.1", "clip.value does not go with ranks.engine = 'zero2'"),
        ("zero3", "[compile]\nblocks = true", "compile.blocks does not go with ranks.engine = 'zero3'"),
        ("zero3", "[optimizer]\nkind = 'adafactor'", "'adafactor' does not go with ranks.engine = 'zero3'"),
    ],
)
def test_what_zero_does_not_do_is_refused_before_anything_is_loaded(tmp_path, engine, text, words):
    result = planned(tmp_path, f'{text}\n[ranks]\nengine = "{engine}"\n')

    assert result.code == 2
    assert words in result.err, result.err


def test_options_of_another_engine_are_named_as_without_effect(tmp_path):
    run = TinyRunner(tmp_path)(["deepspeed"], steps=1)

    notes = [event["text"] for event in run.events() if event.get("kind") == "deepspeed"]
    assert notes == ["[deepspeed] has no effect: ranks.engine = 'auto'"]


def planned(folder: Path, text: str):
    file = folder / "run.toml"
    head = f'plugins = ["{TINY}:TinyFamily", "deepspeed"]\noutput = "{folder}/out"\nsteps = 1\n'
    data = f'[model]\ncheckpoint = "nowhere"\n[[dataset]]\nurl = "{folder}"\n'
    file.write_text(head + data + text, encoding="utf-8")
    return call_cli("train", file, "--dry-run")
