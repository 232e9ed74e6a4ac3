from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from st.testing.runs import CliResult


@pytest.fixture
def trained(tiny_run: Any) -> tuple[Path, Path]:
    """A finished run: its run file and its cache."""
    run = tiny_run()
    return run.directory.with_suffix(".toml"), run.directory / "cache"


Cli = Callable[..., CliResult]

ASKING = '''
from st import Options, hookimpl


class Asking:
    """Has one text encoded."""

    Options = Options

    def __init__(self, options):
        pass

    @hookimpl
    def st_texts(self, config):
        return ["a text of a technique"]
'''


def spoil(cache: Path) -> None:
    """Flip a bit in the last entry of the largest shard."""
    path = max((cache / "shards").iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_du_counts_the_entries_of_each_encoder(trained: tuple[Path, Path], st_cli: Cli) -> None:
    result = st_cli("cache", "du", trained[0])

    rows = [line.split() for line in result.out.splitlines()]
    assert result.code == 0, result.err
    assert [row[-2] for row in rows if row[:1] == ["codec"]] == ["4"]


def test_verify_ends_with_one_where_something_is_damaged(trained: tuple[Path, Path], st_cli: Cli) -> None:
    whole = st_cli("cache", "verify", trained[0])
    spoil(trained[1])

    broken = st_cli("cache", "verify", trained[0])

    assert (whole.code, broken.code) == (0, 1)
    assert "0 damaged" in whole.out
    assert "1 damaged" in broken.out
    assert "is damaged" in broken.err


@pytest.mark.parametrize("table", ["entries", "index"])
def test_a_damaged_table_is_found_and_pruned(trained: tuple[Path, Path], st_cli: Cli, table: str) -> None:
    path = min((trained[1] / table).iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    broken = st_cli("cache", "verify", trained[0])
    pruned = st_cli("cache", "prune", trained[0])
    after = st_cli("cache", "verify", trained[0])

    assert (broken.code, pruned.code, after.code) == (1, 0, 0)
    assert path.name in broken.err
    assert "1 damaged tables" in pruned.out


def test_prune_takes_out_what_is_damaged_and_nothing_else(trained: tuple[Path, Path], st_cli: Cli) -> None:
    spoil(trained[1])

    planned = st_cli("cache", "prune", trained[0], "--dry-run")
    done = st_cli("cache", "prune", trained[0])
    after = st_cli("cache", "verify", trained[0])

    assert planned.out.splitlines()[0] == done.out.splitlines()[0] == "1 damaged"
    assert "would be freed" in planned.out
    assert after.code == 0


def test_prune_unused_keeps_what_the_run_file_needs(trained: tuple[Path, Path], st_cli: Cli) -> None:
    nothing = st_cli("cache", "prune", trained[0], "--unused")
    smaller = st_cli("cache", "prune", trained[0], "--unused", "--set", "dataset.0.resolution=32")
    after = st_cli("cache", "explain", trained[0], picture(trained))

    assert "not used" not in nothing.out
    assert "4 not used by this run file" in smaller.out
    assert "not cached" in after.out


def picture(trained: tuple[Path, Path]) -> Path:
    return min((trained[0].parent / "photos").glob("*.png"))


def test_explain_says_what_is_cached_and_what_has_changed(trained: tuple[Path, Path], st_cli: Cli) -> None:
    cached = st_cli("cache", "explain", trained[0], picture(trained))
    changed = st_cli("cache", "explain", trained[0], picture(trained), "--set", "dataset.0.resolution=32")

    assert cached.code == 0, cached.err
    assert "not cached" not in cached.out
    assert "geometry was " in changed.out
    assert "fingerprint" not in changed.out


def test_explain_refuses_a_sample_that_is_in_no_data_set(trained: tuple[Path, Path], st_cli: Cli) -> None:
    result = st_cli("cache", "explain", trained[0], "nowhere.png")

    assert result.code == 1
    assert "has a sample 'nowhere.png'" in result.err


def test_prune_unused_keeps_texts_that_a_technique_asked_for(tiny_run: Any, st_cli: Cli, tmp_path: Path) -> None:
    plugin = tmp_path / "asking.py"
    plugin.write_text(ASKING)
    run = tiny_run(plugins=[f"{plugin}:Asking"])
    file = run.directory.with_suffix(".toml")

    kept = st_cli("cache", "prune", file, "--unused", "--dry-run")
    without = st_cli("cache", "prune", file, "--unused", "--dry-run", "--plugins", "no:asking")

    assert "not used" not in kept.out, kept.err
    assert "1 not used by this run file" in without.out, without.err
