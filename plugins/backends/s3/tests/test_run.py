"""Training from a bucket, with the cache in a bucket, is training from disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from st.testing import CliResult, TinyRunner
from st.testing.runs import call_cli
from st.testing.subjects.network import SpoilingProxy


@dataclass(slots=True)
class BucketRunner(TinyRunner):
    """Trains on the pictures at a url."""

    url: str = ""

    def _photos(self) -> str:
        return self.url


def table(bucket: str, proxy: SpoilingProxy, dataset: str = "") -> str:
    """The rest of the data set's table, and the cache's."""
    return (
        f'endpoint = "{proxy.endpoint}"\n{dataset}\n'
        f'[cache]\nurl = "s3://{bucket}/caches/one"\nendpoint = "{proxy.endpoint}"\nshard_bytes = 20000\n'
    )


def everything_written(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_run_from_a_bucket_gives_the_weights_of_a_run_from_disk(
    photos: str, bucket: str, proxy: SpoilingProxy, tiny_run: TinyRunner, tmp_path: Path, secrets: tuple[str, ...]
) -> None:
    runner = BucketRunner(tiny_run.root / "bucket", url=photos)

    expected = tiny_run()
    proxy.kinds, proxy.share = ("500", "503", "slow", "reset", "cut", "lost"), 0.2
    spoiled = runner(text=table(bucket, proxy, f'local = "{tmp_path}/copies"'))
    proxy.share = 0.0
    cached = runner(text=table(bucket, proxy))

    assert spoiled.weights() == cached.weights() == expected.weights()
    assert len(proxy.spoiled) >= 4
    assert spoiled.warnings() == cached.warnings() == []
    assert not (spoiled.directory / "cache").exists()
    for run in (spoiled, cached):
        written = everything_written(run.directory) + (run.result.out + run.result.err).encode()
        assert [secret for secret in secrets if secret.encode() in written] == []
    settings = (cached.directory / "run.json").read_text()
    assert f"s3://{bucket}/caches/one" in settings and proxy.endpoint in settings


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_expired_credentials_end_a_run_with_one_clear_message(
    photos: str, bucket: str, proxy: SpoilingProxy, tiny_run: TinyRunner, share: float, secrets: tuple[str, ...]
) -> None:
    proxy.kinds, proxy.share = ("expired",), share
    expected = tiny_run()
    runner = BucketRunner(tiny_run.root / "bucket", url=photos)

    try:
        finished = runner(text=table(bucket, proxy))
    except AssertionError as error:
        message = str(error)
        assert re.search(r"Error: the credentials for bucket '.*' at http.* have expired\.\n", message)
        assert "--resume" in message and "Traceback" not in message
        assert [secret for secret in secrets if secret in message] == []
    else:
        assert share < 1 and finished.weights() == expected.weights()


def test_the_cache_commands_work_on_a_bucket(
    photos: str, bucket: str, proxy: SpoilingProxy, tiny_run: TinyRunner, st_cli: Callable[..., CliResult]
) -> None:
    runner = BucketRunner(tiny_run.root / "bucket", url=photos)
    runner(text=table(bucket, proxy), steps=1)
    file = runner.root / "run-1.toml"

    assert "0 damaged" in st_cli("cache", "verify", file).out
    assert f"s3://{bucket}/caches/one" in st_cli("cache", "du", file).out
    assert st_cli("cache", "prune", file).code == 0


def test_keys_of_the_store_are_checked_in_the_cache_section(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('plugins = ["pocket"]\n[cache]\nurl = "s3://bucket/x"\nendpont = "https://minio.example"\n')

    shown = call_cli("config", "show", file)

    assert shown.code == 2 and "[cache] has no option 'endpont'. Did you mean 'endpoint'?" in shown.err
