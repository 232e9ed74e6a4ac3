"""Preflight: what can be known of a run before anything is loaded or written. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.errors import Problem, ProblemsFound, StError
from st.model.family import KnowsItsFiles
from st.train.sources import data_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from st.data.dataset import DatasetConfig
    from st.data.sets.prepare import PreparedSet
    from st.model.family import ModelFamily
    from st.plugins.activation import Plugins
    from st.settings.config import RunConfig

HERE = "file"
"""The scheme of data sets that can be listed without a network."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found. sets: the data sets of this machine, in buckets. elsewhere: names of those not looked at."""

    sets: tuple[PreparedSet, ...]
    elsewhere: tuple[str, ...]


def look(config: RunConfig, plugins: Plugins) -> Preflight:
    """List this machine's data sets and look for the files that settings name. Raises ProblemsFound with all that is
    wrong."""
    found: list[Problem] = []
    for check in (lambda: check_files(plugins.family), lambda: _check_references(config)):
        found += _problem(check)
    near = _near(config)
    sets: tuple[PreparedSet, ...] = ()
    try:
        sets = _listed(replace(config, datasets=near), plugins)
        check_shapes(sets, config, max(1, config.ranks.processes))
    except StError as error:
        found.append(Problem("", error.what, error.why, error.fix))
    if found:
        raise ProblemsFound(found)
    return Preflight(sets, tuple(one.name for one in config.datasets if one not in near))


def check_files(family: ModelFamily[Any]) -> None:
    """Raise StError where a family can tell that files which its options name are not there, or another family's."""
    if isinstance(family, KnowsItsFiles):
        family.check_files()


def check_shapes(sets: Sequence[PreparedSet], config: RunConfig, ranks: int) -> None:
    """Raise DataUnusable where a bucket that is trained on does not fill a batch."""
    from st.data.shape.buckets import BatchShape, check_batches

    shape = BatchShape(config.batch, ranks, config.accumulate)
    for one in sets:
        if one.config.options.role == "train":
            check_batches(one.name, one.config.options, one.buckets, shape)


def _problem(check: Callable[[], None]) -> Iterator[Problem]:
    try:
        check()
    except StError as error:
        yield Problem("", error.what, error.why, error.fix)


def _near(config: RunConfig) -> tuple[DatasetConfig, ...]:
    """The data sets of this machine; where some are elsewhere, without those that are paired with others."""
    near = tuple(one for one in config.datasets if one.scheme == HERE)
    if len(near) == len(config.datasets):
        return near
    return tuple(one for one in near if one.options.role != "reference" and not one.options.reference_sets)


def _listed(config: RunConfig, plugins: Plugins) -> tuple[PreparedSet, ...]:
    from st.data.sets.prepare import prepare
    from st.report.report import Report

    parts = [data_parts(plugins, dataset) for dataset in config.datasets]
    backends, transforms = [backend for backend, _ in parts], [own for _, own in parts]
    return prepare(
        config.datasets,
        backends,
        plugins.family.geometry,
        seed=config.seed,
        transforms=transforms,
        report=Report.silent(),
    )


def _check_references(config: RunConfig) -> None:
    for prompt in config.validation.wanted() if config.validation.every else ():
        for name in prompt.references:
            if not Path(name).expanduser().is_file():
                raise StError(
                    f"validation.prompts: {prompt.name!r} shows the model {name!r}, and there is no such file",
                    why=f"looked for {Path(name).expanduser().absolute()}",
                    fix="correct the path; paths are seen from the folder that st is started in",
                )
