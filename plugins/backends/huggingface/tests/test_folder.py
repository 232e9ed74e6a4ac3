"""Files of a repository as a data set."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from st.errors import DataUnusable, StError, StoreUnreachable
from st.testing import DataBackendTests
from st.testing.runs import TinyRunner
from st.testing.subjects.network import SpoilingProxy
from st_huggingface import HubFolder

URL = "hf://datasets/someone/pictures/photos"


def opened(proxy: SpoilingProxy, url: str = URL, **options: object) -> HubFolder:
    return HubFolder(url, HubFolder.Options(endpoint=proxy.endpoint, **options))


def keys(backend: HubFolder) -> list[str]:
    return [sample.key for sample in backend.samples(lambda key, reason: pytest.fail(f"{key}: {reason}"))]


class TestConformance(DataBackendTests):
    plugin = "hf"

    @pytest.fixture
    def backend(self, photos: dict[str, bytes], proxy: SpoilingProxy) -> HubFolder:
        return opened(proxy)


def test_importing_it_imports_no_client_library() -> None:
    code = (
        "import st_huggingface, sys; print([n for n in ('datasets', 'huggingface_hub', 'torch') if n in sys.modules])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_run_stays_at_the_commit_it_began_with(photos, hub, proxy: SpoilingProxy) -> None:
    backend = opened(proxy)
    first = hub.sha("someone/pictures", 0)

    hub.push({"photos/0.png": b"changed"})

    assert keys(backend) == ["0.png", "1.png", "2.png", "3.png"]
    assert backend.read("0.png") == photos["photos/0.png"]
    assert backend.facts() == {"revision of datasets/someone/pictures": first}


@pytest.mark.parametrize("url", ["hf://datasets/someone/pictures@{}/photos", "hf:datasets/someone/pictures/photos"])
def test_a_commit_may_be_asked_for(photos, hub, proxy: SpoilingProxy, url: str) -> None:
    first = hub.sha("someone/pictures", 0)
    hub.push({"photos/0.png": b"changed"})

    assert keys(opened(proxy, url.format(first), revision="" if "@" in url else first))[0] == "0.png"


def test_files_that_two_commits_share_are_not_read_again(photos, hub, proxy: SpoilingProxy) -> None:
    known = opened(proxy).table(None, lambda key, reason: None).table
    hub.push({**photos, "photos/0.txt": b"another caption"})
    before = len(proxy.lines)

    table = opened(proxy).table(known, lambda key, reason: None).table

    assert table["captions"][0].as_py() == ["another caption"] and table.slice(1) == known.slice(1)
    assert [line for line in proxy.lines[before:] if ".png" in line] == [proxy.lines[-2]]


def test_every_byte_arrives_although_a_fifth_of_all_requests_fails(photos, proxy: SpoilingProxy) -> None:
    proxy.kinds, proxy.share = ("500", "503", "slow", "reset", "cut", "lost"), 0.2
    backend = opened(proxy)

    for _ in range(8):
        assert [backend.read(key) for key in keys(backend)] == [photos[f"photos/{n}.png"] for n in range(4)]
    assert len(proxy.spoiled) >= 5


def test_listings_of_many_pages_are_whole(photos, hub, proxy: SpoilingProxy) -> None:
    hub.page = 3

    assert keys(opened(proxy)) == ["0.png", "1.png", "2.png", "3.png"]
    assert len([line for line in proxy.lines if "/tree/" in line]) == 3


def test_a_refused_token_is_one_clear_stop(photos, proxy: SpoilingProxy) -> None:
    backend = opened(proxy)
    proxy.kinds, proxy.share = ("denied",), 1.0

    for action in (lambda: backend.read("0.png"), lambda: keys(backend), lambda: opened(proxy)):
        before = len(proxy.lines)
        with pytest.raises(StoreUnreachable, match="hub") as raised:
            action()
        assert "hf auth login" in raised.value.fix and "hf_Never" not in str(raised.value)
        assert len(proxy.lines) == before + 1


def test_a_hub_that_never_answers_is_one_clear_stop(photos, proxy: SpoilingProxy) -> None:
    backend = opened(proxy)
    proxy.kinds, proxy.share = ("500",), 1.0

    with pytest.raises(StoreUnreachable, match=r"'0.png' cannot be read from hf://"):
        backend.read("0.png")
    with pytest.raises(StoreUnreachable, match="cannot be looked up"):
        opened(proxy)


def test_what_does_not_exist_is_named(photos, hub, proxy: SpoilingProxy) -> None:
    with pytest.raises(StError, match="no dataset 'someone/nothing' on the hub that you can see"):
        opened(proxy, "hf://datasets/someone/nothing")
    with pytest.raises(DataUnusable, match="no such revision"):
        opened(proxy, revision="v9")
    with pytest.raises(DataUnusable, match="names no repository"):
        opened(proxy, "hf://datasets/someone")
    with pytest.raises(DataUnusable, match="holds no pictures"):
        keys(opened(proxy, "hf://datasets/someone/pictures/none"))


def test_offline_says_how_to_have_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(StoreUnreachable, match="HF_HUB_OFFLINE is set") as raised:
        HubFolder(URL, HubFolder.Options())

    assert "hf download someone/pictures --repo-type dataset --local-dir photos" in raised.value.fix


def test_masks_may_lie_beside_the_pictures_and_on_this_machine(photos, hub, proxy: SpoilingProxy, tmp_path) -> None:
    hub.push({**photos, **{f"photos/masks/{number}.png": b"mask" for number in range(4)}})
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"edges")

    backend = opened(proxy, masks=f"{URL}/masks", references=str(tmp_path))
    extras = next(backend.samples(lambda key, reason: None)).extras

    assert {name: backend.read(key) for name, key in extras.items()} == {"mask": b"mask", "reference": b"edges"}


def test_media_are_fetched_once_where_copies_are_kept(photos, proxy: SpoilingProxy, tmp_path: Path) -> None:
    options = {"local": str(tmp_path / "copies")}
    opened(proxy, **options).read("0.png")
    backend = opened(proxy, **options)
    before = len(proxy.lines)

    assert backend.read("0.png") == photos["photos/0.png"]
    assert len(proxy.lines) == before


def test_a_cache_cannot_be_kept_on_the_hub(run_file: Callable[[str], Path], st_cli) -> None:
    file = run_file('plugins = ["./t.py:T"]\n[cache]\nurl = "hf://datasets/someone/cache"\n')

    assert (
        "[cache] url = 'hf://datasets/someone/cache': 'hf' only reads data sets" in st_cli("config", "show", file).err
    )


def test_a_run_from_the_hub_gives_the_weights_of_a_run_from_disk(
    photos, hub, proxy: SpoilingProxy, tiny_run: TinyRunner
) -> None:
    class HubRunner(TinyRunner):
        def _photos(self) -> str:
            return URL

    expected = tiny_run()
    proxy.kinds, proxy.share = ("500", "503", "slow", "reset", "cut", "lost"), 0.2
    run = HubRunner(tiny_run.root / "hub")(text=f'endpoint = "{proxy.endpoint}"\n')

    assert run.weights() == expected.weights()
    assert run.warnings() == []
    assert hub.sha("someone/pictures", 0) in (run.directory / "manifest.json").read_text()
    written = b"".join(path.read_bytes() for path in run.directory.rglob("*") if path.is_file())
    assert b"hf_Never" not in written + (run.result.out + run.result.err).encode()
