"""Attacks on data folders: pictures, clips, sounds, masks, captions, caption lists, and files that are no files."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import struct
import wave
import zlib
from collections.abc import Callable
from pathlib import Path

from attack_bench import Attack, Place

SAMPLE = "3.png"
CLIPS = 'media = "{media}"'


def attacks(base: Path, rng: random.Random) -> list[Attack]:
    """Every attack on what is trained on. base: the folder that is spoilt."""
    return [
        *_pictures(base, rng),
        *_captions(rng),
        *_lists(),
        *_masks(),
        *_odd_files(),
        *_clips_and_sounds(base, rng),
    ]


def _data(name: str, spoil: Callable[[Place], object], *, names: tuple[str, ...], dataset: str = "") -> list[Attack]:
    """The same files, met by training and by the check."""

    def prepare(place: Place) -> None:
        place.anew()
        spoil(place)
        place.write_run_file(dataset=dataset)

    check = Attack(f"{name} (check)", prepare, ("data", "check", "run.toml"), names=names, harmless=True)
    return [Attack(name, prepare, names=names), check]


def _chunk(kind: bytes, data: bytes, spoilt: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ spoilt)


def _png(width: int, height: int, *, bits: int = 8, colour: int = 2, data: bytes = b"", extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _image(mode: str, size: tuple[int, int], form: str, **options: object) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new(mode, size).save(stream, form, **options)
    return stream.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(x) print\nshowpage\n%%EOF\n"


def _pictures(base: Path, rng: random.Random) -> list[Attack]:
    good = (base / "photos" / SAMPLE).read_bytes()
    text = b"chunk\0\0" + zlib.compress(b"x" * 200_000_000, 1)
    contents = {
        "empty": b"",
        "one byte": b"\x89",
        "text": b"this is not a picture",
        "truncated": good[: len(good) // 2],
        "only a header": good[:40],
        "bomb": _png(20_000, 15_000, data=bytes(1000)),
        "no pixels": _png(0, 0),
        "billions of pixels": _png(2**31 - 1, 2**31 - 1),
        "bomb of 16-bit RGBA": _png(12_000, 12_000, bits=16, colour=6, data=bytes(1000)),
        "sliver": _image("RGB", (1, 500), "PNG"),
        "one pixel": _image("RGB", (1, 1), "PNG"),
        "very long": _image("RGB", (60_000, 2), "PNG"),
        "bad checksum": good[:20] + b"\xff\xff" + good[22:],
        "bomb of text": _png(64, 64, data=bytes(64 * 193), extra=_chunk(b"zTXt", text)),
        "PostScript": EPS,
        "PostScript with a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 32, len(EPS), 0, 0, 0, 0, 0) + EPS,
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
        "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "floats in TIFF": _image("F", (64, 64), "TIFF"),
        "TIFF that points at itself": b"II*\0\x08\0\0\0\x01\0" + bytes(12) + b"\x08\0\0\0",
        "GIF of no frames": b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0, 0, 0) + b";",
        "exif of nonsense": _image("RGB", (64, 64), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40),
        "CMYK": _image("CMYK", (64, 64), "JPEG"),
        "icon": b"\0\0\1\0\xff\xff" + b"\xff" * 64,
        "WebP of nothing": b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0\0" + b"\xff" * 10,
        "pickle": b"\x80\x04cos\nsystem\n(S'touch ran-by-a-file'\ntR.",
    }
    found = [
        attack
        for name, content in contents.items()
        for attack in _data(f"pictures/{name}", _writing(f"photos/{SAMPLE}", content), names=(SAMPLE,))
    ]
    for number in range(12):
        at, bit = rng.randrange(8, len(good)), rng.randrange(8)
        flipped = good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :]
        found += _data(f"pictures/flip {number} at {at}", _writing(f"photos/{SAMPLE}", flipped), names=(SAMPLE,))[:1]
    return found


def _writing(name: str, content: bytes | str) -> Callable[[Place], object]:
    data = content.encode() if isinstance(content, str) else content

    def write(place: Place) -> None:
        path = place.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return write


def _captions(rng: random.Random) -> list[Attack]:
    contents = {
        "not UTF-8": b"caf\xe9 \xff\xfe",
        "UTF-16": "a cat".encode("utf-16"),
        "NUL": b"a cat\0and more",
        "empty": b"",
        "blank lines": b"\n \n\t\n",
        "ten megabytes": b"word " * 2_000_000,
        "a lone surrogate": b"a \xed\xa0\x80 cat",
        "terminal escapes": b"a \x1b]0;owned\x07\x1b[2J cat",
        "random bytes": rng.randbytes(500),
    }
    found: list[Attack] = []
    for name, content in contents.items():
        found += _data(f"captions/{name}", _writing("photos/3.txt", content), names=("3.txt", "3.png", "caption"))
    # What a file of captions says is trained on as it stands: only its bytes can be wrong.
    fine = ("terminal escapes", "blank lines", "ten megabytes")
    return [
        Attack(a.name, a.spoil, a.arguments, a.names, harmless=True, check=_no_escapes)
        if a.name[9:].startswith(fine)
        else a
        for a in found
    ]


def _no_escapes(_place: Place, ended: object) -> tuple[str, str] | None:
    said = getattr(ended, "said", "")
    return ("LEAKED", "an escape of a file reached the terminal") if "\x1b" in said else None


def _lists() -> list[Attack]:
    rows = [json.dumps({"file_name": f"{number}.png", "text": f"picture {number}"}) for number in range(20)]
    contents = {
        "not JSON": "a,b,c\n",
        "cut short": "\n".join(rows)[:-5],
        "no file_name": "\n".join([*rows, '{"text": "x"}']),
        "text is a number": "\n".join([*rows[:-1], '{"file_name": "19.png", "text": 5}']),
        "text is null": "\n".join([*rows[:-1], '{"file_name": "19.png", "text": null}']),
        "a list": "[" + ",".join(rows) + "]",
        "a row of a list": "\n".join([*rows, "[1, 2]"]),
        "deep nesting": "\n".join([*rows, '{"file_name": "0.png", "text": ' + "[" * 100_000 + "]" * 100_000 + "}"]),
        "5,000 digits": "\n".join([*rows, '{"file_name": "x.png", "text": "x", "n": ' + "9" * 5000 + "}"]),
        "a lone surrogate": "\n".join([*rows[:-1], '{"file_name": "19.png", "text": "a \\ud800 cat"}']),
        "a surrogate in a name": "\n".join([*rows, '{"file_name": "\\ud800.png", "text": "a"}']),
        "a NUL in a name": "\n".join([*rows, '{"file_name": "a\\u0000.png", "text": "a"}']),
        "a path out of the folder": "\n".join([*rows, '{"file_name": "../../etc/passwd", "text": "a"}']),
        "twice": "\n".join([*rows, '{"file_name": "0.png", "text": "another"}']),
        "NaN": "\n".join([*rows, '{"file_name": "x.png", "text": NaN}']),
        "nothing": "",
        "not UTF-8": b'{"file_name": "0.png", "text": "caf\xe9"}\n',
    }
    found: list[Attack] = []
    for name, content in contents.items():
        told = ("metadata.jsonl", "caption")
        found += _data(
            f"lists/{name}", _writing("photos/metadata.jsonl", content), names=told, dataset='caption = "jsonl"'
        )
    facts = {"deep": "[" * 100_000, "number": "5", "surrogate": '{"caption": "\\ud800"}', "digits": "9" * 5000}
    for name, content in facts.items():
        spoil = _all_json(content)
        found += _data(f"lists/object: {name}", spoil, names=("3.json", "caption"), dataset='caption = "json"')
    return found


def _all_json(content: str) -> Callable[[Place], object]:
    def write(place: Place) -> None:
        for number in range(20):
            good = json.dumps({"caption": f"picture {number}"})
            (place.photos / f"{number}.json").write_text(content if number == 3 else good, encoding="utf-8")

    return write


def _masks() -> list[Attack]:
    contents = {
        "text": b"not a mask",
        "empty": b"",
        "another shape": _image("L", (200, 10), "PNG"),
        "black": _image("L", (64, 64), "PNG"),
        "bomb": _png(20_000, 15_000, colour=0, data=bytes(1000)),
        "PostScript": EPS,
    }
    found: list[Attack] = []
    for name, content in contents.items():

        def spoil(place: Place, content: bytes = content) -> None:
            from PIL import Image

            (place.root / "masks").mkdir()
            for file in sorted(place.photos.glob("*.png")):
                with Image.open(file) as picture:
                    Image.new("L", picture.size, 255).save(place.root / "masks" / file.name)
            (place.root / "masks" / SAMPLE).write_bytes(content)

        found += _data(f"masks/{name}", spoil, names=(SAMPLE, "mask"), dataset='masks = "masks"')
    return found


def _odd_files() -> list[Attack]:
    def fifo(name: str) -> Callable[[Place], object]:
        return lambda place: (_absent(place.photos / name), os.mkfifo(place.photos / name))

    def linked(name: str, to: str) -> Callable[[Place], object]:
        return lambda place: (_absent(place.photos / name), os.symlink(to, place.photos / name))

    def listening(place: Place) -> None:
        _absent(place.photos / SAMPLE)
        here = os.getcwd()
        os.chdir(place.photos)
        with socket.socket(socket.AF_UNIX) as stream:
            stream.bind(SAMPLE)
        os.chdir(here)

    def folder(name: str) -> Callable[[Place], object]:
        return lambda place: (_absent(place.photos / name), (place.photos / name).mkdir())

    def looped(place: Place) -> None:
        os.symlink("..", place.photos / "up")
        os.symlink(".", place.photos / "here")

    def renamed(to: bytes) -> Callable[[Place], object]:
        def rename(place: Place) -> None:
            inside = os.fsencode(place.photos)
            os.rename(inside + b"/3.png", inside + b"/" + to + b".png")
            os.rename(inside + b"/3.txt", inside + b"/" + to + b".txt")

        return rename

    odd: dict[str, tuple[Callable[[Place], object], tuple[str, ...]]] = {
        "FIFO as picture": (fifo(SAMPLE), (SAMPLE,)),
        "FIFO as caption": (fifo("3.txt"), ("3.txt", SAMPLE)),
        "socket": (listening, (SAMPLE,)),
        "device as picture": (linked(SAMPLE, "/dev/zero"), (SAMPLE,)),
        "device as caption": (linked("3.txt", "/dev/zero"), ("3.txt", SAMPLE)),
        "folder as picture": (folder(SAMPLE), (SAMPLE, "19 samples")),
        "folder as caption": (folder("3.txt"), ("3.txt", SAMPLE)),
        "link to nothing": (linked(SAMPLE, "nowhere.png"), (SAMPLE,)),
        "link to itself": (linked(SAMPLE, SAMPLE), (SAMPLE,)),
        "caption linked to itself": (linked("3.txt", "3.txt"), ("3.txt", SAMPLE)),
        "folders in a circle": (looped, ("photos", "twice", "link")),
    }
    found = [a for name, (spoil, told) in odd.items() for a in _data(f"odd files/{name}", spoil, names=told)]
    names = {
        "not UTF-8": b"\xff\xfe-\xe9",
        "terminal escapes": b"\x1b]0;owned\x07\x1b[31m",
        "a line break": b"a\nb",
        "the longest": b"n" * 250,
        "markup": b"<script>alert(1)<",
        "a percent and braces": b"%s{0}{env:HOME}[red]",
    }
    for name, to in names.items():
        for attack in _data(f"odd files/name: {name}", renamed(to), names=("photos",)):
            found.append(
                Attack(attack.name, attack.spoil, attack.arguments, ("photos",), harmless=True, check=_no_escapes)
            )
    return found


def _absent(path: Path) -> None:
    path.unlink(missing_ok=True)


def _clips_and_sounds(base: Path, rng: random.Random) -> list[Attack]:
    from st.testing.media import tone, write_clip, write_sound

    clip = write_clip(base.parent / "good.mp4", 12).read_bytes()
    sound = write_sound(base.parent / "good.wav", tone(1.0, 8000), 8000).read_bytes()
    sdp = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    sdp += b"m=video 50000 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    header = bytearray(sound)
    header[34:36] = b"\0\0"
    clips = {
        "empty": b"",
        "text": b"this is no clip",
        "truncated": clip[: len(clip) // 2],
        "session description": sdp,
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "list of files": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "a sound": sound,
        "huge atom": clip[:4] + b"ftyp" + b"\xff" * 64 + clip[40:],
        **{f"flip {n}": _flipped(clip, rng) for n in range(6)},
    }
    sounds = {
        "empty": b"",
        "text": b"this is no sound",
        "truncated": sound[:60],
        "no bits": bytes(header),
        "no channels": sound[:22] + b"\0\0" + sound[24:],
        "no rate": sound[:24] + bytes(4) + sound[28:],
        "a clip": clip,
        "silence": _silence(),
        **{f"flip {n}": _flipped(sound[:44], rng) + sound[44:] for n in range(6)},
    }
    found: list[Attack] = []
    for media, suffix, good, contents in (("video", "mp4", clip, clips), ("audio", "wav", sound, sounds)):
        for name, content in contents.items():

            def spoil(place: Place, good: bytes = good, content: bytes = content, suffix: str = suffix) -> None:
                for number in range(20):
                    (place.photos / f"{number}.{suffix}").write_bytes(content if number == 3 else good)

            kind = "clips" if media == "video" else "sounds"
            given = f'media = "{media}"'
            # The tiny family takes pictures alone: what it says of the media is checked, not what it trains.
            found.append(_data(f"{kind}/{name}", spoil, names=(f"3.{suffix}", media, "model"), dataset=given)[1])
    return found


def _flipped(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def _silence() -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16_000))
    return stream.getvalue()
