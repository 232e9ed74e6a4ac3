import json
import os

import pytest
import torch

from st.errors import CheckpointDamaged
from st.train.saving.state import read_state, snapshot, write_state
from st.train.saving.vault import Vault


def _fill(directory):
    (directory / "state").mkdir()
    write_state(directory / "state", "optimizer", {"step": 3, 0: {"mean": torch.arange(4.0)}, "betas": (0.9, 0.999)})


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "checkpoints")


def test_state_returns_exactly_as_it_was(tmp_path):
    state = {
        "a": [torch.zeros(0), None, True],
        1: ({"x": 1.5e-300}, "text"),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }

    write_state(tmp_path, "state", state)
    restored = read_state(tmp_path, "state")

    assert restored[1] == state[1]
    assert restored["a"][1:] == [None, True]
    assert restored["half"].dtype == torch.bfloat16 and torch.equal(restored["half"], state["half"])


def test_state_that_is_not_plain_data_is_refused(tmp_path):
    with pytest.raises(TypeError, match="set"):
        write_state(tmp_path, "state", {"a": {1, 2}})


def test_snapshot_is_not_changed_by_training(tmp_path):
    weight = torch.ones(2)
    copied = snapshot({"w": [weight]})

    weight.add_(1)

    assert torch.equal(copied["w"][0], torch.ones(2))


def test_newest_whole_checkpoint_is_found_and_damaged_ones_are_named(vault):
    for step in (100, 200, 300):
        vault.write(step, _fill, {})
    target = vault.path(300) / "state" / "optimizer.safetensors"
    target.write_bytes(target.read_bytes()[:-1])
    flipped = vault.path(200) / "state" / "optimizer.json"
    flipped.write_text(flipped.read_text().replace("0.9", "0.8", 1))
    seen = []

    newest = vault.newest(seen.append)

    assert newest == 100
    assert "'state/optimizer.safetensors' has" in str(seen[0])
    assert "'state/optimizer.json' is not what was written" in str(seen[1])


def test_a_missing_file_is_named(vault):
    vault.write(1, _fill, {})
    (vault.path(1) / "state" / "optimizer.json").unlink()

    with pytest.raises(CheckpointDamaged, match=r"'state/optimizer.json' is not there"):
        vault.verify(1)


def test_an_unfinished_folder_is_no_checkpoint(vault):
    vault.write(1, _fill, {})
    (vault.directory / ".partial-00000002").mkdir()

    assert vault.steps() == [1]
    vault.sweep()
    assert sorted(path.name for path in vault.directory.iterdir()) == ["step-00000001"]


def test_a_failed_write_leaves_nothing_behind(vault):
    vault.write(1, _fill, {})

    def fill(directory):
        _fill(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        vault.write(2, fill, {})

    assert vault.steps() == [1]
    assert os.listdir(vault.directory) == ["step-00000001"]


def test_a_step_saved_again_replaces_its_checkpoint(vault):
    vault.write(1, _fill, {"try": 1})
    vault.write(1, _fill, {"try": 2})

    assert vault.verify(1)["try"] == 2
    assert vault.steps() == [1]


def test_the_newest_and_the_best_are_kept(vault):
    for step in (1, 2, 3, 4):
        vault.write(step, _fill, {})
    vault.mark_best(1, "eval/photos", 0.5)

    gone = vault.prune(keep=2)

    assert gone == [2]
    assert vault.steps() == [1, 3, 4]
    assert vault.best() == (1, 0.5)


def test_manifest_names_every_file_with_size_and_digest(vault):
    vault.write(5, _fill, {"samples": 40})

    manifest = json.loads((vault.path(5) / "manifest.json").read_text())

    assert manifest["step"] == 5 and manifest["samples"] == 40
    assert set(manifest["files"]) == {"state/optimizer.json", "state/optimizer.safetensors"}


def test_a_damaged_checkpoint_takes_no_place_of_a_whole_one(vault):
    for step in (100, 200, 300):
        vault.write(step, _fill, {})
    (vault.path(300) / "state" / "optimizer.json").write_text("damaged")
    again = Vault(vault.directory)
    assert again.newest(lambda error: None) == 200
    again.write(250, _fill, {})

    gone = again.prune(keep=2)

    assert gone == [100, 300]
    assert again.steps() == [200, 250]


def test_damage_that_nobody_has_met_yet_is_found_when_checkpoints_are_counted(vault):
    for step in (1, 2):
        vault.write(step, _fill, {})
    (vault.path(2) / "state" / "optimizer.json").write_text("damaged")
    again = Vault(vault.directory)
    again.write(3, _fill, {})

    assert again.prune(keep=2) == [2]


def test_a_damaged_best_is_not_the_best(vault):
    for step in (1, 2):
        vault.write(step, _fill, {})
    vault.mark_best(1, "loss", 0.5)
    (vault.path(1) / "state" / "optimizer.json").write_text("damaged")
    again = Vault(vault.directory)

    assert again.prune(keep=1) == [1]
    assert again.best() is None


def test_nothing_is_removed_where_no_checkpoint_is_whole(vault):
    vault.write(1, _fill, {})
    (vault.path(1) / "state" / "optimizer.json").write_text("damaged")

    assert Vault(vault.directory).prune(keep=1) == []


DEEP = "[" * 100_000
MALFORMED = ["", "[]", "{}", "null", '{"step": "x"}', DEEP, '{"a": ' + "9" * 5000 + "}", '{"a": "\\ud800"}', "\0", "{"]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_manifest_is_a_damaged_checkpoint(vault, text):
    vault.write(1, _fill, {})
    (vault.path(1) / "manifest.json").write_text(text)

    with pytest.raises(CheckpointDamaged, match="manifest"):
        vault.verify(1)


@pytest.mark.parametrize(
    "files", ['{"files": 3}', '{"x": {"size": 1}}', '{"x": 1}', '{"x": {"size": 1, "sha256": "a"}}']
)
def test_a_manifest_of_other_things_is_a_damaged_checkpoint(vault, files):
    vault.write(1, _fill, {})
    (vault.path(1) / "manifest.json").write_text(f'{{"format": 1, "step": 1, "files": {files}}}')

    with pytest.raises(CheckpointDamaged):
        vault.verify(1)


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_mark_of_the_best_says_what_to_do(vault, text):
    vault.write(1, _fill, {})
    vault.mark_best(1, "loss", 0.5)
    (vault.directory / "best.json").write_text(text)

    with pytest.raises(CheckpointDamaged, match="delete it"):
        vault.best()


def test_every_flipped_bit_of_the_mark_of_the_best_is_seen(vault):
    vault.write(1, _fill, {})
    vault.mark_best(1, "loss", 0.5)
    file = vault.directory / "best.json"
    whole = file.read_bytes()

    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        try:
            assert vault.best() == (1, 0.5), "only what stands for the same may pass"
        except CheckpointDamaged:
            continue
