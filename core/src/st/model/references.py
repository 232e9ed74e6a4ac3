"""References: pictures that a model is shown beside the noise, and what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from st.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from st.config import RunConfig
    from st.data.encoder import Encoder
    from st.model.adapter import Adapter
    from st.model.family import ModelFamily


@dataclass(frozen=True, slots=True)
class References:
    """What a model takes of references: how they are encoded, and how many of them.

    encoder: None for the family's codec. What it gives arrives in ``Batch.extras`` under ``reference_name``; at most:
    0 for any number.
    """

    encoder: Encoder | None = None
    at_least: int = 1
    at_most: int = 0


@runtime_checkable
class ReadsReferences(Protocol):
    """A family or an adapter whose denoiser is shown references."""

    def references(self) -> References | None:
        """What it takes of them; None where this checkpoint or these options take none."""
        ...


def references_read(family: ModelFamily[Any], adapter: Adapter) -> References | None:
    """What the model takes of references: the adapter's word comes first. None where it takes none."""
    for reader in (adapter.references(family), family.references() if isinstance(family, ReadsReferences) else None):
        if reader is not None:
            return reader
    return None


def problems(config: RunConfig, read: References | None) -> Iterator[Problem]:
    """Reference sets and validation prompts that do not suit the model; read: ``references_read``. Needs no torch.

    Raises StError for a prompt library that cannot be used.
    """
    for place, dataset in enumerate(config.datasets):
        # Beside the sets that are named there may be a companion folder: how many are too few is known once it is read.
        number = len(dataset.options.reference_sets)
        if number and (problem := unsuited(f"data set {dataset.name!r}", number, read, f"dataset.{place}")):
            yield problem
    for shot in config.validation.shots() if config.validation.every else ():
        if problem := unsuited(f"prompt {shot.name!r}", len(shot.references), read, "validation.prompts"):
            yield problem


def unsuited(what: str, number: int, read: References | None, where: str = "") -> Problem | None:
    """What is wrong with so many references, or None. what: "data set 'photos'"."""
    if read is None:
        if not number:
            return None
        fix = "Take them out, or choose a model or an adapter that reads references."
        return Problem(where, f"{what} has references, and this model is shown none.", fix=fix)
    if number < read.at_least:
        needs, fix = f"needs {read.at_least}", "Name them: reference_sets at a data set, references at a prompt."
    elif read.at_most and number > read.at_most:
        needs, fix = f"takes {read.at_most}", "Take some out."
    else:
        return None
    return Problem(where, f"{what} has {number} references for each sample; this model {needs}.", fix=fix)
