"""Random numbers keyed by seed and sample, over one call of torch's generator for the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import process_time

from figure import Bar, Figure, median
from prepared import Prepared
from processes import once

Answer = dict[str, list[float]]
GROUP = "draws"
BATCH, SHAPE = 8, (192, 8, 8)
"""Latents of the pocket family at 64 pixels."""


def measure(scratch: Path, quick: bool, made: Prepared) -> list[Figure]:
    answer = once(
        (GROUP, "both", [str(made.cached), str(made.checkpoint(made.size)), *((20, 1) if quick else (200, 8))]),
        scratch / "log.txt",
    )
    floor, ours, step = (1e6 * median(answer[name]) for name in ("plain", "keyed", "step"))
    share = 100 * (ours - floor) / step
    what = f"noise and times keyed by seed and sample, of a training step, batch {BATCH}"
    detail = f"beyond torch.randn for the whole batch; a step takes {step / 1e3:.0f} ms"
    return [Figure(GROUP, what, share, "%", Bar(1.0), f"{floor:,.0f} us", f"{ours:,.0f} us", detail)]


def both(cached: str, checkpoint: str, draws: int, steps: int) -> Answer:
    """CPU seconds of plain draws, of keyed draws and of a training step around them."""
    import torch
    from raw_loop import Raw, load_denoiser, loss_of
    from safetensors.torch import load_file

    from st.diffusion.densities import LogitNormal, LogitNormalOptions
    from st.randomness import Draws

    density, like = LogitNormal(LogitNormalOptions()), torch.empty(BATCH, *SHAPE)
    device = torch.device("cpu")

    def plain(number: int) -> None:
        torch.randn_like(like)
        torch.sigmoid(torch.randn(BATCH))

    def keyed(number: int) -> None:
        one = Draws(1, tuple(range(number * BATCH, (number + 1) * BATCH)), device)
        one.normal("noise", like)
        density(one)

    raw = Raw(cached, checkpoint, batch=BATCH)
    denoiser, weights = load_denoiser(raw)
    optimizer = torch.optim.AdamW(weights, fused=True)
    batch = {name: tensor[:BATCH] for name, tensor in load_file(cached).items()}

    def step(number: int) -> None:
        torch.autograd.backward(loss_of(denoiser, raw, batch, 0))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {
        "plain": [_each(plain, draws) for _ in range(5)],
        "keyed": [_each(keyed, draws) for _ in range(5)],
        "step": [_each(step, 1) for _ in range(steps + 1)][1:],
    }


def _each(do: Callable[[int], None], count: int) -> float:
    began = process_time()
    for number in range(count):
        do(number)
    return (process_time() - began) / count


CASES: dict[str, Callable[..., Answer]] = {"both": both}
