"""``st adapter``: look into adapter files, and make others of them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from st.cli.printing.say import say
from st.cli.runfile import Overrides, PluginNames
from st.errors import StError

File = Annotated[Path, typer.Argument(help="An adapter file, .safetensors.", show_default=False)]
Files = Annotated[list[Path], typer.Argument(help="Adapter files of one layout.", show_default=False)]
Out = Annotated[Path, typer.Argument(help="The file to write; a new one.", show_default=False)]


class Precision(StrEnum):
    """Number formats of adapter files."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def inspect(file: File, plugins: PluginNames = None) -> None:
    """Show what is in a file: its layers, ranks, scales, strength and history. --plugins names what knows its kinds."""
    from st.model.files.adapter_algebra import norm, open_adapter, strength
    from st.model.files.update_kinds import registered_kinds
    from st.settings.assembly import registered

    kinds = registered_kinds(registered(plugins or ()))
    with _naming(file):
        opened = open_adapter(file, kinds)
    updates, others = opened.updates.values(), opened.others.values()
    tensors = [tensor for one in updates for tensor in (one.down, one.up)]
    tensors += [tensor for other in others for name, tensor in other.tensors.items() if name != "alpha"]
    numbers = sum(one.numel() for one in [*tensors, *opened.biases.values()])
    names = f"{opened.kind} names, " if opened.kind else ""
    say(f"{file}: {names}{len(updates) + len(others)} layers, {numbers:,} weights, {_size(file)}")
    if others:
        say(f"kind       {_counted([*('lora' for _ in updates), *(other.kind for other in others)])}")
    say(f"precision  {_counted(str(one.dtype).removeprefix('torch.') for one in tensors)}")
    ranks = [rank for rank in (*(one.rank for one in updates), *(one.how.rank(one.tensors) for one in others)) if rank]
    say(f"rank       {_counted(map(str, ranks)) if ranks else 'none'}")
    if updates:
        say(f"scale      {_counted(f'{one.alpha / one.rank:g}' for one in updates)}")
    if opened.biases:
        say(f"biases     {len(opened.biases)} differences, such as {next(iter(opened.biases))}")
    sizes = [(norm(one), stem) for stem, one in opened.updates.items()]
    sizes += [(size, stem) for stem, other in opened.others.items() if (size := strength(other)) is not None]
    if sizes:
        strongest = sorted(sizes, reverse=True)[:5]
        say("strongest  " + "\n           ".join(f"{size:.4g}  {stem}" for size, stem in strongest))
    for key, value in sorted(opened.metadata.items()):
        say(f"{key} = {value if len(value) <= 100 else f'{value[:100]}...'}".replace("\n", " "))


def convert(
    file: File,
    out: Out,
    to: Annotated[str, typer.Option("--to", help="The layout to write, as adapter.format names it.")],
    plugins: PluginNames = None,
    overrides: Overrides = None,
) -> None:
    """Write a file in another layout of its family: --plugins names that, --set model.checkpoint=DIR what it needs."""
    from st.model.adapters.adapter_start import read_known
    from st.model.files.adapter_file import read_adapter_file, write_layout
    from st.model.files.formats import by_layer
    from st.model.files.peft_layout import METADATA, TRAINED
    from st.model.pipelines.pipeline_family import PipelineFamily
    from st.settings.assembly import assemble

    _refuse_existing(out)
    _, active = assemble(None, plugins or (), overrides or ())
    family = active.family
    formats = family.adapter_formats()
    if to not in formats:
        raise StError(f"--to {to}: this family writes {', '.join(formats)}.")
    tensors, metadata = read_adapter_file(file)
    modules = family.module_paths if isinstance(family, PipelineFamily) else list[str]
    with _naming(file):
        adapter = read_known(tensors, metadata, formats.values(), modules)
    history = {key: value for key, value in metadata.items() if key not in (METADATA, TRAINED)}
    write_layout(out, formats[to], adapter, history)
    before, after = by_layer(adapter[0]), by_layer(formats[to].from_file(*read_adapter_file(out))[0])
    gone = [path for path, parts in before.items() if "diff_b" in parts and "diff_b" not in after.get(path, {})]
    say(f"wrote {out}: {len(before)} layers")
    if gone:
        say(f"{len(gone)} differences of biases have no place in {to} and are left out, such as {gone[0]}")


def merge(
    files: Files,
    out: Out,
    weights: Annotated[
        str, typer.Option(help="How much of each file, comma-separated, as in --weights 1,0.5; 1 each where not said.")
    ] = "",
    plugins: PluginNames = None,
) -> None:
    """Add adapters up, exactly: the ranks of a layer add up too. What is not LoRA becomes whole differences."""
    from st.model.files import adapter_algebra as algebra
    from st.model.files.update_kinds import registered_kinds
    from st.settings.assembly import registered

    _refuse_existing(out)
    numbers = _numbers(weights) if weights else [1.0] * len(files)
    if len(numbers) != len(files):
        raise StError(f"--weights {weights}: {len(numbers)} weights for {len(files)} files.")
    kinds = registered_kinds(registered(plugins or ()))
    opened = [algebra.open_adapter(file, kinds) for file in files]
    updates, whole = algebra.merge(opened, numbers), algebra.merge_whole(opened, numbers)
    algebra.write_adapter(opened[0], out, updates, whole)
    parts = [f"{len(updates)} layers, rank {_counted(str(one.rank) for one in updates.values())}"] if updates else []
    parts += [f"{len(whole)} whole differences"] if whole else []
    say(f"wrote {out}: {'; '.join(parts)}")


def resize(
    file: File, out: Out, rank: Annotated[int, typer.Option(min=1, help="The largest rank that is left.")]
) -> None:
    """Bring an adapter to a lower rank, by the singular values of each layer."""
    from st.model.files import adapter_algebra as algebra

    _refuse_existing(out)
    opened = algebra.open_adapter(file).plain()
    resized = {stem: algebra.resize(one, rank) for stem, one in opened.updates.items()}
    algebra.write_adapter(opened, out, {stem: one for stem, (one, _) in resized.items()})
    kept = [share for _, share in resized.values()]
    say(
        f"wrote {out}: {len(kept)} layers keep {sum(kept) / len(kept):.1%} of their strength, {min(kept):.1%} the least"
    )


def extract(
    base: Annotated[Path, typer.Argument(help="The folder that was trained from.", show_default=False)],
    trained: Annotated[Path, typer.Argument(help="The folder that was trained.", show_default=False)],
    rank: Annotated[int | None, typer.Option(min=1, help="The largest rank of a layer.", show_default=False)] = None,
    energy: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of each layer's squared change to keep, by the least rank.")
    ] = 1.0,
    output: Annotated[Path, typer.Option(help="The file to write; a new one.")] = Path("adapter.safetensors"),
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="Layout to write; several times for several.")
    ] = None,
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="Layers, by the end of their path. The family's if not said.")
    ] = None,
    dtype: Annotated[Precision, typer.Option(help="Precision of the file.")] = Precision.FP32,
    plugins: PluginNames = None,
    overrides: Overrides = None,
) -> None:
    """Write what a fully trained checkpoint learnt as an adapter: --plugins names the family, two folders the weights.

    Both are folders in diffusers' layout: whole models, or denoisers alone.
    """
    from st.cli.extract import Wanted, extract_adapter

    if rank is None and energy == 1:
        raise StError("how large shall it be?", fix="Give --rank 32, or --energy 0.9, or so.")
    _refuse_existing(output)
    wanted = Wanted(rank, energy, output, tuple(formats or ()), tuple(targets or ()), dtype.value)
    extract_adapter(base, trained, wanted, plugins or (), overrides or ())


def diff(
    first: Annotated[Path, typer.Argument(show_default=False)],
    second: Annotated[Path, typer.Argument(show_default=False)],
) -> None:
    """Show where two adapters of one layout differ: the norm of the difference over that of the larger update."""
    from st.model.files import adapter_algebra as algebra

    one, other = (algebra.open_adapter(file).plain() for file in (first, second))
    both = algebra.comparable(one, other)
    apart = sorted(((algebra.distance(one.updates[stem], other.updates[stem]), stem) for stem in both), reverse=True)
    for file, left in ((first, one.updates.keys() - set(both)), (second, other.updates.keys() - set(both))):
        for stem in sorted(left):
            say(f"only in {file}: {stem}")
    same = sum(size <= 1e-6 for size, _ in apart)
    for size, stem in apart[: len(apart) - same]:
        say(f"{size:9.4g}  {stem}")
    say(f"{same} of {len(both)} layers that both have are the same")


def _refuse_existing(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise StError(f"{str(out)!r} is not named .safetensors.", fix="Name the file to write last.")
    if out.exists():
        raise StError(f"{str(out)!r} exists already.", fix="Name another file.")


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Inside, errors say which file they are about."""
    try:
        yield
    except StError as error:
        if file.name not in str(error):
            error.what = f"{str(file)!r}: {error.what}"
        raise


def _numbers(weights: str) -> list[float]:
    try:
        return [float(one) for one in weights.split(",")]
    except ValueError:
        raise StError(f"--weights {weights}: these are not numbers.", fix="Write --weights 1,0.5, or so.") from None


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 2**20:.1f} MiB"


def _counted(values: Iterable[str]) -> str:
    """Each value and how often: "16 (190), 4 (2)"; the value alone where there is one."""
    counts = Counter(values).most_common()
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{value} ({count})" for value, count in counts)


COMMANDS = (inspect, convert, merge, resize, extract, diff)
