"""A server that speaks S3, in a process of its own, for scripts that train from it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from st.testing.subjects.network import HOST

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "of-a-server-that-takes-any",
    "AWS_SECRET_ACCESS_KEY": "of-a-server-that-takes-any",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What clients find in their environment."""


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of an empty server of this machine. Raises RuntimeError where it does not start."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(process, port)
        yield port
    finally:
        process.terminate()
        process.wait()


def upload(port: int, bucket: str, folder: Path, prefix: str) -> int:
    """Make a bucket and put every file below a folder into it, without the code that is tried; how many."""
    _put(f"http://{HOST}:{port}/{bucket}", None)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        _put(f"http://{HOST}:{port}/{bucket}/{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return len(files)


def _put(address: str, data: bytes | None) -> None:
    kind = {"Content-Type": "application/octet-stream"}
    urlopen(Request(address, data, kind, method="PUT"), timeout=30).close()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urlopen(f"http://{HOST}:{port}/moto-api/data.json", timeout=5).close()
            return
        except (URLError, ConnectionError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no S3 server: {error}; `pip install moto[server]` brings one") from error
            time.sleep(0.05)
