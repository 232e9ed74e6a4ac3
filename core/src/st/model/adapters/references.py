"""References: pictures that a model is shown beside the noise, and what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from st.data.sample import REFERENCE
from st.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from st.data.encoder import Encoder
    from st.model.adapters.adapter import Adapter
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


def shown_latents(extras: Mapping[str, Tensor]) -> list[Tensor]:
    """Latents (B, C, H, W) of the references in ``Batch.extras``, in the order that the model is shown them.

    A tensor (B, N, C, H, W) holds N of one size.
    """
    found: list[Tensor] = []
    # By length first: a tenth comes after a second.
    for name in sorted((name for name in extras if name.startswith(REFERENCE)), key=lambda name: (len(name), name)):
        found += [extras[name]] if extras[name].ndim == 4 else list(extras[name].unbind(1))
    return found


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
