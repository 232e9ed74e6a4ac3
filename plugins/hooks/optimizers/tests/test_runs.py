"""Each optimizer trains a run, which goes on bit for bit after it was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from st.testing import HookPluginTests, TinyRun, TinyRunner
from st.testing.runs import TINY, call_cli
from st.train.reopening import open_run
from st.train.saving.state import read_state

KINDS = {
    "adamw8bit": "min_8bit_size = 1",
    "lion": "",
    "lion8bit": "min_8bit_size = 1",
    "stable_adamw": "",
    "prodigy": "d0 = 0.001\nd_coef = 50",
    "adamw_schedulefree": "",
    "muon": "",
    "soap": "every = 1",
}
"""Every optimizer that a CPU can use, and settings that make its state as rich as it gets in a few steps."""

KILLER = """
import os, signal
from pathlib import Path
import st

class Killer:
    "Ends the process as a crash does."

    Options = st.Options

    def __init__(self, options):
        self.options = options

    @st.hookimpl
    def st_step_end(self, run, stats):
        if run.progress.step == 4 and os.environ.get("KILL_AT_STEP_4"):
            os.kill(os.getpid(), signal.SIGKILL)
"""


class TestPlugin(HookPluginTests):
    plugin = "optimizers"
    settings = '[optimizer]\nkind = "prodigy"'


def section(kind: str) -> str:
    return f'[optimizer]\nkind = "{kind}"\n{KINDS[kind]}\n[checkpoint]\nevery = 2\n'


def state_of(run: TinyRun, step: int) -> Path:
    return run.directory / "checkpoints" / f"step-{step:08d}" / "state"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(kind: str, tiny_run: TinyRunner) -> None:
    straight = tiny_run(plugins=["optimizers"], text=section(kind), steps=5)
    weights, state = straight.weights(), read_state(state_of(straight, 5), "optimizer")
    for step in (4, 5):
        shutil.rmtree(state_of(straight, step).parent)
    before = load_file(state_of(straight, 2) / "adapter.safetensors")

    resumed = tiny_run(plugins=["optimizers"], text=section(kind), steps=5, resume=straight)

    assert resumed.weights() == weights
    assert str(read_state(state_of(resumed, 5), "optimizer")) == str(state)
    after = load_file(state_of(resumed, 5) / "adapter.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_killed_run_goes_on_bit_for_bit(tiny_run: TinyRunner, tmp_path: Path) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    plugins = ["optimizers", f"{tmp_path}/killer.py:Killer"]
    straight = tiny_run(plugins=plugins, text=section("adamw_schedulefree"), steps=5)
    run_file = tmp_path / "killed.toml"
    text = (tmp_path / "tiny-runs" / "run-1.toml").read_text()
    run_file.write_text(text.replace(f'"{straight.directory}"', f'"{tmp_path}/killed"'))

    killed = subprocess.run(
        [sys.executable, "-m", "st.cli", "train", str(run_file)],
        env=os.environ | {"KILL_AT_STEP_4": "1"},
        capture_output=True,
    )
    resumed = call_cli("train", run_file, "--resume")

    assert killed.returncode == -signal.SIGKILL
    assert resumed.code == 0, resumed.err
    assert TinyRun(tmp_path / "killed", resumed).weights() == straight.weights()


def test_the_step_size_that_is_found_is_in_the_report(tiny_run: TinyRunner) -> None:
    run = tiny_run(plugins=["optimizers"], text=section("prodigy"), steps=4)

    found = run.metrics()["optimizer/d"]
    assert len(found) == 4
    assert found[-1] == read_state(state_of(run, 4), "optimizer")["param_groups"][0]["d"] > 0.001
    assert "own numbers" in (run.directory / "report.html").read_text()


def test_nothing_is_printed_besides_what_every_run_prints(tiny_run: TinyRunner) -> None:
    run = tiny_run(plugins=["optimizers"], text=section("prodigy"), steps=1)

    assert "decoupled" not in run.result.out + run.result.err


def test_the_average_is_exported_and_sampled_and_the_trained_weights_are_resumed(tiny_run: TinyRunner) -> None:
    validated = section("adamw_schedulefree") + (
        '[validation]\nevery = 1\nsteps = 1\nprompts = ["a square"]\nresolutions = ["64"]\n'
    )

    run = tiny_run(plugins=["optimizers"], text=validated, steps=4)

    optimizer = read_state(state_of(run, 4), "optimizer")
    trained, used = (read_state(state_of(run, 4), name) for name in ("adapter", "evaluated"))
    beta1 = optimizer["param_groups"][0]["betas"][0]
    moved = 0
    for place, name in enumerate(trained):
        z = optimizer["state"][place]["z"]
        assert torch.allclose(used[name], z + (trained[name] - z) / beta1, atol=1e-6)
        moved += not torch.equal(used[name], trained[name])
    assert moved
    exported = load_file(run.directory / "adapter.safetensors")
    assert sorted(map(tensor_bytes, exported.values())) == sorted(map(tensor_bytes, used.values()))
    opened, _ = open_run(run.directory, trust=True)
    assert sorted(map(tensor_bytes, opened.adapter.state(opened.denoiser).values())) == sorted(
        map(tensor_bytes, used.values())
    )


def test_looking_at_the_average_changes_no_weight(tiny_run: TinyRunner) -> None:
    looking = '[validation]\nevery = 1\nsteps = 1\nprompts = ["a square"]\nresolutions = ["64"]\n'

    run = tiny_run(plugins=["optimizers"], text=section("adamw_schedulefree") + looking, steps=3)

    assert run.weights() == tiny_run(plugins=["optimizers"], text=section("adamw_schedulefree"), steps=3).weights()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[optimizer]\nkind = "adamw_schedulefree"\n[schedule]\nkind = "cosine"',
            "schedule.kind = 'cosine' does not go with optimizer.kind = 'adamw_schedulefree'",
        ),
        (
            '[optimizer]\nkind = "adamw_schedulefree"\n[average]\ndecay = 0.9',
            "[average] does not go with optimizer.kind = 'adamw_schedulefree'",
        ),
        (
            '[optimizer]\nkind = "prodigy"\nlr = 1e-4',
            "optimizer.lr = 0.0001 does not go with optimizer.kind = 'prodigy'",
        ),
        (
            '[optimizer]\nkind = "prodigy"\nsafeguard_warmup = false\n[schedule]\nwarmup = 10',
            "schedule.warmup = 10 does not go with optimizer.safeguard_warmup = false",
        ),
        ('[optimizer]\nkind = "paged_adamw8bit"', "optimizer.kind = 'paged_adamw8bit' cannot be used on device 'cpu'"),
        (
            '[optimizer]\nkind = "soap"\n[adapter]\ndtype = "bf16"',
            "optimizer.kind = 'soap' does not train weights that are kept in bf16",
        ),
        (
            '[optimizer]\nkind = "lion"\n[adapter]\ndtype = "bf16"',
            "optimizer.weight_decay = 0.05 has no effect on weights that are kept in bf16",
        ),
        ('[optimizer]\nkind = "adamw_schedulefree"\nwarmup_steps = 5', "has no option 'warmup_steps'"),
        ('[optimizer]\nkind = "adamw_8bit"', "adamw8bit"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(
    text: str, said: str, run_file, st_cli, tmp_path: Path
) -> None:
    file = run_file(
        f'plugins = ["{TINY}:TinyFamily", "optimizers"]\noutput = "{tmp_path}/out"\nsteps = 1\ndevice = "cpu"\n'
        f'{text}\n[[dataset]]\nurl = "photos"\n'
    )

    result = st_cli("train", file, "--dry-run")

    assert result.code == 2
    assert said in result.err
    assert len([line for line in result.err.splitlines() if line.startswith("Error")]) == 1
