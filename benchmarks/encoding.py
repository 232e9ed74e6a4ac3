"""Filling caches: per caption and per picture, over the same networks called in the same batches and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from figure import Bar, Figure, median
from pictures import caption, write_photos
from processes import Case, rounds
from settings import write_run_file

if TYPE_CHECKING:
    from st.data.cache import Cache, CacheOptions
    from st.data.encoder import Encoder, LatentCodec
    from st.data.prepare import PreparedSet

Answer = dict[str, float]
GROUP = "encoding"
SIZE, BATCH = 128, 8
BAR = Bar(1.2)


def measure(scratch: Path, quick: bool) -> list[Figure]:
    pictures, captions, turns = (16, 16, 1) if quick else (192, 512, 3)
    photos = write_photos(scratch / "photos", pictures, (3 * SIZE, 3 * SIZE))
    file = write_run_file(scratch / "run", photos, {"resolution": SIZE})
    cases: dict[str, Case] = {
        "bare pictures": ("encoding", "bare pictures", [str(photos)]),
        "pictures": ("encoding", "pictures", [str(file)]),
        "bare captions": ("encoding", "bare captions", [captions]),
        "captions": ("encoding", "captions", [captions, str(scratch / "texts")]),
    }
    found = rounds(cases, turns, scratch / "log.txt")
    shutil.rmtree(photos)
    return [
        _figure(found, "pictures", f"fill the cache with latents, per picture of {SIZE} px", "read, decode, resize, encode"),
        _figure(found, "captions", "fill the cache with text embeddings, per caption", "tokenize, encode"),
    ]


def _figure(found: dict[str, list[Answer]], name: str, what: str, work: str) -> Figure:
    floor, ours = ([one["milliseconds"] for one in found[case]] for case in (f"bare {name}", name))
    value = median([one / other for one, other in zip(ours, floor, strict=True)])
    network = median([one["network"] for one in found[f"bare {name}"]])
    detail = f"the floor: {work}, in batches of {BATCH}; {network:.2f} ms of it in the network"
    return Figure(GROUP, what, value, "x", BAR, f"{median(floor):.2f} ms", f"{median(ours):.2f} ms", detail)


def bare_pictures(photos: str) -> Answer:
    """Decode, encode and keep, eight pictures at a time."""
    import numpy as np
    import torch
    from networks import autoencoder
    from PIL import Image

    network, files = autoencoder(), sorted(Path(photos).glob("*.jpg"))

    def decoded(file: Path) -> torch.Tensor:
        picture = Image.open(file)
        picture.draft(None, (SIZE, SIZE))
        array = np.array(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
        return torch.from_numpy(array).permute(2, 0, 1).float().div_(255)

    def encoded(pixels: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = network.encode(pixels * 2 - 1).latent_dist.mode()
        return latents

    encoded(torch.stack([decoded(file) for file in files[:BATCH]]))
    began, inside = process_time(), 0.0
    kept = []
    for start in range(0, len(files), BATCH):
        pixels = torch.stack([decoded(file) for file in files[start : start + BATCH]])
        entered = process_time()
        kept.append(encoded(pixels))
        inside += process_time() - entered
    return _per(len(files), process_time() - began, inside)


def bare_captions(count: int) -> Answer:
    """Tokenize, encode and keep, eight captions of about one length at a time."""
    from networks import language_model, tokens

    network = language_model()
    captions = sorted((caption(number) for number in range(count)), key=len, reverse=True)
    ids, mask, _ = tokens(captions[:BATCH])
    network(input_ids=ids, attention_mask=mask)
    began, inside = process_time(), 0.0
    kept = []
    for start in range(0, count, BATCH):
        ids, mask, lengths = tokens(captions[start : start + BATCH])
        entered = process_time()
        states = network(input_ids=ids, attention_mask=mask).last_hidden_state
        inside += process_time() - entered
        kept += [row[:length] for row, length in zip(states, lengths, strict=True)]
    return _per(count, process_time() - began, inside)


def filled_pictures(run_file: str) -> Answer:
    """``fill`` with the pictures of a run file, into an empty cache."""
    from networks import Autoencoder
    from st.assembly import assemble
    from st.report.report import Report
    from st.train.stages import read_data

    config, plugins = assemble(Path(run_file), training=True)
    shutil.rmtree(config.cache.url, ignore_errors=True)
    sets = read_data(config, plugins, Report.silent())
    return _filled(sets, Autoencoder(), (), config.cache, len(sets[0].index))


def filled_captions(count: int, folder: str) -> Answer:
    """``fill`` with captions, into an empty cache."""
    from networks import Autoencoder, LanguageModel
    from st.data.cache import CacheOptions

    shutil.rmtree(folder, ignore_errors=True)
    return _filled((), Autoencoder(), (LanguageModel(),), CacheOptions(url=folder), count)


def _filled(
    sets: Sequence[PreparedSet], codec: LatentCodec, encoders: Sequence[Encoder], options: CacheOptions, count: int
) -> Answer:
    import torch
    from st.data.cache import Cache
    from st.data.encoding import fill
    from st.data.store import Store
    from st.report.report import Report
    from st.train.ranks import Single

    device = torch.device("cpu")
    _warm_up(codec, encoders, device)
    cache: Cache = Cache(Store.at(options.url))
    prompts = () if sets else [caption(number) for number in range(count)]
    before, began = len(cache), process_time()
    fill(
        sets,
        codec,
        encoders,
        cache,
        device=device,
        ranks=Single(device),
        report=Report.silent(),
        options=options,
        prompts=prompts,
    )
    spent = process_time() - began
    # The empty caption is always encoded as well.
    assert len(cache) - before == count + (not sets), (len(cache), before, count)
    return _per(count, spent, 0.0)


def _warm_up(codec: LatentCodec, encoders: Sequence[Encoder], device: object) -> None:
    import torch
    from st import Input

    assert isinstance(device, torch.device)
    with torch.no_grad(), codec.open(device) as encode:
        encode([Input("", pixels=torch.zeros(3, SIZE, SIZE))] * BATCH)
    for encoder in encoders:
        with torch.no_grad(), encoder.open(device) as encode:
            encode([Input("", caption=caption(number)) for number in range(BATCH)])


def _per(count: int, seconds: float, inside: float) -> Answer:
    return {"milliseconds": 1e3 * seconds / count, "network": 1e3 * inside / count}


CASES: dict[str, Callable[..., Answer]] = {
    "bare pictures": bare_pictures,
    "bare captions": bare_captions,
    "pictures": filled_pictures,
    "captions": filled_captions,
}
