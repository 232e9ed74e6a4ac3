"""Canaries in the environment: nothing that a run writes or prints holds one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from st.testing.runs import TINY, call_cli, write_photos
from st.testing.subjects.tiny import TinyFamily

CANARY = "canary-5f2c"

RUN_FILE = """
plugins = ["{tiny}:TinyFamily", "tensorboard"]
name = "{{env:C_NAME}}"
output = "{root}/out"
steps = 2
precision = "fp32"
device = "cpu"
[model]
checkpoint = "{{env:C_MODEL}}"
[adapter]
kind = "lora"
rank = 2
targets = ["{{env:C_TARGET}}"]
[optimizer]
kind = "adamw"
[[optimizer.groups]]
match = "*{{env:C_MATCH}}*"
factor = 2.0
[cache]
url = "{{env:C_CACHE}}"
[validation]
every = 1
prompts = ["a {{env:C_PROMPT}} by the river"]
resolutions = ["64"]
steps = 1
guidance = 3.0
negative = "{{env:C_NEGATIVE}}"
[report]
every = 1
[[dataset]]
name = "first"
url = "{{env:C_DATA}}"
resolution = 64
align = 8
[[dataset]]
name = "second"
url = "file:{{env:C_MORE}}/photos"
resolution = 64
align = 8
"""


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run file all of whose texts come from the environment, with canaries in them."""
    for name in ("model", "cache", "data", "more"):
        (tmp_path / f"{CANARY}-{name}").mkdir()
    TinyFamily.tiny(tmp_path / f"{CANARY}-model" / "tiny")
    write_photos(tmp_path / f"{CANARY}-data" / "photos")
    shutil.copytree(tmp_path / f"{CANARY}-data" / "photos", tmp_path / f"{CANARY}-more" / "photos")
    values = {
        "C_NAME": f"{CANARY}-name",
        "C_MODEL": tmp_path / f"{CANARY}-model" / "tiny",
        "C_TARGET": "to_[qkv]",
        "C_MATCH": "lora_B",
        "C_CACHE": tmp_path / f"{CANARY}-cache",
        "C_PROMPT": f"{CANARY}-prompt",
        "C_NEGATIVE": f"{CANARY}-negative",
        "C_DATA": tmp_path / f"{CANARY}-data" / "photos",
        "C_MORE": tmp_path / f"{CANARY}-more",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    file = tmp_path / "run.toml"
    file.write_text(RUN_FILE.format(tiny=TINY, root=tmp_path))
    return file


def holding(folder: Path) -> list[str]:
    """Files whose name or content holds a canary."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [
        str(path) for path in files if CANARY.encode() in path.read_bytes() or CANARY in str(path.relative_to(folder))
    ]


def test_nothing_that_a_run_writes_or_prints_holds_what_came_from_the_environment(secret, tmp_path):
    result = call_cli("train", secret)

    assert result.code == 0, result.err
    assert (tmp_path / "out" / "adapter.safetensors").is_file()
    assert holding(tmp_path / "out") == []
    assert CANARY not in result.err + result.out


def test_a_run_with_values_from_the_environment_is_resumed_and_sampled(secret, tmp_path):
    assert call_cli("train", secret).code == 0

    again = call_cli("train", secret, "--resume", "--set", "steps=3")
    sampled = call_cli("sample", tmp_path / "out", "--trust", "--prompt", "a cat", "--size", "64", "--steps", "1")

    assert again.code == 0, again.err
    assert sampled.code == 0, sampled.err
    assert holding(tmp_path / "out") == []


def test_what_is_shown_without_training_holds_none_either(secret):
    shown = call_cli("train", secret, "--dry-run")

    assert shown.code == 0, shown.err
    assert CANARY not in shown.out + shown.err


@pytest.mark.parametrize(
    "line",
    [
        'url = "s3://AKIA:{env:C_KEY}@bucket/x"',
        'url = "{env:C_URL}"',
        'url = "hf://hf_canary-5f2c@owner/name"',
        'url = "photos"\nmasks = "{env:C_URL}"',
    ],
)
def test_an_address_with_credentials_is_refused_without_showing_them(tmp_path, monkeypatch, line):
    monkeypatch.setenv("C_KEY", f"{CANARY}-key")
    monkeypatch.setenv("C_URL", f"s3://AKIA:{CANARY}@bucket/x")
    file = tmp_path / "run.toml"
    file.write_text(f'plugins = ["{TINY}:TinyFamily"]\noutput = "{tmp_path}/out"\nsteps = 1\n[[dataset]]\n{line}\n')

    result = call_cli("train", file, "--dry-run")

    assert result.code == 2
    assert "holds credentials" in result.err
    assert CANARY not in result.err
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_run_shows_none(tmp_path, monkeypatch):
    monkeypatch.setenv("C_MASKS", f"{CANARY}-masks")
    photos = write_photos(tmp_path / "photos")
    checkpoint = tmp_path / "tiny"
    TinyFamily.tiny(checkpoint)
    file = tmp_path / "run.toml"
    file.write_text(
        f'plugins = ["{TINY}:TinyFamily"]\noutput = "{tmp_path}/out"\nsteps = 1\n[model]\ncheckpoint = "{checkpoint}"\n'
        f'[[dataset]]\nurl = "{photos}"\nmasks = "{{env:C_MASKS}}"\n'
    )

    for command in (("train", file), ("train", file, "--dry-run"), ("data", "check", file)):
        result = call_cli(*command)

        assert result.code, result.out
        assert CANARY not in result.out + result.err
