"""Train the demo from a disk and from S3, over a network that spoils requests, and compare the weights byte for byte.

    python tests/s3_demo.py [--steps 100] [--spoil 0.2] [--seed 7]

Both runs are ``st train demo/base.toml``: its photographs, captions, buckets, held-out losses and pictures, for fewer
steps. The first has everything in a folder. Of the second, pictures, captions and cache are in a bucket of a server
that speaks S3, behind a proxy: of all requests, the share ``--spoil`` is answered by an error 500 or 503, late, with
half of the body, or not at all, before the server saw it or after. The exit status is 1 where the second run ends with
other weights, warns, leaves a sample out, or keeps a cache on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from s3_server import CREDENTIALS, s3_server, upload

from st.report.log.events import read_events
from st.testing.subjects.network import SpoilingProxy, error_answer

ROOT = Path(__file__).parents[1]
BUCKET = "demo"
KINDS = ("500", "503", "slow", "reset", "lost", "cut")
ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
}


def main() -> int:
    """Print one JSON line with the counts; the exit status is 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--spoil", type=float, default=0.2, help="share of the requests that are spoiled")
    parser.add_argument("--seed", type=int, default=7, help="of which requests are spoiled, and how")
    arguments = parser.parse_args()
    errors = {
        kind: error_answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>")
        for kind, (status, code, text) in ERRORS.items()
    }
    with tempfile.TemporaryDirectory() as name, s3_server() as port:
        scratch = Path(name)
        photos = scratch / "photos"
        subprocess.run([sys.executable, str(ROOT / "demo" / "photographs.py"), str(photos)], check=True)
        upload(port, BUCKET, photos, "photos")
        folders = {"dataset.0.url": f"{photos}/base", "dataset.1.url": f"{photos}/held-out"}
        disk = _train(scratch / "disk", arguments.steps, folders)
        proxy = SpoilingProxy(port, errors, KINDS, arguments.spoil, random=Random(arguments.seed))
        with proxy.running():
            bucket = {name: url.replace(str(scratch), f"s3://{BUCKET}") for name, url in folders.items()}
            bucket |= {f"dataset.{number}.endpoint": proxy.endpoint for number in range(2)}
            cache = {"cache.url": f"s3://{BUCKET}/cache", "cache.endpoint": proxy.endpoint}
            s3 = _train(scratch / "s3", arguments.steps, bucket | cache)
        broken = _broken(scratch / "disk", scratch / "s3", proxy, arguments.spoil)
        counts = {"steps": arguments.steps, "seconds": {"disk": disk, "s3": s3}, **_requests(proxy)}
        print(json.dumps({**counts, "weights": _size(scratch / "s3"), "identical": not broken, "broken": broken}))
    return 1 if broken else 0


def _train(output: Path, steps: int, settings: dict[str, str]) -> int:
    """Run to the end; the seconds that it took. Raises CalledProcessError where it does not end with 0."""
    halves = {f"{section}.every": steps // 2 or 1 for section in ("evaluation", "checkpoint")}
    changes = {"steps": steps, **halves, "validation.every": steps, "validation.at_start": "false", **settings}
    command = [sys.executable, "-m", "st.cli", "train", str(ROOT / "demo" / "base.toml"), "--output", str(output)]
    command += [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**kept, **CREDENTIALS})
    return round(time.monotonic() - started)


def _broken(disk: Path, s3: Path, proxy: SpoilingProxy, share: float) -> list[str]:
    """What should have been otherwise."""
    broken: list[str] = []
    if _weights(disk) != _weights(s3):
        broken.append("the run from S3 ended with other weights")
    if _measured(disk) != _measured(s3):
        broken.append("the run from S3 logged other losses")
    if (s3 / "cache").exists():
        broken.append("the run from S3 kept a cache on this machine")
    events = list(read_events(s3 / "events.jsonl"))
    broken += [f"the run from S3 said: {one['text']}" for one in events if one.get("kind") in ("warning", "error")]
    broken += [f"the run from S3 left out {one['key']}: {one['reason']}" for one in events if one["event"] == "dropped"]
    if proxy.spoiled.total() < share * len(proxy.lines) / 2:
        broken.append(f"only {proxy.spoiled.total()} of {len(proxy.lines)} requests were spoiled")
    return broken


def _requests(proxy: SpoilingProxy) -> dict[str, object]:
    """How many requests came for what, and how many were spoiled how."""
    kinds = Counter[str]()
    for line in proxy.lines:
        method, path = line.split(" ")[:2]
        place = "listings" if "list-type" in path else "cache" if f"{BUCKET}/cache" in path else Path(path).suffix[1:]
        kinds[f"{method} {place}"] += 1
    spoiled = {"spoiled": proxy.spoiled.total(), "how": dict(sorted(proxy.spoiled.items()))}
    return {"requests": len(proxy.lines), "for": dict(sorted(kinds.items())), **spoiled}


def _measured(output: Path) -> list[tuple[str, float]]:
    """Every loss of a run, of training and held out, in order."""
    found = [
        metric for event in read_events(output / "events.jsonl") for metric in (event.get("metrics") or {}).items()
    ]
    return [metric for metric in found if metric[0].startswith(("loss", "eval/"))] or sys.exit(
        f"{output} has no losses"
    )


def _weights(output: Path) -> dict[str, bytes]:
    """Every exported file of a finished run."""
    files = {path.name: path.read_bytes() for path in (output / "model").rglob("*") if path.is_file()}
    return files or sys.exit(f"{output} holds no exported model")


def _size(output: Path) -> int:
    """Bytes of all exported files."""
    return sum(map(len, _weights(output).values()))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
