"""A hub on this machine: the few addresses that clients ask, and a proxy in front of it that spoils requests."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from st.testing.runs import write_photos
from st.testing.subjects.network import HOST, METHODS, SpoilingProxy, error_answer

TOKEN = "hf_NeverShownAnywhere0123456789"
NAME = "someone/pictures"
_ADDRESS = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)")


@dataclass
class Hub:
    """Data sets by name, each a list of commits. hidden: those that nobody may see. page: entries per answer."""

    commits: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    page: int = 1000
    port: int = 0

    def push(self, files: dict[str, bytes], name: str = NAME) -> str:
        """A new commit on ``main``, with these files and no others."""
        self.commits.setdefault(name, []).append(files)
        return self.sha(name, len(self.commits[name]) - 1)

    def sha(self, name: str, number: int) -> str:
        return hashlib.sha1(f"{name} {number}".encode()).hexdigest()

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision and its files."""
        shas = {self.sha(name, number): files for number, files in enumerate(self.commits.get(name, []))}
        if name in self.hidden or not shas:
            return None
        sha = list(shas)[-1] if revision == "main" else revision
        return (sha, shas[sha]) if sha in shas else None


class Answers(BaseHTTPRequestHandler):
    """One request. The server has a ``hub``."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        paths = json.loads(body)["paths"] if body.startswith(b"{") else []
        self.answer(unquote(urlsplit(self.path).path), paths)

    def do_GET(self) -> None:
        self.answer(unquote(urlsplit(self.path).path), None)

    def answer(self, address: str, paths: list[str] | None) -> None:
        asked, file = _ADDRESS.fullmatch(address), _FILE.fullmatch(address)
        name = (asked or file or [None, ""])[1]
        revision = (asked[3] if asked else file[2] if file else "") or "main"
        found = self.server.hub.at(name, revision)
        if found is None:
            known = name in self.server.hub.commits and name not in self.server.hub.hidden
            self.send({}, 404 if known else 401, code="RevisionNotFound" if known else "RepoNotFound")
        elif file:
            self.send_file(*found, file[3])
        elif asked and asked[2] == "tree":
            self.send_page(listing(found[1], asked[4] or "", recursive="recursive=true" in self.path.lower()))
        elif asked and asked[2] == "paths-info":
            self.send([entry for entry in listing(found[1], "") if entry["path"] in (paths or ())])
        else:
            names = [{"rfilename": path} for path in sorted(found[1])]
            self.send({"id": name, "sha": found[0], "siblings": names, "private": False, "gated": False, "tags": []})

    def send(self, plain: Any, status: int = 200, code: str = "") -> None:
        self.reply(status, json.dumps(plain).encode(), {"Content-Type": "application/json", "X-Error-Code": code})

    def send_page(self, entries: list[dict[str, Any]]) -> None:
        first, _, start = self.path.partition("&cursor=")
        end = int(start or 0) + self.server.hub.page
        host = self.headers["Host"]
        link = f'<http://{host}{first}&cursor={end}>; rel="next"' if end < len(entries) else ""
        self.reply(200, json.dumps(entries[int(start or 0) : end]).encode(), {"Link": link})

    def send_file(self, sha: str, files: dict[str, bytes], path: str) -> None:
        if path not in files:
            self.send({}, 404, code="EntryNotFound")
            return
        data, headers = files[path], {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span and int(span[1]) >= len(data):
            self.reply(416, b"", headers)
        elif span:
            part = data[int(span[1]) : int(span[2]) + 1 if span[2] else None]
            headers["Content-Range"] = f"bytes {span[1]}-{int(span[1]) + len(part) - 1}/{len(data)}"
            self.reply(206, part, headers)
        else:
            self.reply(200, data, headers)

    def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def listing(files: dict[str, bytes], folder: str, *, recursive: bool = True) -> list[dict[str, Any]]:
    """Files below a folder; without ``recursive`` those right in it, and its folders."""
    start, found = f"{folder}/" if folder else "", {}
    for path, data in sorted(files.items()):
        inside, below, _ = path.removeprefix(start).partition("/")
        digest = hashlib.sha1(data).hexdigest()
        if path.startswith(start) and below and not recursive:
            found[inside] = {"type": "directory", "path": start + inside, "size": 0, "oid": digest}
        elif path.startswith(start):
            found[path] = {"type": "file", "path": path, "size": len(data), "oid": digest}
    return list(found.values())


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty hub."""
    one = Hub()
    with ThreadingHTTPServer((HOST, 0), Answers) as server:
        server.hub, server.daemon_threads = one, True
        one.port = server.server_address[1]
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
        thread.start()
        yield one
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(hub: Hub) -> Iterator[SpoilingProxy]:
    """What clients are given as the hub's address. It passes everything on until it is told otherwise."""
    answers = {"500": 500, "503": 503, "denied": 401}
    errors = {kind: error_answer(status, "{}") for kind, status in answers.items()}
    with SpoilingProxy(hub.port, errors, methods=METHODS).running() as running:
        yield running


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests have a hub, whatever the environment says of the other one; and a token that nobody may see."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def photos(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    """Four pictures and their captions, pushed in the folder ``photos``."""
    files = {f"photos/{file.name}": file.read_bytes() for file in write_photos(tmp_path / "originals").iterdir()}
    hub.push({"README.md": b"# Pictures\n", **files})
    return files
