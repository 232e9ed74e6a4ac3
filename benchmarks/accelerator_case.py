"""One training at a real size, measured in this process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerator import Case

    from st import Batch, Run

RANK, WARM_UP = 16, 3
TEXT = """
plugins = {plugins}
output = {output}
steps = 1000000
batch = {batch}
precision = "bf16"
device = {device}
[model]
checkpoint = {checkpoint}
{model}
[adapter]
kind = "lora"
rank = {rank}
{more}
[[dataset]]
url = "nothing"
"""
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REAL: Mapping[str, tuple[str, str, Mapping[str, object]]] = {
    "flux": ("transformer", "FluxTransformer2DModel", {"guidance_embeds": True}),
    "sdxl": ("unet", "UNet2DConditionModel", SDXL),
    "wan": ("transformer", "WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
}
"""By family: folder of the denoiser, diffusers' class, and what its published size is said by."""


def measure(case: Case, steps: int, *, tiny: bool) -> dict[str, float]:
    """Seconds per step of ``st`` and of a bare loop, peak memory in bytes (0 on a CPU), FLOPs of a step."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        run, plugins = _assembled(case, Path(folder), device, tiny)
        batch = _batch(case, run, tiny)
        step = _steps(run, plugins)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = _timed(lambda number: step(batch, number), steps, device)
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        bare = _bare(run)
        alone = _timed(lambda number: bare(batch), steps, device)
        return {"seconds": seconds, "bare": alone, "memory": float(memory), "flops": _flops(case, run, batch)}


def _assembled(case: Case, folder: Path, device: torch.device, tiny: bool) -> tuple[Run, Any]:
    """A run whose denoiser has the published size, or the tiny one of the family."""
    from st.report.report import Report
    from st.settings.assembly import assemble
    from st.train.beside.requests import Requests
    from st.train.ranks.ranks import Single
    from st.train.start import load_model

    owner = {"quanto": "quanto", "torchao": "torchao", "bnb": "bitsandbytes"}
    more = f"[recompute]\nevery = {int(case.recompute)}\n[compile]\nblocks = {str(case.compiled).lower()}\n"
    names = [case.family]
    if case.quantizer:
        names.append(owner[case.quantizer.rpartition("-")[2]])
        more += f'[quantizer]\nkind = "{case.quantizer}"\n' + ("smallest = 64\n" if tiny else "")
    settings = {
        "plugins": names,
        "output": str(folder / "run"),
        "batch": case.batch,
        "device": device.type,
        "checkpoint": str(_checkpoint(case.family, folder, tiny)),
        "rank": RANK,
    }
    quoted = {name: json.dumps(value) for name, value in settings.items()}
    model = f'targets = "{case.targets}"' if case.targets else ""
    (folder / "run.toml").write_text(TEXT.format(**quoted, model=model, more=more), encoding="utf-8")
    config, plugins = assemble(folder / "run.toml", training=True)
    family: Any = plugins.family
    if not tiny:
        family.load_denoiser = lambda device, dtype: _real(case.family, device, dtype)
    loader: Any = None
    run = load_model(config, plugins, loader, Single(device), Report.silent(), requests=Requests())
    return run, plugins


def _checkpoint(name: str, folder: Path, tiny: bool) -> Path:
    """The family's tiny checkpoint; its denoiser's settings say the published size unless ``tiny``."""
    from st.plugins.catalogue import Catalogue
    from st.plugins.loading import load

    family: Any = load(Catalogue.scan().find(name, "models"))
    place = folder / "checkpoint"
    family.tiny(place)
    if not tiny:
        component, kind, settings = REAL[name]
        file = place / component / "config.json"
        file.write_text(json.dumps({"_class_name": kind, **settings}), encoding="utf-8")
    return place


def _real(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The denoiser at its published size with random weights."""
    import diffusers

    _, kind, settings = REAL[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return getattr(diffusers, kind)(**settings).eval()
    finally:
        torch.set_default_dtype(before)


def _batch(case: Case, run: Run, tiny: bool) -> Batch:
    """Noise for latents and for what the text encoders would give."""
    from st import Batch

    denoiser: Any = run.denoiser
    config, count = denoiser.config, case.batch
    height, width = (8, 8) if tiny else (case.size[0] // 8, case.size[1] // 8)
    clip = (2 if tiny else (case.frames - 1) // 4 + 1,) if case.frames > 1 else ()

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, device=run.device)

    size = torch.full((count, 2), 8 * height, device=run.device)
    extras = {"original_size": size, "crop": torch.zeros_like(size), "target_size": size}
    if case.family == "flux":
        channels, width_of_text = config.in_channels // 4, config.joint_attention_dim
        told = {"prompt_embeds": noise(512, width_of_text), "pooled_prompt_embeds": noise(config.pooled_projection_dim)}
    elif case.family == "sdxl":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        channels = config.in_channels
        told = {"prompt_embeds": noise(77, config.cross_attention_dim), "pooled_prompt_embeds": noise(pooled)}
        told["captioned"] = torch.ones(count, 1, device=run.device)
    else:
        channels, told = config.in_channels, {"prompt_embeds": noise(512, config.text_dim)}
    latents = noise(channels, *clip, height, width)
    keys = tuple(map(str, range(count)))
    return Batch(keys, tuple(range(count)), "noise", latents, told, extras=extras)


def _steps(run: Run, plugins: Any) -> Callable[[Batch, int], object]:
    """A step of a run, as the loop takes it."""
    from dataclasses import replace

    from st.train.assembly import build_learner, build_step, prepare_denoiser

    groups = prepare_denoiser(run, plugins)
    step = build_step(run, build_learner(run, groups, plugins), plugins)

    def take(batch: Batch, number: int) -> object:
        batch = replace(batch, indices=tuple(number * len(batch.keys) + place for place in range(len(batch.keys))))
        noised = step.noise(batch, run.draws(batch))
        with step.scope(noised, batch):
            step.backward(step.loss(step.predict(noised, batch), noised, batch), 1)
        run.progress.step += 1
        return step.update()

    return take


def _bare(run: Run) -> Callable[[Batch], object]:
    """The same mathematics around the same denoiser, with nothing else."""
    weights = [weight for weight in run.denoiser.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def take(batch: Batch) -> object:
        torch.autograd.backward(_loss(run, batch))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return None

    return take


def _loss(run: Run, batch: Batch) -> torch.Tensor:
    from st import Noised

    clean = batch.latents
    noise, t = torch.randn_like(clean), torch.sigmoid(torch.randn(len(clean), device=clean.device))
    noised = Noised(x=run.family.path(t).of(clean, noise), t=t, clean=clean, noise=noise)
    with torch.autocast(run.device.type, torch.bfloat16) if run.config.precision == "bf16" else nullcontext():
        prediction = run.family.predict(run.denoiser, noised, batch)
    wanted = run.family.target(run.family.path(t)).of(clean, noise)
    return (prediction.float() - wanted).square().mean()


def _timed(take: Callable[[int], object], steps: int, device: torch.device) -> float:
    """Seconds per step, the device being waited for at both ends only."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for number in range(WARM_UP):
        take(number)
    wait()
    began = perf_counter()
    for number in range(steps):
        take(WARM_UP + number)
    wait()
    return (perf_counter() - began) / steps


def _flops(case: Case, run: Run, batch: Batch) -> float:
    """Of one step, forward and backward; where blocks are computed again or compiled, 0: another row tells them."""
    if case.recompute or case.compiled:
        return 0.0
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(_loss(run, batch))
    run.denoiser.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())
