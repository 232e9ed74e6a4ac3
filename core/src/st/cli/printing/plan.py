"""The resolved plan of a run, as ``st train --dry-run`` and ``st config show`` print it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.cli.printing.say import say
from st.cli.printing.table import print_table
from st.model.family import Remarks
from st.reading.runfile import Location, dotted
from st.reading.toml import value_text
from st.settings.config import RunOptions
from st.spelling import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from st.plugins.activation import Plugins
    from st.settings.config import RunConfig
    from st.train.preflight import Preflight


def print_plan(config: RunConfig, plugins: Plugins, found: Preflight) -> None:
    """Print which plugins take part, what is trained on, and every setting that is not at its default."""
    sizes = {one.name: f"{len(one.index)} in {counted(len(one.buckets), 'bucket')}" for one in found.sets}
    rows = [(plugin.name, plugin.kind, f"{plugin.distribution} {plugin.version}".strip()) for plugin in plugins.active]
    print_table(("plugin", "kind", "package"), rows, "Plugins, in the order in which they are asked")
    print_table(
        ("data set", "role", "backend", "url", "samples"),
        [
            (
                *map(config.redaction.text, (item.name, item.options.role, item.scheme, item.options.url)),
                sizes.get(item.name, ""),
            )
            for item in config.datasets
        ],
        "Data",
    )
    print_table(("", ""), _steps(config), "Training")
    changed = [
        (dotted(location), value_text(value), origin)
        for location, value, origin in settings(config)
        if origin != "default"
    ]
    print_table(("setting", "value", "from"), changed, "Settings that are not at their defaults")
    if found.elsewhere:
        say(f"Not looked at, because they are not on this machine or are paired: {', '.join(found.elsewhere)}")
    remarks = plugins.family.remarks() if isinstance(plugins.family, Remarks) else ()
    for one in (*remarks, *config.adapter.build(config.adapter.options).caveats(plugins.family)):
        say(f"Note: {one}")
    print("Nothing was loaded and nothing was written. All settings: st config show")


def _steps(config: RunConfig) -> Iterator[tuple[str, str]]:
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    yield "length", f"{length} of {config.batch} x {config.accumulate} samples per device"
    yield "precision", f"{config.precision} on {config.device}"
    yield "what learns", config.adapter.kind
    yield "optimizer", f"{config.optimizer.kind}, {config.schedule.kind} schedule"
    yield (
        "objective",
        f"{config.density.kind} times, {config.weighting.kind} weighting, {config.distance.kind} distance",
    )
    yield "output", config.redaction.text(config.output)


def settings(config: RunConfig) -> Iterator[tuple[Location, Any, str]]:
    """Every setting with its value and where it was written, those of sections after those at the top.

    A section that is absent, and therefore off, is a setting of its own with the value None.
    """
    plain = config.plain()
    tables: list[tuple[Location, Any]] = []
    for key, value in plain.items():
        if isinstance(value, dict) or (value is None and key not in RunOptions.model_fields):
            tables.append(((key,), value))
        elif key == "dataset":
            tables += [((key, index), item) for index, item in enumerate(value)]
        else:
            yield (key,), value, config.origin((key,))
    for location, table in tables:
        if table is None:
            yield location, None, "default"
        for key, value in (table or {}).items():
            yield (*location, key), value, config.origin((*location, key))
