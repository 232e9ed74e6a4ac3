"""SpoilingProxy: passes requests on to a server, and does to some of them what networks and busy servers do."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

HOST = "127.0.0.1"
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")


def error_answer(status: int, body: str, headers: str = "") -> bytes:
    """A whole HTTP answer, for ``SpoilingProxy.errors``. headers: further lines, each with ``\\r\\n`` at its end."""
    size = len(body.encode())
    return f"HTTP/1.1 {status} Spoiled\r\nContent-Length: {size}\r\n{headers}Connection: close\r\n\r\n{body}".encode()


@dataclass
class SpoilingProxy:
    """An HTTP proxy in front of one server of this machine, for tests of what reads or writes over a network.

    upstream: the server's port. errors: name -> the answer that a spoiled request gets instead of the server's. kinds:
    what happens to spoiled requests: names of errors, "slow" (a third of a second), "reset" (the request is lost),
    "lost" (the answer is), "cut" (half of the body is). share: how many requests are spoiled. methods: which. lines:
    the first line of every request that came. spoiled: how often each kind happened.
    """

    upstream: int
    errors: Mapping[str, bytes]
    kinds: Sequence[str] = ()
    share: float = 0.0
    methods: Sequence[str] = METHODS
    lines: list[str] = field(default_factory=list)
    spoiled: Counter[str] = field(default_factory=Counter)
    random: Random = field(default_factory=lambda: Random(7))
    port: int = 0

    @property
    def endpoint(self) -> str:
        """The address to give to a client."""
        return f"http://{HOST}:{self.port}"

    @contextmanager
    def running(self) -> Iterator[SpoilingProxy]:
        """Answer requests, in a thread, for the length of a ``with``."""
        loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
        thread = threading.Thread(target=lambda: loop.run_until_complete(self._serve(ready, stop)))
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        answering: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._answer(reader, writer))
            answering.add(task)
            task.add_done_callback(answering.discard)

        server = await asyncio.start_server(accept, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            # The client has gone; the next connection is another one.
            return
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request per connection, so that whatever happens to it happens to no other."""
        line, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        named = {name.lower(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
        if "expect" in named:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(named.get("content-length", 0)))
        self.lines.append(line)
        kind = self._kind(line.partition(" ")[0])
        if kind in self.errors:
            head, end, body = self.errors[kind].partition(b"\r\n\r\n")
            writer.write(head + end + (b"" if line.startswith("HEAD ") else body))
            return
        if kind == "reset":
            _reset(writer)
            return
        if kind == "slow":
            await asyncio.sleep(0.3)
        kept = [header for header in headers if not header.lower().startswith(("connection:", "expect:"))]
        answer = await self._forward("\r\n".join([line, *kept, "Connection: close", "", ""]).encode() + body)
        missing = len(answer.partition(b"\r\n\r\n")[2]) // 2 + 1 if kind == "cut" else 0
        if kind == "lost":
            _reset(writer)
        else:
            writer.write(answer[: len(answer) - missing])

    def _kind(self, method: str) -> str:
        if method not in self.methods or not self.kinds or self.random.random() >= self.share:
            return ""
        kind = self.random.choice(self.kinds)
        self.spoiled[kind] += 1
        return kind

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, self.upstream)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye: the other side sees a connection reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
