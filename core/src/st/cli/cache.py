"""``st cache``: what is in a cache, whether it is whole, and why an entry is or is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from st.cli.printing.say import say
from st.cli.runfile import Overrides, PluginNames, RunFile

if TYPE_CHECKING:
    from st.data.cache.cache import Cache


def du(file: RunFile, plugins: PluginNames = None, overrides: Overrides = None) -> None:
    """Show how much each encoder's outputs take."""
    from st.cli.printing.table import print_table
    from st.data.cache.pruning import usage

    cache = _opened(*_assembled(file, plugins, overrides))
    rows = [
        (encoder, fingerprint[:40], f"{entries}", _megabytes(size_bytes))
        for (encoder, fingerprint), (entries, size_bytes) in sorted(usage(cache).items())
    ]
    print_table(("encoder", "fingerprint", "entries", "MB"), rows, f"Cache {cache.store}")


def verify(file: RunFile, plugins: PluginNames = None, overrides: Overrides = None) -> None:
    """Read every entry and every table and compare checksums. Ends with 1 where something is damaged.

    A run encodes damaged entries again by itself; ``st cache prune`` takes them out.
    """
    from st.data.sets.memory import damaged_tables

    cache = _opened(*_assembled(file, plugins, overrides))
    entries, damaged = 0, len(cache.damaged_indexes)
    for _, found, spoiled in cache.verify():
        entries, damaged = entries + found, damaged + spoiled
    for key, spoiled in damaged_tables(cache.store):
        if spoiled:
            damaged += 1
            say(f"cache: {key!r} is damaged; the next run makes it again", err=True)
    say(f"{entries} entries, {damaged} damaged: {cache.store}")
    raise typer.Exit(1 if damaged else 0)


def prune(
    file: RunFile,
    plugins: PluginNames = None,
    overrides: Overrides = None,
    unused: Annotated[bool, typer.Option("--unused", help="Also what this run file's data sets do not need.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")] = False,
) -> None:
    """Take out entries that are damaged or stored twice. No run may be using the cache meanwhile."""
    import time

    from st.data.cache.pruning import prune as take_out

    config, active = _assembled(file, plugins, overrides)
    cache = _opened(config, active)
    wanted = _needed(config, active, cache) if unused else None
    pruned = take_out(cache, wanted.__contains__ if wanted is not None else None, time.time(), dry_run)
    for reason, count in sorted(pruned.entries.items()):
        say(f"{count} {reason}")
    verb = "would be freed" if dry_run else "freed"
    say(f"{_megabytes(pruned.size_bytes)} MB {verb}: {cache.store}")


def explain(
    file: RunFile,
    sample: Annotated[str, typer.Argument(help="A picture, by its path or its key in the data set.")],
    plugins: PluginNames = None,
    overrides: Overrides = None,
) -> None:
    """Say for each encoder whether a sample's entry is there, and what has changed where it is not."""
    from st.cli.printing.table import print_table
    from st.data.cache.explanation import explain as reasons
    from st.errors import StError
    from st.report.report import Report
    from st.train.sources import origins
    from st.train.stages import read_data

    config, active = _assembled(file, plugins, overrides)
    cache = _opened(config, active)
    made_of = origins(config, active)
    rows = []
    with config.redaction.errors():
        sets = read_data(config, active, Report.silent())
    for one in sets:
        for row in range(len(one.index)):
            key = one.index.key(row)
            if sample == key or sample.endswith(f"/{key}"):
                rows += [
                    (one.name, found.encoder, found.reads, found.state) for found in reasons(made_of, cache, one, row)
                ]
    if not rows:
        raise StError(
            f"no data set of {file} has a sample {sample!r}", fix="`st data check` lists what was left out and why"
        )
    print_table(("data set", "encoder", "reads", "entry"), rows)


def _assembled(file: Any, plugins: PluginNames, overrides: Overrides) -> tuple[Any, Any]:
    from st.settings.assembly import assemble

    return assemble(file, plugins or (), overrides or ())


def _opened(config: Any, active: Any) -> Cache:
    from st.data.cache.cache import Cache
    from st.train.stages import open_cache_store

    return Cache(open_cache_store(config), note=lambda text: say(text, err=True))


def _needed(config: Any, active: Any, cache: Cache) -> set[str]:
    """The keys of every entry that this run file's samples, captions and validation prompts need."""
    from st.data.cache.pruning import needed_keys
    from st.report.rendering.asked import prompts_to_encode
    from st.report.report import Report
    from st.train.sources import origins
    from st.train.stages import read_data
    from st.train.start import technique_texts

    with config.redaction.errors():
        sets = read_data(config, active, Report.silent())
    texts = [*prompts_to_encode(config.validation), *technique_texts(config, active)]
    return needed_keys(sets, origins(config, active), cache, texts)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f}"


COMMANDS = (du, verify, prune, explain)
