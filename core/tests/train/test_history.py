"""What a saved adapter's header says, and its hashes, computed apart from the code that writes them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.testing import TinyRun, TinyRunner


def header(run: TinyRun) -> dict[str, str]:
    return read_adapter_file(run.directory / "adapter.safetensors")[1]


def test_a_header_says_how_the_adapter_was_trained(tiny_run: TinyRunner) -> None:
    run = tiny_run(text="[metadata]\ntitle = 'mine'\ntags = ['a', 'b']", steps=3, batch=2)

    told = header(run)

    expected = {
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_learning_rate": "0.0001",
        "ss_seed": "42",
        "ss_max_train_steps": "3",
        "ss_num_train_images": "4",
        "ss_total_batch_size": "2",
        "ss_resolution": "(64, 64)",
        "modelspec.title": "mine",
        "modelspec.tags": "a, b",
        "modelspec.resolution": "64x64",
    }
    assert {name: told.get(name) for name in expected} == expected
    assert json.loads(told["ss_tag_frequency"])["photos"] == {"a red square on a table": 2, "a tree by a river": 2}
    assert json.loads(told["ss_dataset_dirs"]) == {"photos": {"n_repeats": 1, "img_count": 4}}
    sizes = [bucket["count"] for bucket in json.loads(told["ss_bucket_info"])["buckets"].values()]
    assert sum(sizes) == 4
    assert not {"modelspec.date", "ss_training_started_at"} & told.keys()


def test_an_anonymous_header_tells_nothing_of_the_data(tiny_run: TinyRunner, tmp_path: Path) -> None:
    told = header(tiny_run(text="[metadata]\nkeep = 'anonymous'"))

    assert not {"ss_tag_frequency", "ss_dataset_dirs", "st_settings", "ss_sd_model_name"} & told.keys()
    assert not any(word in text for text in told.values() for word in ("photos", "red square", str(tmp_path), "run-1"))
    assert told["ss_network_dim"] == "4"


def test_a_header_can_be_left_out(tiny_run: TinyRunner) -> None:
    assert header(tiny_run(text="[metadata]\nkeep = 'none'")).keys() == {"format", "lora_adapter_metadata"}


def test_a_resumed_run_writes_the_same_bytes(tiny_run: TinyRunner) -> None:
    text = "[metadata]\nkeep = 'anonymous'"

    whole = tiny_run(text=text, steps=4)
    resumed = tiny_run(text=text, steps=4, resume=tiny_run(text=text, steps=2))

    files = [(run.directory / "adapter.safetensors").read_bytes() for run in (whole, resumed)]
    assert files[0] == files[1]


def test_dates_are_those_of_the_run(tiny_run: TinyRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[metadata]\ndates = true"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = tiny_run(text=text, steps=1)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000100")

    told = header(tiny_run(text=text, steps=2, resume=first))

    assert told["ss_training_started_at"] == "1700000000.0"
    assert told["ss_training_finished_at"] == "1700000100.0"
    assert told["modelspec.date"] == "2023-11-14T22:15:00Z"


def test_hashes_are_those_of_the_tools_that_read_them(tmp_path: Path) -> None:
    """Of a file of more than a MiB, where the legacy hash begins to read."""
    tensors = {"a.lora_down.weight": torch.randn(300, 1000), "a.lora_up.weight": torch.randn(9, 300).bfloat16()}
    file, trained = tmp_path / "one.safetensors", {"ss_seed": "4", "ss_output_name": '\u00e9 "quoted"'}

    write_adapter_file(file, tensors, {**trained, "modelspec.title": "one", "sshs_model_hash": "stale", "format": "pt"})

    read, told = read_adapter_file(file)
    whole = file.read_bytes()
    data = whole[8 + int.from_bytes(whole[:8], "little") :]
    # sd-webui-additional-networks: the whole file as safetensors writes it with the texts of the training alone. Their
    # order is not fixed, but they lie before the first MiB.
    as_trained = save(tensors, trained)
    assert told["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert told["sshs_legacy_hash"] == hashlib.sha256(as_trained[0x100000:0x110000]).hexdigest()[:8]
    assert told["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert load_file(file).keys() == tensors.keys()
