"""A server that speaks S3 in a process of its own, and a proxy in front of it that spoils requests when it is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from st.data.store.store import Store
from st.testing.runs import write_photos
from st.testing.subjects.network import HOST, METHODS, SpoilingProxy, error_answer
from st_s3 import S3
from st_s3.backend import S3StoreOptions

NUMBERS = count()
ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied."),
    "wrong": (403, "SignatureDoesNotMatch", "The request signature we calculated does not match."),
}


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """The port of a server that speaks S3."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = int(free.getsockname()[1])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)], **quiet)
    try:
        for _ in range(600):
            try:
                urlopen(f"http://{HOST}:{port}/moto-api/data.json", timeout=5).close()
                break
            except (URLError, ConnectionError):
                assert process.poll() is None, "the server ended"
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def put(server: int) -> Callable[..., None]:
    """Makes a bucket or an object, ``put("bucket/key", b"data")``, without the code that is tested."""

    def make(path: str, data: bytes = b"") -> None:
        plain = {"Content-Type": "application/octet-stream"}
        urlopen(Request(f"http://{HOST}:{server}/{path}", data or None, plain, method="PUT"), timeout=30).close()

    return make


@pytest.fixture(scope="session")
def one_proxy(server: int) -> Iterator[SpoilingProxy]:
    """One for all tests: clients for the same address are the same client, and making one takes long."""
    errors = {
        kind: error_answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>")
        for kind, (status, code, text) in ERRORS.items()
    }
    with SpoilingProxy(server, errors).running() as running:
        yield running


@pytest.fixture
def proxy(one_proxy: SpoilingProxy) -> SpoilingProxy:
    """What clients are given as the server's address. It passes everything on until it is told otherwise."""
    one_proxy.kinds, one_proxy.share, one_proxy.methods = (), 0.0, METHODS
    one_proxy.lines.clear()
    one_proxy.spoiled.clear()
    one_proxy.random.seed(7)
    return one_proxy


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, ...]:
    """What must not be seen anywhere. It is in the environment, and nothing of this machine's configuration is."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    hidden = {
        "AWS_ACCESS_KEY_ID": "AKIAQZEXAMPLE0000001",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t/Abc+0123456789+never+shown",
        "AWS_SESSION_TOKEN": "token-never-shown-9876",
    }
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    return tuple(hidden.values())


@pytest.fixture
def bucket(put: Callable[..., None]) -> str:
    """The name of a new, empty bucket."""
    name = f"bucket-{next(NUMBERS)}"
    put(name)
    return name


@pytest.fixture
def store(bucket: str, proxy: SpoilingProxy) -> Store:
    """A folder of that bucket, reached through the proxy."""
    return S3.open_store(f"s3://{bucket}/some/folder", S3StoreOptions(endpoint=proxy.endpoint))


@pytest.fixture
def photos(bucket: str, put: Callable[..., None], tmp_path: Path) -> str:
    """A url with four pictures and their captions."""
    for file in sorted(write_photos(tmp_path / "originals").iterdir()):
        put(f"{bucket}/photos/{file.name}", file.read_bytes())
    return f"s3://{bucket}/photos"
