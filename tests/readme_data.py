"""What the run files of READMEs train on: pictures, clips, songs, and servers that have them where a url says so."""

from __future__ import annotations

import importlib.util
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

from s3_server import CREDENTIALS, s3_server, upload

from st.testing.media import tone, write_clip, write_sound
from st.testing.runs import write_photos
from st.testing.subjects.network import HOST

COUNT = 16
"""Samples of each data set; of pictures, eight of each shape."""

HUB = Path(__file__).parents[1] / "plugins" / "backends" / "huggingface" / "tests" / "conftest.py"
"""Where the hub is that the backend's own tests have."""


def write_data(dataset: Mapping[str, str], folder: Path, servers: ExitStack) -> dict[str, str]:
    """Make what a [[dataset]] table names, below a folder; where its server is, as the environment says it."""
    scheme, _, place = dataset["url"].rpartition(":")
    if scheme == "s3":
        bucket, _, prefix = place.removeprefix("//").partition("/")
        port = servers.enter_context(s3_server())
        upload(port, bucket, write_photos(folder / "of-the-bucket", COUNT), prefix)
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{HOST}:{port}"}
    if scheme in ("hf", "hf-datasets"):
        return servers.enter_context(_hub(folder))
    if scheme:
        with zipfile.ZipFile(folder / place, "w") as archive:
            for file in sorted(write_photos(folder / "of-the-archive", COUNT).iterdir()):
                archive.write(file, file.name)
    elif dataset.get("media", "image") == "image":
        write_photos(folder / place, COUNT)
    else:
        _write_media(folder / place, dataset["media"])
    return {}


def write_vision(folder: Path) -> Path:
    """A tiny DINOv2 with random weights, as transformers saves it."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(image_size=42, patch_size=14, **sizes)).save_pretrained(folder)
    return folder


def _write_media(folder: Path, media: str) -> None:
    for number in range(COUNT):
        if media == "video":
            write_clip(folder / f"{number}.mp4", [(number + frame) % 30 for frame in range(36)], rate=24, size=(64, 96))
        else:
            write_sound(folder / f"{number}.wav", tone(12.0, 1600, 40.0 * (number + 1), channels=2), 1600)
        (folder / f"{number}.txt").write_text(f"{media} number {number}", encoding="utf-8")


@contextmanager
def _hub(folder: Path) -> Iterator[dict[str, str]]:
    """A hub of this machine that has pictures as files, OWNER/NAME, and as a table, OWNER/TABLE."""
    photos = write_photos(folder / "of-the-hub", COUNT)
    parts = _loaded(HUB)
    hub = parts.Hub()
    hub.push({f"photos/{file.name}": file.read_bytes() for file in photos.iterdir()}, "OWNER/NAME")
    hub.push({"data/train-00000.parquet": _table(photos, folder)}, "OWNER/TABLE")
    with ThreadingHTTPServer((HOST, 0), parts.Answers) as server:
        server.hub, server.daemon_threads = hub, True  # type: ignore[attr-defined]
        hub.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {
                "HF_ENDPOINT": f"http://{HOST}:{hub.port}",
                "HF_HOME": str(folder / "hub-home"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
            }
        finally:
            server.shutdown()
            thread.join()


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loaded_{file.stem}", file)
    assert spec and spec.loader, file
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _table(photos: Path, folder: Path) -> bytes:
    """A parquet file of those pictures, and of as many that a README's filters leave out."""
    from datasets import Dataset, Features, Image, Value

    files = sorted(photos.glob("*.png"))
    texts = [{"caption": file.with_suffix(".txt").read_text(encoding="utf-8")} for file in files]
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files] * 2,
        "json": texts * 2,
        "score": [6.0] * len(files) + [5.0] * len(files),
        "collection": ["photos", "film"] * len(files),
    }
    features = Features(
        {
            "image": Image(),
            "json": {"caption": Value("string")},
            "score": Value("float32"),
            "collection": Value("string"),
        }
    )
    Dataset.from_dict(columns, features).to_parquet(folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()
