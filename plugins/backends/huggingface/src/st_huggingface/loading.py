"""Loading a split with the library ``datasets``, pinned to a commit; its many errors in a few words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk  # type: ignore[import-untyped]
from datasets.exceptions import DatasetNotFoundError, DatasetsError  # type: ignore[import-untyped]
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of its HTTP library

from st.errors import DataUnusable, StoreUnreachable
from st_huggingface.repository import commit_of

if TYPE_CHECKING:
    from st_huggingface.table import HubTableOptions

_COMMIT = re.compile("[0-9a-f]{40}")


class Loaded(NamedTuple):
    """A split. identity: changes when its rows do. facts: for a run's manifest."""

    split: Dataset
    identity: str
    facts: dict[str, str]


def load(name: str, options: HubTableOptions) -> Loaded:
    """A split of ``OWNER/NAME``, or of a folder that ``save_to_disk`` wrote. Raises DataUnusable, StoreUnreachable."""
    if Path(name).expanduser().exists():
        return _saved(name, options)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DataUnusable(f"folder {name!r} does not exist.", fix="Correct the data set's url.")
    offline = constants.is_offline_mode()
    commit = "" if offline else commit_of("dataset", name, options.revision)
    try:
        split = load_dataset(
            name,
            options.config or None,
            split=options.split,
            revision=commit or options.revision or None,
        )
    except (ConnectionError, DatasetNotFoundError, HTTPError) as error:
        fix = "It was never loaded on this machine: start once without HF_HUB_OFFLINE." if offline else ""
        raise StoreUnreachable(f"data set {name!r} cannot be loaded.", why=_first_line(error), fix=fix) from error
    except (ValueError, RuntimeError, FileNotFoundError, DatasetsError) as error:
        # An unknown configuration or split, whose message lists those that there are; a data set that is a program; or
        # nothing in it that can be read.
        raise DataUnusable(f"data set {name!r} cannot be used.", why=str(error)) from error
    assert isinstance(split, Dataset)
    pinned = _commit_in_cache(split) or commit
    if (wanted := commit or options.revision) and pinned != wanted:
        # Where the hub does not answer, the library takes the commit that was loaded last, whichever was asked for.
        raise StoreUnreachable(
            f"data set {name!r} is on this machine at commit {pinned}, and not at {wanted!r}.",
            why="The hub cannot be asked for that one: HF_HUB_OFFLINE is set."
            if offline
            else "The hub did not answer.",
            fix=f'Start once without HF_HUB_OFFLINE, or set revision = "{pinned}".' if offline else "Start again.",
        )
    return Loaded(split, pinned, {"revision": pinned})


def _saved(name: str, options: HubTableOptions) -> Loaded:
    if options.config or options.revision:
        raise DataUnusable(f"{name!r} is a folder; config and revision are for data sets on the hub.")
    try:
        found = load_from_disk(str(Path(name).expanduser()))
    except FileNotFoundError as error:
        raise DataUnusable(f"folder {name!r} was not written by save_to_disk.", why=_first_line(error)) from error
    if isinstance(found, DatasetDict):
        if options.split not in found:
            there = ", ".join(found) or "none"
            raise DataUnusable(f"folder {name!r} has no split {options.split!r}.", fix=f"Splits: {there}.")
        found = found[options.split]
    fingerprint = str(found._fingerprint)
    return Loaded(found, fingerprint, {"fingerprint": fingerprint})


def _commit_in_cache(split: Dataset) -> str:
    """The commit that a split was prepared from, which names the folder of its files; '' for an old cache's folder."""
    names = [Path(file["filename"]).parent.name for file in split.cache_files]
    return next(filter(_COMMIT.fullmatch, names), "")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
