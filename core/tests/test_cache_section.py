"""``[cache]``: where it is, and what the backend of its url wants to know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from st.errors import ProblemsFound
from st.settings.assembly import assemble
from st.train.stages import open_cache_store

CRATES = '''
"""Places that are reached with a key."""

import st
from st.data.source.folder import FolderBackend, FolderOptions
from st.data.store.store import Store


class CrateOptions(st.Options):
    depot: str = ""
    """Where crates are."""


class Options(FolderOptions, CrateOptions):
    """A data set in a crate."""


class Crate(FolderBackend):
    """A crate."""

    Options = Options
    StoreOptions = CrateOptions

    @classmethod
    def open_store(cls, url, options):
        return Store.at(f"{options.depot}/{url.partition('://')[2]}")


class Ticker(st.DataBackend):
    """What is only read."""

    def samples(self, unreadable): ...
    def read(self, key): ...
'''

pytestmark = pytest.mark.usefixtures("quill")


@pytest.fixture
def crates(package: Callable[..., Path]) -> None:
    """Two backends: one that caches can be kept in, and one that they cannot."""
    entries = {"st.v1.backends": {"crate": "st_crate:Crate", "ticker": "st_crate:Ticker"}}
    package("st-crate", "1.0", entries, st_crate=CRATES)


def problems(run_file: Path) -> str:
    with pytest.raises(ProblemsFound) as raised:
        assemble(run_file)
    return str(raised.value)


def test_its_backend_opens_the_store_with_keys_of_the_section(
    crates: None, run_toml: Callable[[str], Path], tmp_path: Path
) -> None:
    text = f'plugins = ["quill"]\n[cache]\nurl = "crate://shared"\nbatch = 2\ndepot = "{tmp_path}/depot"\n'

    config, plugins = assemble(run_toml(text))

    assert config.cache.batch == 2
    assert str(open_cache_store(config)) == f"{tmp_path}/depot/shared"
    assert "crate" in plugins.versions()
    again, _ = assemble(run_toml(json.dumps(config.plain())).rename(tmp_path / "run.json"))
    assert str(open_cache_store(again)) == f"{tmp_path}/depot/shared"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('url = "crate://x"\ndepo = "y"', "[cache] has no option 'depo'. Did you mean 'depot'?"),
        ('url = "elsewhere"\ndepot = "y"', "[cache] has no option 'depot'."),
        ('url = "crate://x"\ndepot = 3', "[cache] depot = 3: must be text."),
        ('url = "ticker://x"', "[cache] url = 'ticker://x': 'ticker' only reads data sets; a cache is written to."),
        ('url = "crat://x"', "[cache] url = 'crat://x': no plugin is named 'crat'."),
    ],
)
def test_what_it_cannot_be_is_refused_before_anything_runs(
    crates: None, run_toml: Callable[[str], Path], section: str, words: str
) -> None:
    assert words in problems(run_toml(f'plugins = ["quill"]\n[cache]\n{section}\n'))


@pytest.mark.parametrize("url", ["memory://cache-of-a-test", "{}/cache", "file:{}/cache"])
def test_places_without_a_backend_need_none(run_toml: Callable[[str], Path], tmp_path: Path, url: str) -> None:
    config, _ = assemble(run_toml(f'plugins = ["quill"]\n[cache]\nurl = "{url.format(tmp_path)}"\n'))

    store = open_cache_store(config)
    store.write("a", b"1")

    assert store.read("a") == b"1"
    assert store.is_local == ("memory" not in url)
