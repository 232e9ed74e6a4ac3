"""The loader: training fed by it over training fed by tensors in memory, and batches alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from figure import Bar, Figure, median
from prepared import Prepared
from processes import once

if TYPE_CHECKING:
    from torch import Tensor

    from st.data.feed.loader import Loader

    Sources = tuple[Iterator[dict[str, Tensor]], Iterator[dict[str, Tensor]]]

Answer = list[tuple[float, float]]
"""CPU seconds for each step or batch, per turn: (from memory, by the loader)."""

GROUP = "feeding"
BATCH = 8


def measure(scratch: Path, quick: bool, made: Prepared) -> list[Figure]:
    file, log = made.run_file("loader", batch=BATCH), scratch / "log.txt"
    turns, steps = (2, 2) if quick else (10, 6)
    inputs = [str(file), str(made.cached), str(made.checkpoint(made.size)), turns, steps]
    trained, drawn = once((GROUP, "both", inputs), log)
    return [_share(trained), _alone(drawn)]


def _share(answer: Answer) -> Figure:
    memory, loader = (1 / median([pair[place] for pair in answer]) for place in (0, 1))
    share = 100 * median([memory / loader for memory, loader in answer])
    what = f"steps per second fed by the loader, of those fed by tensors in memory, batch {BATCH}"
    detail = "the same bare loop of full training in one process, in turn; the loader's thread counts"
    return Figure(GROUP, what, share, "%", Bar(95.0, at_most=False), f"{memory:.2f} / s", f"{loader:.2f} / s", detail)


def _alone(answer: Answer) -> Figure:
    memory, loader = (1 / median([pair[place] for pair in answer]) for place in (0, 1))
    what = f"cached batches per second, nothing trained, batch {BATCH}"
    detail = (
        "the floor: rows picked out of three tensors; the loader draws captions, looks up entries and names samples"
    )
    return Figure(GROUP, what, loader, "/ s", None, f"{memory:,.0f} / s", f"{loader:,.0f} / s", detail)


def _loader(run_file: str) -> Loader:
    """The loader of a run file, its cache filled."""
    import torch

    from st.report.report import Report
    from st.settings.assembly import assemble
    from st.train.ranks.ranks import Single
    from st.train.stages import build_loader, encode, read_data

    config, plugins = assemble(Path(run_file), training=True)
    report, ranks = Report.silent(), Single(torch.device("cpu"))
    encoded = encode(config, plugins, read_data(config, plugins, report), ranks, report)
    return build_loader(config, plugins.family, encoded, ranks, report)


def _loaded(loader: Loader) -> Iterator[dict[str, Tensor]]:
    for batch in loader:
        yield {"latents": batch.latents, **batch.conditions}


def _from_memory(cached: str) -> Iterator[dict[str, Tensor]]:
    from raw_loop import rows
    from safetensors.torch import load_file

    data = load_file(cached)
    for picked in rows(len(data["latents"]), BATCH):
        yield {name: tensor[picked] for name, tensor in data.items()}


def both(run_file: str, cached: str, checkpoint: str, turns: int, steps: int) -> tuple[Answer, Answer]:
    """Steps of the bare loop with batches of either source; and batches alone, thrown away."""
    import torch
    from raw_loop import Raw, load_denoiser, loss_of

    raw = Raw(cached, checkpoint, batch=BATCH)
    denoiser, weights = load_denoiser(raw)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def step(batch: dict[str, Tensor]) -> None:
        torch.autograd.backward(loss_of(denoiser, raw, batch, 0))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    loader = _loader(run_file)
    sources = (_from_memory(cached), _loaded(loader))
    found = _in_turn(sources, step, turns, steps), _in_turn(sources, lambda batch: None, turns, 10 * steps)
    loader.close()
    return found


def _in_turn(sources: Sources, use: Callable[[dict[str, Tensor]], None], turns: int, steps: int) -> Answer:
    """The first turn is warm-up: it fills the loader's queue, which is as full again at the end of each later one."""
    found: Answer = []
    for turn in range(turns + 1):
        spent = [0.0, 0.0]
        for place in (0, 1) if turn % 2 else (1, 0):
            began = process_time()
            for _ in range(steps):
                use(next(sources[place]))
            spent[place] = (process_time() - began) / steps
        found.append((spent[0], spent[1]))
    return found[1:]


CASES: dict[str, Callable[..., tuple[Answer, Answer]]] = {"both": both}
