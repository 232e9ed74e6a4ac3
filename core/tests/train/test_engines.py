"""Weights in parts train to the weights of one process, go on elsewhere, and a rank that is gone has a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file

from st.testing.runs import TINY, TinyRun, TinyRunner, call_cli
from st.train.ranks.launch import GRACE_SECONDS
from st.train.ranks.whereabouts import Place, missing

TOLERANCE = 1e-6
"""Of the largest weight, in fp32: only the order of sums differs."""

MORE = "repeats = 1\n"
"""Of the data set."""

SETTINGS = """
[optimizer]
epsilon = 1e-6
lr = 1e-3
[clip]
norm = 0.05
[recompute]
every = 1
[average]
decay = 0.9
[checkpoint]
every = 2
[validation]
every = 4
prompts = ["a red square"]
resolutions = ["64"]
steps = 2
guidance = 1.0
[evaluation]
every = 2
times = 4
"""


def ranks(engine: str, processes: int) -> str:
    return f'[ranks]\nengine = "{engine}"\nprocesses = {processes}\n'


def weights(run: TinyRun) -> dict[str, torch.Tensor]:
    return load_file(run.directory / "adapter.safetensors")


def difference(one: TinyRun, other: TinyRun) -> float:
    """The largest of any weight, over the largest weight."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    largest = max(tensor.abs().max().item() for tensor in theirs.values())
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs) / largest


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> TinyRunner:
    return TinyRunner(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def alone(runner: TinyRunner) -> TinyRun:
    return runner(text=MORE + SETTINGS, steps=4, batch=4)


@pytest.fixture(scope="module")
def half(runner: TinyRunner) -> TinyRun:
    """Two steps on two ranks."""
    return runner(text=MORE + SETTINGS + ranks("fsdp", 2), steps=2, batch=2)


def go_on(runner: TinyRunner, run: TinyRun, text: str, batch: int) -> TinyRun:
    """The run's four steps, its batch being accepted."""
    file = runner.root / "go-on.toml"
    old = (runner.root / f"{run.directory.name}.toml").read_text(encoding="utf-8")
    head, _, _ = old.partition(MORE)
    head = head.replace("steps = 2", "steps = 4").replace("batch = 2", f"batch = {batch}")
    file.write_text(head + MORE + SETTINGS + text, encoding="utf-8")
    result = call_cli("train", file, "--resume", "--accept=batch")
    assert result.code == 0, result.err
    return TinyRun(run.directory, result)


def test_parts_on_two_ranks_are_saved_and_go_on_alone_to_the_weights_of_one_process(runner, alone, half):
    assert "running on fsdp, 2 ranks, gloo on cpu" in [event.get("text") for event in half.events()]

    whole = go_on(runner, half, "", batch=4)

    assert difference(whole, alone) <= TOLERANCE
    assert whole.metrics()["grad_norm"] == pytest.approx(alone.metrics()["grad_norm"], rel=1e-5)


def test_one_process_in_parts_trains_renders_and_measures_as_without(runner, alone):
    parts = runner(text=MORE + SETTINGS + ranks("fsdp", 1), steps=4, batch=4)

    assert difference(parts, alone) <= TOLERANCE
    ours, theirs = ({file.name for file in run.directory.rglob("samples/*/*")} for run in (parts, alone))
    assert ours == theirs != set()


def test_clipping_by_value_sees_each_element_of_a_part(runner):
    text = "[clip]\nvalue = 1e-4\nnorm = 0.0\n[optimizer]\nkind = 'sgd'\nlr = 1.0\n"

    plain = runner(text=text, steps=2, batch=2)
    parts = runner(text=text + ranks("fsdp", 1), steps=2, batch=2)

    assert difference(parts, plain) <= TOLERANCE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[optimizer]\nkind = 'adafactor'", ["'adafactor' does not go with ranks.engine = 'fsdp'", "adamw, sgd"]),
        ("[adapter]\ninit = 'pissa'", ["init = 'pissa'", "ranks.engine = 'fsdp'"]),
    ],
)
def test_what_needs_whole_weights_is_refused_before_anything_is_loaded(tmp_path, text, words):
    file = tmp_path / "run.toml"
    plugin, output = f"{TINY}:TinyFamily", tmp_path / "out"
    head = f'plugins = ["{plugin}"]\noutput = "{output}"\nsteps = 1\n[model]\ncheckpoint = "nowhere"\n'
    file.write_text(f'{head}[[dataset]]\nurl = "{tmp_path}"\n{text}\n{ranks("fsdp", 2)}', encoding="utf-8")

    result = call_cli("train", file, "--dry-run")

    assert result.code == 2
    assert all(word in result.err for word in words), result.err


GONE = """
import os, signal
import st

class Gone:
    'Stops rank 1 after two steps, and kills it after three.'
    class Options(st.Options):
        'None.'
    def __init__(self, options):
        pass
    @st.hookimpl
    def st_step_end(self, run, stats):
        if run.ranks.rank == 1 and run.progress.step >= 2:
            os.kill(os.getpid(), signal.SIGSTOP if run.progress.step == 2 else signal.SIGKILL)
"""


def test_a_rank_that_hangs_and_then_dies_is_named_each_time_with_its_stage(runner, alone):
    plugin = runner.root / "gone.py"
    plugin.write_text(GONE, encoding="utf-8")
    settings = ("batch=1", "ranks.processes=2", "ranks.patience_seconds=1", "validation.every=0")
    command = [sys.executable, "-m", "st.cli", "train", str(runner.root / "run-1.toml"), f"--plugins={plugin}:Gone"]
    command += [f"--output={runner.root / 'gone'}", *(f"--set={setting}" for setting in settings)]

    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "has not reached" in line:
                break
        stopped = [one for one in psutil.Process(process.pid).children() if one.status() == psutil.STATUS_STOPPED]
        for one in stopped:
            os.kill(one.pid, signal.SIGCONT)
        rest = process.stderr.read()

    assert process.returncode == 1, "".join(said) + rest
    assert said[-1].startswith("Warning: rank 1 has not reached 'an agreement of all ranks' for ")
    assert said[-1].rstrip().endswith("it is in 'training'; its process is stopped")
    assert "Error: rank 1 died in 'training': it was killed by SIGKILL" in rest
    assert "Traceback" not in rest


def test_a_rank_that_dies_before_all_have_met_keeps_none_waiting(runner, alone):
    plugin = runner.root / "never.py"
    plugin.write_text(
        'import os, signal\nif os.environ.get("RANK") == "1":\n    os.kill(os.getpid(), signal.SIGKILL)\n' + GONE,
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "st.cli", "train", str(runner.root / "run-1.toml"), f"--plugins={plugin}:Gone"]
    command += [f"--output={runner.root / 'never'}", "--set=batch=1", "--set=ranks.processes=2"]

    # Sooner than a rank may take that has something to save.
    done = subprocess.run(command, capture_output=True, text=True, timeout=GRACE_SECONDS - 2)

    assert done.returncode == 1
    assert "Error: rank 1 died in 'starting': it was killed by SIGKILL" in done.stderr


def test_ranks_are_missing_only_where_others_wait_long_enough_for_them():
    working, waiting = Place("training", "", 0.0), Place("training", "saving", 100.0)

    assert missing([working, waiting], now=140.0, patience=30) == ([0], "saving", 40.0)
    assert missing([working, waiting], now=120.0, patience=30) is None
    assert missing([waiting, waiting], now=140.0, patience=30) is None
    assert missing([working, working], now=140.0, patience=30) is None
