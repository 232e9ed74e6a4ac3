"""``st adapter extract``: two checkpoints of a family, and the adapter that lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from st.cli.printing.say import say
from st.errors import StError
from st.model.adapters.architecture import lora_facts
from st.model.adapters.extraction import Extracted, WeightFiles, denoiser_folder, extract
from st.model.files.adapter_file import write_layout
from st.settings.assembly import assemble

if TYPE_CHECKING:
    from st.model.pipelines.pipeline_family import PipelineFamily


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be written. formats: layouts, the family's first where there are none; likewise targets."""

    rank: int | None
    energy: float
    output: Path
    formats: Sequence[str]
    targets: Sequence[str]
    dtype: str


def extract_adapter(
    base: Path, trained: Path, wanted: Wanted, plugins: Sequence[str], overrides: Sequence[str]
) -> None:
    """Extract, tell of each layer, and write one file for each format. Raises StError."""
    family = _family(base, plugins, overrides)
    formats = family.adapter_formats()
    for name in wanted.formats:
        if name not in formats:
            raise StError(f"--format {name}: this family writes {', '.join(formats)}.")
    names = wanted.formats or [next(iter(formats))]
    paths = [
        wanted.output if name == names[0] else wanted.output.with_stem(f"{wanted.output.stem}-{name}") for name in names
    ]
    if there := [path for path in paths if path.exists()]:
        raise StError(f"{str(there[0])!r} exists already.", fix="Name another file.")
    variant = family.options.variant
    with (
        WeightFiles(denoiser_folder(base, family.denoiser), variant) as before,
        WeightFiles(denoiser_folder(trained, family.denoiser), variant) as after,
    ):
        targets = wanted.targets or family.adapter_targets()
        found = extract(before, after, targets, rank=wanted.rank, energy=wanted.energy, done=_told)
    typer.echo("", err=True)
    _show(found)
    state = {name: tensor.to(_dtype(wanted.dtype)) for name, tensor in found.state.items()}
    history = {
        **lora_facts(family, found.shape),
        "ss_training_comment": f"difference of two checkpoints of {before.kind}",
    }
    failed: list[StError] = []
    for name, path in zip(names, paths, strict=True):
        try:
            write_layout(path, formats[name], (state, found.shape), history)
            say(f"wrote {path}: {len(found.layers)} layers, {name}")
        except StError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _family(base: Path, plugins: Sequence[str], overrides: Sequence[str]) -> PipelineFamily[Any]:
    """The family, with the base as its model: its formats may have to know the layers."""
    from st.model.pipelines.pipeline_family import PipelineFamily

    whole = (base / "model_index.json").is_file()
    where = [f"model.checkpoint={base}"] if whole else [f"model.denoiser={base}", "model.denoiser_subfolder="]
    _, active = assemble(None, plugins, [*where, *overrides])
    family = active.family
    if not isinstance(family, PipelineFamily):
        raise StError(
            f"{type(family).__name__} keeps its checkpoints in a layout of its own, which is not read here",
            why="folders in diffusers' layout are",
        )
    return family


def _show(found: Extracted) -> None:
    say("  error  rank  layer")
    for layer in found.layers:
        say(f"{layer.error:7.2%} {layer.rank:5}  {layer.path}")
    errors = [layer.error for layer in found.layers]
    say(f"{len(errors)} layers: error {sum(errors) / len(errors):.2%} on average, {max(errors):.2%} at most")
    if found.unchanged:
        say(f"{found.unchanged} layers are the same in both and are left out")
    if found.outside:
        some = ", ".join(found.outside[:3])
        say(f"{len(found.outside)} other weights differ and are left out, such as {some}; --target names layers")


def _told(number: int, count: int) -> None:
    typer.echo(f"\rlayer {number + 1} of {count}", nl=False, err=True)


def _dtype(name: str) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
