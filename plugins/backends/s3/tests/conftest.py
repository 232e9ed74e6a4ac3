"""A server that speaks S3 in a process of its own, and a proxy in front of it that does what networks do."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from st.data.store import Store
from st.testing.runs import write_photos

from st_s3 import S3
from st_s3.backend import S3StoreOptions

KEY, SECRET, TOKEN = "AKIAQZEXAMPLE0000001", "s3cr3t/Abc+0123456789+never+shown", "token-never-shown-9876"
HOST = "127.0.0.1"
ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "wrong": (403, "SignatureDoesNotMatch", "The request signature we calculated does not match."),
}


@dataclass
class Proxy:
    """Passes requests on to a server, and spoils a share of them: errors, slowness, resets, bodies cut short.

    kinds: what may happen. methods: to which requests. lines: every request that came.
    """

    upstream: int
    kinds: tuple[str, ...] = ()
    share: float = 0.0
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    lines: list[str] = field(default_factory=list)
    spoiled: Counter[str] = field(default_factory=Counter)
    random: Random = field(default_factory=lambda: Random(7))
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._answer, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await stop.wait()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *headers = head.rstrip().split("\r\n")
        named = {name.lower(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
        if "expect" in named:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(named.get("content-length", 0)))
        self.lines.append(line)
        kind = self._kind(line.partition(" ")[0])
        if kind in ERRORS:
            writer.write(error(*ERRORS[kind]))
        elif kind == "reset":
            reset(writer)
        else:
            if kind == "slow":
                await asyncio.sleep(0.3)
            kept = [header for header in headers if not header.lower().startswith(("connection:", "expect:"))]
            answer = await self._forward("\r\n".join([line, *kept, "Connection: close", "", ""]).encode() + body)
            writer.write(answer[: len(answer) - len(answer.partition(b"\r\n\r\n")[2]) // 2 - 1] if kind == "cut" else answer)
            if kind == "lost":
                reset(writer)
        await writer.drain()

    def _kind(self, method: str) -> str:
        if method not in self.methods or not self.kinds or self.random.random() >= self.share:
            return ""
        kind = self.random.choice(self.kinds)
        self.spoiled[kind] += 1
        return kind

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, self.upstream)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer


def error(status: int, code: str, message: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def reset(writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """The port of a server that speaks S3."""
    port = free_port()
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
def proxy(server: int) -> Iterator[Proxy]:
    """A proxy that passes everything on until it is told otherwise."""
    one, ready, loop, stop = Proxy(server), threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(one.serve(ready, stop)))
    thread.start()
    ready.wait()
    yield one
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys in the environment, and nothing of this machine's own configuration."""
    from st_s3.filesystem import Filesystem

    Filesystem.clear_instance_cache()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))


NUMBERS = count()


@pytest.fixture
def bucket(server: int) -> str:
    """The name of a new, empty bucket."""
    name = f"bucket-{next(NUMBERS)}"
    store = S3.open_store(f"s3://{name}", S3StoreOptions(endpoint=f"http://{HOST}:{server}"))
    store.filesystem.call_s3("create_bucket", Bucket=name)
    return name


@pytest.fixture
def store(bucket: str, proxy: Proxy) -> Store:
    """A folder of that bucket, reached through the proxy."""
    return S3.open_store(f"s3://{bucket}/some/folder", S3StoreOptions(endpoint=proxy.endpoint))


@pytest.fixture
def photos(bucket: str, server: int, tmp_path: Path) -> str:
    """A url with four pictures and their captions."""
    store = S3.open_store(f"s3://{bucket}/photos", S3StoreOptions(endpoint=f"http://{HOST}:{server}"))
    for file in sorted(write_photos(tmp_path / "originals").iterdir()):
        store.write(file.name, file.read_bytes())
    return f"s3://{bucket}/photos"
