"""``st data``: look at data sets without training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from st.cli.printing.say import say
from st.cli.runfile import Overrides, PluginNames, RunFile

if TYPE_CHECKING:
    from st.data.sets.pairing import Listed
    from st.plugins.activation import Plugins
    from st.settings.config import RunConfig


def check(
    file: RunFile,
    plugins: PluginNames = None,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="Devices that the run will have.")] = 1,
    all_: Annotated[bool, typer.Option("--all", help="List every name, not the first twenty.")] = False,
) -> None:
    """Decode every sample and say what would be trained on, left out and cut off.

    Nothing is written. Ends with 1 where training would stop.
    """
    from st.data.inspect.checking import check_set, failure, lines
    from st.data.shape.buckets import BatchShape
    from st.errors import StError
    from st.model.adapters.references import references_read, unsuited
    from st.settings.assembly import assemble
    from st.train.sources import data_parts, origins

    config, active = assemble(file, plugins or (), overrides or ())
    _need_data(config)
    shape = BatchShape(config.batch, ranks, config.accumulate)
    readers = origins(config, active)
    read = references_read(active.family, config.adapter.build(config.adapter.options))
    failed = False
    with config.redaction.errors():
        listed = _references(config, active)
    for dataset in (one for one in config.datasets if one.name not in listed):
        backend, transforms = data_parts(active, dataset)
        try:
            found = check_set(
                dataset,
                backend,
                active.family.geometry,
                readers,
                shape=shape,
                seed=config.seed,
                transforms=transforms,
                listed=listed,
            )
        except StError as error:
            found = failure(error, dataset.name)
        if found.prepared and (problem := unsuited(repr(dataset.name), len(found.prepared.references), read)):
            found.failures.append(problem.what)
        for line in lines(found, 10**9 if all_ else 20):
            say(config.redaction.text(line))
        failed |= bool(found.failures)
    if failed:
        raise typer.Exit(1)


def show(
    file: RunFile,
    plugins: PluginNames = None,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("data.html"),
    per_bucket: Annotated[int, typer.Option(min=1, help="Samples shown of each bucket.")] = 24,
) -> None:
    """Write a page with the pictures of every bucket as training will see them: crops, masks and captions."""
    from st.data.inspect.sheet import page
    from st.data.sets.prepare import prepare
    from st.report.report import Report
    from st.settings.assembly import assemble
    from st.train.sources import data_parts

    config, active = assemble(file, plugins or (), overrides or ())
    _need_data(config)
    backends, transforms = zip(*(data_parts(active, dataset) for dataset in config.datasets), strict=True)
    rule, report = active.family.geometry, Report.silent()
    with config.redaction.errors():
        sets = prepare(config.datasets, backends, rule, seed=config.seed, transforms=transforms, report=report)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(sets, per_bucket), encoding="utf-8")
    say(f"{sum(len(one.index) for one in sets)} samples of {len(sets)} data sets: {output}")


def _references(config: "RunConfig", active: "Plugins") -> dict[str, "Listed"]:
    """The data sets with role "reference" by name: what there is in them."""
    from st.data.sample import REFERENCE
    from st.data.sets.pairing import check_names
    from st.data.sets.prepare import list_set
    from st.report.report import Report
    from st.train.sources import data_parts

    check_names(config.datasets)
    found = {}
    for dataset in config.datasets:
        if dataset.options.role == REFERENCE:
            backend, transforms = data_parts(active, dataset)
            found[dataset.name] = list_set(dataset, backend, report=Report.silent(), transforms=transforms)
    return found


def _need_data(config: "RunConfig") -> None:
    from st.errors import DataUnusable

    if not config.datasets:
        raise DataUnusable("the run file has no data set.", fix='Add [[dataset]] with url = "file:photos".')


COMMANDS = (check, show)
