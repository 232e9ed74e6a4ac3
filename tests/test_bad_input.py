"""Everything a user can get wrong, through the command line: one clear error or a named line, never a traceback.

A full disk and resuming with changed settings are in test_whole_runs.py and test_resume.py.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from st.report.log.events import read_events
from st.testing.runs import TINY, CliResult, call_cli, write_photos
from st.testing.subjects.tiny import TinyFamily

RUN_FILE = """
plugins = [{plugins}]
steps = 2
output = "{root}/out"
batch = {batch}
precision = "fp32"
device = "cpu"
[model]
checkpoint = "{root}/tiny"
[[dataset]]
url = "{root}/photos"
resolution = 64
align = 8
{dataset}
{text}
"""


class Bench:
    """A folder with pictures that a test spoils before it trains on them."""

    def __init__(self, root: Path) -> None:
        self.root, self.photos = root, root / "photos"
        TinyFamily.tiny(root / "tiny")
        write_photos(self.photos, count=20)

    def train(
        self, text: str = "", dataset: str = "", batch: int = 2, plugins: str = f'"{TINY}:TinyFamily"'
    ) -> CliResult:
        file = self.root / "run.toml"
        file.write_text(RUN_FILE.format(root=self.root, text=text, dataset=dataset, batch=batch, plugins=plugins))
        result = call_cli("train", file)
        assert "Traceback (most recent call last)" not in result.err, result.err
        return result

    def dropped(self) -> dict[str, str]:
        events = read_events(self.root / "out" / "events.jsonl")
        return {event["key"]: event["reason"] for event in events if event["event"] == "dropped"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_empty_folder(bench):
    for file in bench.photos.iterdir():
        file.unlink()

    result = bench.train()

    assert result.code == 2
    assert "photos" in result.err and "no pictures" in result.err.lower()


def test_a_folder_of_text_only(bench):
    for file in bench.photos.glob("*.png"):
        file.unlink()

    result = bench.train()

    assert result.code == 2
    assert "20 .txt" in result.err


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _text(file: Path) -> None:
    file.write_text("this is not a picture")


def _bomb(file: Path) -> None:
    """A PNG that says it has 300 million pixels and holds next to none."""
    header = struct.pack(">IIBBBBB", 20_000, 15_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(("spoil", "reason"), [(_truncate, ""), (_empty, "empty"), (_text, ""), (_bomb, "pixels")])
def test_an_unusable_picture_is_named_and_left_out(bench, spoil: Callable[[Path], None], reason):
    spoil(bench.photos / "3.png")

    result = bench.train()

    assert result.code == 0, result.err
    assert list(bench.dropped()) == ["3.png"]
    assert reason in bench.dropped()["3.png"]


def test_too_many_unusable_pictures_end_the_run(bench):
    for number in range(5):
        _truncate(bench.photos / f"{number}.png")

    result = bench.train()

    assert result.code == 2
    assert "5 of 20" in result.err and "max_unreadable" in result.err and "'0.png'" in result.err


def test_a_mislabelled_picture_is_trained_on_and_noted(bench):
    (bench.photos / "3.png").rename(bench.photos / "3.jpg")

    result = bench.train()

    assert result.code == 0, result.err
    assert "files of another format than their names say: 1, such as '3.jpg'" in result.err
    assert bench.dropped() == {}


def test_captions_that_are_not_utf8(bench):
    (bench.photos / "3.txt").write_bytes("ein schöner Hund".encode("latin-1"))

    result = bench.train()

    assert result.code == 0, result.err
    assert bench.dropped() == {"3.png": "unreadable: its caption is not UTF-8 (byte 0xf6 at position 7)"}


def test_a_missing_caption(bench):
    (bench.photos / "3.txt").unlink()

    result = bench.train()

    assert result.code == 2
    assert "'3.png'" in result.err and "missing_caption" in result.err


def test_captions_that_are_cut_off_are_counted_and_named(bench):
    (bench.photos / "3.txt").write_text("a very long caption " * 100)

    result = bench.train()

    assert result.code == 0, result.err
    assert "captions are longer than 'text' reads" in result.err
    notes = [event for event in read_events(bench.root / "out" / "events.jsonl") if event.get("kind") == "caption"]
    assert (notes[0]["key"], notes[0]["tokens"], notes[0]["read"]) == ("3.png", 2000, 32)


def test_pictures_of_one_name_are_both_trained_on_and_noted(bench):
    (bench.photos / "3.jpg").write_bytes((bench.photos / "3.png").read_bytes())

    result = bench.train()

    assert result.code == 0, result.err
    assert "3.jpg" in result.err and "3.png" in result.err


def test_a_data_set_smaller_than_a_batch(bench):
    result = bench.train(batch=16)

    assert result.code == 2
    assert "too few samples to fill a batch" in result.err and "Set repeats = 1" in result.err


def test_unknown_keys_and_wrong_types_are_shown_together_with_their_lines(bench):
    result = bench.train('[optimzer]\nlr = 1\n[clip]\nnorm = "much"\nnrom = 2', dataset="resolutoin = 3\nrepeats = 1.5")

    assert result.code == 2
    assert "run.toml:14: [dataset.0] has no option 'resolutoin'. Did you mean 'resolution'" in result.err
    assert "run.toml:15: " in result.err and "repeats = 1.5: must be a whole number" in result.err
    assert "[optimzer]" in result.err and "Did you mean 'optimizer'" in result.err
    assert "[clip] norm = 'much': must be a number." in result.err
    assert "[clip] has no option 'nrom'. Did you mean 'norm'?" in result.err


def test_a_target_that_matches_no_module(bench):
    result = bench.train('[adapter]\ntargets = ["to_qq"]')

    assert result.code != 0
    assert "to_qq" in result.err and "to_q" in result.err


def test_an_output_that_cannot_be_written(bench):
    (bench.root / "out").write_text("a file is in the way")

    result = bench.train()

    assert result.code == 1
    assert "cannot be written" in result.err and "--output DIR" in result.err


def test_two_runs_in_one_folder(bench):
    (bench.root / "out").mkdir()
    held = "import sys; from pathlib import Path; from st.train.saving.output import OutputFolder as F\n"
    held += (
        f"folder = F(Path({str(bench.root / 'out')!r})); folder.claim(); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdin is not None
    assert other.stdout.readline() == "held\n"

    result = bench.train()
    other.communicate()

    assert result.code == 1
    assert "another run is writing there" in result.err


def test_a_cache_entry_cut_short_is_encoded_again_and_named(bench):
    assert bench.train().code == 0
    before = load_file(bench.root / "out" / "adapter.safetensors")
    for shard in (bench.root / "out" / "cache" / "shards").iterdir():
        shard.write_bytes(shard.read_bytes()[:-64])
    (bench.root / "out").rename(bench.root / "first")

    result = bench.train(f'[cache]\nurl = "{bench.root}/first/cache"')

    assert result.code == 0, result.err
    assert "damaged" in result.err or "short" in result.err
    after = load_file(bench.root / "out" / "adapter.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_plugin_that_fails_to_import(bench):
    (bench.root / "broken.py").write_text("import doesnotexist\n\nclass Broken:\n    '''Broken.'''\n")

    result = bench.train(plugins=f'"{TINY}:TinyFamily", "{bench.root}/broken.py:Broken"')

    assert result.code == 2
    assert "failed to import: ModuleNotFoundError: No module named 'doesnotexist'" in result.err


def test_a_plugin_that_is_not_installed(bench):
    result = bench.train(plugins=f'"{TINY}:TinyFamily", "nosuchthing"')

    assert result.code == 2
    assert "no plugin is named 'nosuchthing'" in result.err


def test_a_pickle_where_safetensors_is_expected(bench):
    torch.save({"lora": torch.zeros(2)}, bench.root / "adapter.bin")

    result = bench.train(f'[adapter]\nstart = "{bench.root}/adapter.bin"')

    assert result.code != 0
    assert "adapter.bin" in result.err and "safetensors" in result.err


def test_a_rank_beyond_the_memory_is_said_without_a_traceback(bench):
    result = bench.train("[adapter]\nkind = 'lora'\nrank = 1000000000000\n")

    assert result.code == 3
    assert "memory is full" in result.err
    assert "can't allocate memory" in result.err
