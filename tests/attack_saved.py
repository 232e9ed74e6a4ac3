"""Attacks on what a run saved: checkpoints, its records, the cache and its index, adapter files, headers, and flips."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

from attack_bench import LONGER, TRAINED, Attack, Place

RESUME = ("train", "run.toml", "--resume", "--set", f"steps={LONGER}")
NEWEST = f"run/checkpoints/step-{TRAINED:08d}"
PICKLE = b"\x80\x04cposix\nsystem\nX\x13\x00\x00\x00touch ran-by-a-file\x85R."
JSONS = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "a number": b"5",
    "cut short": b'{"a": [1, 2',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
    "a lone surrogate": b'{"step": "\\ud800"}',
    "infinity": b'{"step": Infinity, "value": NaN}',
    "a pickle": PICKLE,
}


def attacks(base: Path, rng: random.Random) -> list[Attack]:
    """Every attack on what is read back. base: the folder that is spoilt."""
    return [*_jsons(base, rng), *_checkpoints(base, rng), *_cache(base, rng), *_headers(base, rng)]


def _writing(name: str, content: bytes) -> Callable[[Place], object]:
    return lambda place: (place.root / name).write_bytes(content)


def _flipping(name: str, at: int, bit: int) -> Callable[[Place], object]:
    def flip(place: Place) -> None:
        content = bytearray((place.root / name).read_bytes())
        content[at % len(content)] ^= 1 << bit
        (place.root / name).write_bytes(content)

    return flip


def _jsons(base: Path, rng: random.Random) -> list[Attack]:
    files = ["run/run.json", "run/manifest.json", "run/checkpoints/best.json", "run/checkpoints/measured.json"]
    files += [str(path.relative_to(base)) for path in sorted((base / NEWEST).rglob("*.json"))]
    found: list[Attack] = []
    for file in files:
        told = (file.rpartition("/")[2], f"step {TRAINED}", "best", "this run was started with")
        for name, content in JSONS.items():
            found.append(Attack(f"records/{file}: {name}", _writing(file, content), RESUME, told))
        size = (base / file).stat().st_size
        for number in range(3):
            flip = _flipping(file, rng.randrange(size), rng.randrange(8))
            found.append(Attack(f"records/{file}: flip {number}", flip, RESUME, told))
        found += [
            _values(file, path, value, told) for path in _numbers(base / file)[:2] for value in (-1, 10**18, "x", None)
        ]
    sample = ("sample", "run", "--trust", "--prompt", "a cat", "--size", "64", "--steps", "1")
    for name, content in list(JSONS.items())[:11]:
        found.append(
            Attack(f"records/run.json: {name} (sample)", _writing("run/run.json", content), sample, ("run.json", "run"))
        )
    # A tenth of a second each; the rest differs in the file alone.
    return rng.sample(found, min(len(found), 90))


def _numbers(file: Path) -> list[str]:
    record = json.loads(file.read_text(encoding="utf-8"))
    return [key for key, value in record.items() if isinstance(value, int | float)] if isinstance(record, dict) else []


def _values(file: str, key: str, value: object, told: tuple[str, ...]) -> Attack:
    def spoil(place: Place) -> None:
        record = json.loads((place.root / file).read_text(encoding="utf-8"))
        (place.root / file).write_text(json.dumps({**record, key: value}), encoding="utf-8")

    return Attack(f"records/{file}: {key} = {value!r}", spoil, RESUME, told)


def _checkpoints(base: Path, rng: random.Random) -> list[Attack]:
    found: list[Attack] = []
    for path in sorted((base / NEWEST).rglob("*")):
        if path.is_file():
            name = str(path.relative_to(base))
            told = (path.name, f"step {TRAINED}")
            found.append(
                Attack(f"checkpoints/{path.name} is gone", lambda p, n=name: (p.root / n).unlink(), RESUME, told)
            )
            for kind, content in (
                ("empty", b""),
                ("a pickle", PICKLE),
                ("half", path.read_bytes()[: path.stat().st_size // 2]),
            ):
                found.append(Attack(f"checkpoints/{path.name}: {kind}", _writing(name, content), RESUME, told))
            for number in range(3 if path.suffix == ".safetensors" else 1):
                flip = _flipping(name, rng.randrange(path.stat().st_size), rng.randrange(8))
                found.append(Attack(f"checkpoints/{path.name}: flip {number}", flip, RESUME, told))
    return found


def _cache(base: Path, rng: random.Random) -> list[Attack]:
    """Damage of the cache and of the index: resumed, checked, and trained on anew, which reads what is there."""
    found: list[Attack] = []
    for path in sorted((base / "run" / "cache").rglob("*")):
        if not path.is_file():
            continue
        name, size = str(path.relative_to(base)), path.stat().st_size
        told = (path.name, path.stem, "cache", "index")
        changes = {
            "empty": _writing(name, b""),
            "half": _writing(name, path.read_bytes()[: size // 2]),
            "a pickle": _writing(name, PICKLE),
            **{f"flip {n}": _flipping(name, rng.randrange(size), rng.randrange(8)) for n in range(4)},
        }
        for kind, spoil in changes.items():
            found.append(Attack(f"cache/{path.parent.name}/{path.name[:12]}: {kind}", spoil, RESUME, told))
        verify = ("cache", "verify", "run.toml")
        for kind in ("half", "flip 0", "flip 1"):
            found.append(Attack(f"cache/{path.name[:12]}: {kind} (verify)", changes[kind], verify, told))
    return found


def _spoiled(good: bytes, rng: random.Random) -> dict[str, bytes]:
    """What a safetensors file may say of itself, by what is wrong with it."""
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")

    def written(changed: object, data: bytes = good[8 + length :]) -> bytes:
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + data

    def entry(**changes: object) -> bytes:
        return written({**header, first: {**header[first], **changes}})

    return {
        "empty": b"",
        "seven bytes": good[:7],
        "a lying length": struct.pack("<Q", 2**63 - 1) + good[8:],
        "a length of zero": bytes(8) + good[8:],
        "no JSON": written(b"not json"),
        "a list": written([]),
        "deep nesting": written(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        "not UTF-8": written(b'{"\xff": 1}'),
        "nothing in it": written({}, b""),
        "another dtype": entry(dtype="F128"),
        "a shape below zero": entry(shape=[-1, 4]),
        "an absurd shape": entry(shape=[2**62, 2**62]),
        "offsets outside": entry(data_offsets=[0, 10**15]),
        "offsets backwards": entry(data_offsets=[64, 0]),
        "metadata of numbers": written({**header, "__metadata__": {"a": 1}}),
        "metadata of nonsense": written(
            {**header, "__metadata__": {key: "[" * 10_000 for key in header["__metadata__"]}}
        ),
        "escapes in a name": written(
            {("\x1b]0;owned\x07" if key == first else key): value for key, value in header.items()}
        ),
        "cut short": good[:-64],
        "a pickle": PICKLE,
        "a zip": b"PK\x03\x04" + good[:200],
        **{f"flip {n}": _flip(good, rng.randrange(8 + length), rng.randrange(8)) for n in range(8)},
    }


def _headers(base: Path, rng: random.Random) -> list[Attack]:
    """Spoiled files of weights, as an adapter to look at, to convert and to start from."""
    contents = _spoiled((base / "run" / "adapter.safetensors").read_bytes(), rng)
    found: list[Attack] = []
    family = ("--plugins", "tiny.py:TinyFamily", "--set", "model.checkpoint=tiny")
    for name, content in contents.items():
        spoil, told = _writing("given.safetensors", content), ("given.safetensors",)
        for command in (
            ("inspect", "given.safetensors"),
            ("convert", "given.safetensors", "out.safetensors", "--to", "diffusers", *family),
        ):
            found.append(Attack(f"adapters/{name} ({command[0]})", spoil, ("adapter", *command), told, harmless=True))

        def start(place: Place, content: bytes = content) -> None:
            place.anew()
            (place.root / "given.safetensors").write_bytes(content)
            file = place.write_run_file()
            text = file.read_text(encoding="utf-8").replace(
                'kind = "lora"', 'kind = "lora"\nstart = "given.safetensors"'
            )
            file.write_text(text, encoding="utf-8")

        found.append(
            Attack(
                f"adapters/{name} (start)",
                start,
                names=("given.safetensors", "adapter"),
                harmless=name.startswith(("flip", "meta")),
            )
        )
    return found


def _flip(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]
