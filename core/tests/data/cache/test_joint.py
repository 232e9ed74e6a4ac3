"""An encoder that reads a caption with references is given both, and its entries are named after both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import st.testing.subjects.edit
from st.data.cache.cache import Cache
from st.data.cache.pruning import records
from st.data.store.store import Store
from st.testing.runs import TinyRun, call_cli
from st.testing.subjects.edit import TinyEdit

RUN_FILE = """
plugins = [{plugin}]
output = {output}
steps = 2
batch = 2
precision = "fp32"
device = "cpu"
[model]
checkpoint = {checkpoint}
[adapter]
kind = "lora"
[report]
every = 1
[[dataset]]
url = {after}
resolution = 16
align = 8
caption_dropout = 0.5
reference_sets = ["before"]
[[dataset]]
name = "before"
role = "reference"
url = {before}
[validation]
every = 2
resolutions = ["16"]
steps = 1
guidance = 2.0
negative = "blurred"
prompts = [{{prompt = "red", references = [{shown}]}}]
"""
COLOURS = ((250, 0, 0), (0, 250, 0), (0, 0, 250))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures with captions, a reference for each, a checkpoint and a run file."""
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        for number, colour in enumerate(COLOURS):
            Image.new("RGB", (16, 16), colour).save(tmp_path / name / f"{number}.png")
    for number in range(3):
        (tmp_path / "after" / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    TinyEdit.tiny(tmp_path / "tiny")
    names = {name: tmp_path / name for name in ("before", "after", "output")}
    names |= {"checkpoint": tmp_path / "tiny", "shown": tmp_path / "before" / "1.png"}
    plugin = f"{st.testing.subjects.edit.__file__}:TinyEdit"
    quoted = {name: json.dumps(str(value)) for name, value in {**names, "plugin": plugin}.items()}
    (tmp_path / "run.toml").write_text(RUN_FILE.format(**quoted), encoding="utf-8")
    return tmp_path


def trained(folder: Path, *arguments: str) -> TinyRun:
    result = call_cli("train", folder / "run.toml", *arguments)
    assert result.code == 0, f"{result.err}\n{result.out}"
    return TinyRun(folder / "output", result)


def entries(folder: Path) -> dict[str, dict[str, str]]:
    """What each entry of the encoder was made from, by key."""
    cache = Cache(Store.at(str(folder / "output" / "cache")))
    return {index.key(row): record for index, row, record in records(cache) if record["encoder"] == "look"}


def again(folder: Path) -> set[str]:
    """Keys that another run adds, in a folder of its own that shares the cache."""
    before = entries(folder)
    trained(folder, "--set", f"output={folder / 'second'}", "--set", f"cache.url={folder / 'output' / 'cache'}")
    return entries(folder).keys() - before.keys()


def test_every_caption_is_read_with_the_reference_of_its_sample_and_so_is_none(folder: Path) -> None:
    run = trained(folder)

    made = entries(folder).values()
    assert sorted((record["sample"], record["caption"], record["role"]) for record in made) == sorted(
        (f"{number}.png", *text) for number in range(3) for text in ((f"picture {number}", "caption"), ("", "dropped"))
    )
    assert len({record["reference bytes"] for record in made}) == 3
    assert not run.warnings("could not be")
    assert list((run.directory / "samples" / "step-00000002").glob("red-*.png"))


def test_the_encoder_is_shown_the_reference_that_belongs_to_the_caption(folder: Path) -> None:
    trained(folder)

    cache = Cache(Store.at(str(folder / "output" / "cache")))
    for key, record in entries(folder).items():
        tensors = cache.get(key)
        assert tensors is not None
        number = int(record["sample"][0])
        expected = torch.tensor(COLOURS[number]) / 255
        torch.testing.assert_close(tensors["text"][1, :3], expected)


def test_nothing_is_encoded_again_where_nothing_has_changed(folder: Path) -> None:
    trained(folder)

    assert again(folder) == set()


def test_another_reference_or_caption_is_another_entry(folder: Path) -> None:
    trained(folder)
    Image.new("RGB", (16, 16), (9, 9, 9)).save(folder / "before" / "0.png")
    (folder / "after" / "1.txt").write_text("another caption", encoding="utf-8")

    fresh = again(folder)

    changed = sorted((record["sample"], record["role"]) for key, record in entries(folder).items() if key in fresh)
    assert changed == [("0.png", "caption"), ("0.png", "dropped"), ("1.png", "caption")]


def test_entries_of_both_are_explained_and_kept_by_prune(folder: Path) -> None:
    trained(folder)
    before = entries(folder)

    explained = call_cli("cache", "explain", folder / "run.toml", "0.png")
    pruned = call_cli("cache", "prune", folder / "run.toml", "--unused")

    assert pruned.code == 0, pruned.err
    assert entries(folder).keys() == before.keys()
    assert "look" in explained.out and "not cached" not in explained.out


def test_an_entry_that_is_lost_while_training_is_read_again(folder: Path) -> None:
    from st.data.cache.encoding import Encoded
    from st.data.cache.mending import Mender
    from st.data.cache.origins import Origins
    from st.data.sets.words import DROPPED
    from st.report.report import Report
    from st.settings.assembly import assemble
    from st.train.stages import read_data

    trained(folder)
    config, plugins = assemble(folder / "run.toml", (), ())
    (one,) = read_data(config, plugins, Report.silent())
    origins = Origins(plugins.family.codec(), plugins.family.text_encoders())
    encoded, notes = Encoded((one,), origins), list[str]()
    for part in (one, *one.references):
        part.digest(0)
    (encoder,) = encoded.origins.joint_readers
    kept = Cache(Store.at(str(folder / "output" / "cache")))
    empty = Cache(Store.at(str(folder / "empty")))
    origin = origins.joint(encoder, one, 0, DROPPED)
    assert origin is not None
    expected = kept.get(origin.key)
    assert expected is not None

    mended = Mender(origins, empty, notes.append).joint(encoder, one, 0, DROPPED)

    assert torch.equal(mended["text"], expected["text"])
    assert len(notes) == 1
