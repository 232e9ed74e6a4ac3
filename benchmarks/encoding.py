"""Filling caches: per caption and per picture, over the same networks called in the same batches and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

from figure import Bar, Figure, median
from pictures import caption, write_photos
from processes import once
from settings import write_run_file

if TYPE_CHECKING:
    from torch import Tensor

    from st.data.cache.cache import CacheOptions
    from st.data.encoder import Encoder, LatentCodec
    from st.data.sets.prepare import PreparedSet

Answer = list[dict[str, float]]
"""Per round, milliseconds for each thing that is encoded: ``floor``, ``network`` (a part of it) and ``ours``."""

GROUP = "encoding"
SIZE, BATCH = 128, 8
BAR = Bar(1.2)


def measure(scratch: Path, quick: bool) -> list[Figure]:
    pictures, captions, turns = (16, 16, 1) if quick else (96, 256, 4)
    photos = write_photos(scratch / "photos", pictures, (3 * SIZE, 3 * SIZE))
    file = write_run_file(scratch / "run", photos, {"resolution": SIZE})
    inputs = [str(file), str(photos), str(scratch / "texts"), captions, turns]
    by_picture, by_caption = once((GROUP, "both", inputs), scratch / "log.txt")
    shutil.rmtree(photos)
    return [
        _figure(by_picture, f"fill the cache with latents, per picture of {SIZE} px", "read, decode, resize, encode"),
        _figure(by_caption, "fill the cache with text embeddings, per caption", "tokenize, encode"),
    ]


def _figure(answer: Answer, what: str, work: str) -> Figure:
    floor, network, ours = (median([one[name] for one in answer]) for name in ("floor", "network", "ours"))
    value = median([one["ours"] / one["floor"] for one in answer])
    detail = f"the floor: {work}, in batches of {BATCH}; {network:.2f} ms of it in the network"
    return Figure(GROUP, what, value, "x", BAR, f"{floor:.2f} ms", f"{ours:.2f} ms", detail)


def both(run_file: str, photos: str, texts: str, count: int, turns: int) -> tuple[Answer, Answer]:
    """In one process, since most of its time goes into imports."""
    return pictures(run_file, photos, turns), captions(texts, count, turns)


def pictures(run_file: str, photos: str, turns: int) -> Answer:
    """Encode the pictures of a run file barely and by ``fill``, in turn."""
    from networks import Autoencoder

    from st.report.report import Report
    from st.settings.assembly import assemble
    from st.train.stages import read_data

    config, plugins = assemble(Path(run_file), training=True)
    sets = read_data(config, plugins, Report.silent())
    files, codec = sorted(Path(photos).glob("*.jpg")), Autoencoder()

    def calls() -> Iterator[Callable[[], object]]:
        for start in range(0, len(files), BATCH):
            pixels = decoded(files[start : start + BATCH])
            yield partial(_latents, codec.network, pixels)

    def ours(options: CacheOptions) -> float:
        return filled(sets, codec, (), options, ())

    return in_turn(calls, ours, config.cache, len(files), turns)


def captions(folder: str, count: int, turns: int) -> Answer:
    """Encode captions barely, neighbours of about one length, and by ``fill``, in turn."""
    from networks import Autoencoder, LanguageModel, tokens

    from st.data.cache.cache import CacheOptions

    codec, encoder = Autoencoder(), LanguageModel()
    texts = sorted((caption(number) for number in range(count)), key=len, reverse=True)

    def calls() -> Iterator[Callable[[], object]]:
        for start in range(0, count, BATCH):
            ids, mask, _ = tokens(texts[start : start + BATCH])
            yield partial(encoder.network, input_ids=ids, attention_mask=mask)

    def ours(options: CacheOptions) -> float:
        return filled((), codec, (encoder,), options, texts)

    return in_turn(calls, ours, CacheOptions.model_validate({"url": folder}), count, turns)


def _latents(network: Any, pixels: Tensor) -> Tensor:
    latents: Tensor = network.encode(pixels * 2 - 1).latent_dist.mode()
    return latents


def decoded(files: Sequence[Path]) -> Tensor:
    """Pictures as a bare program reads them, (B, 3, SIZE, SIZE) in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image

    def one(file: Path) -> torch.Tensor:
        picture = Image.open(file)
        picture.draft(None, (SIZE, SIZE))
        array = np.array(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
        return torch.from_numpy(array).permute(2, 0, 1).float().div_(255)

    return torch.stack([one(file) for file in files])


def in_turn(
    calls: Callable[[], Iterator[Callable[[], object]]],
    ours: Callable[[CacheOptions], float],
    options: CacheOptions,
    count: int,
    turns: int,
) -> Answer:
    """The first turn is warm-up. calls: prepares each batch and yields the network's call. ours: CPU seconds."""
    import torch

    answer = []
    for turn in range(turns + 1):
        with torch.no_grad():
            floor, network = _bare(calls())
        url = f"{options.url}-{turn}"
        spent = ours(options.model_copy(update={"url": url}))
        shutil.rmtree(url)
        seconds = {"floor": floor, "network": network, "ours": spent}
        answer.append({name: 1e3 * value / count for name, value in seconds.items()})
    return answer[1:]


def _bare(calls: Iterator[Callable[[], object]]) -> tuple[float, float]:
    """CPU seconds of preparing and calling, and those inside the calls. What networks give is kept."""
    began, inside, kept = process_time(), 0.0, []
    for call in calls:
        entered = process_time()
        kept.append(call())
        inside += process_time() - entered
    return process_time() - began, inside


def filled(
    sets: Sequence[PreparedSet],
    codec: LatentCodec,
    encoders: Sequence[Encoder],
    options: CacheOptions,
    prompts: Sequence[str],
) -> float:
    """CPU seconds of filling an empty cache."""
    import torch

    from st.data.cache.cache import Cache
    from st.data.cache.encoding import fill
    from st.data.sets.words import Words
    from st.data.source.index import Index
    from st.data.store.store import Store
    from st.report.report import Report
    from st.train.ranks.ranks import Single

    device = torch.device("cpu")
    # Digests of files are known after a first round; a first start knows none.
    fresh = [replace(one, index=Index(one.index.table, one.index.recipe, one.index.fits)) for one in sets]
    cache = Cache(Store.at(options.url))
    began = process_time()
    fill(
        fresh,
        codec,
        encoders,
        cache,
        device=device,
        ranks=Single(device),
        report=Report.silent(),
        options=options,
        prompts=[Words(text) for text in prompts],
    )
    spent = process_time() - began
    assert len(cache) == sum(len(one.index) for one in sets) + len(prompts) + len(encoders)
    return spent


CASES: dict[str, Callable[..., tuple[Answer, Answer]]] = {"both": both}
