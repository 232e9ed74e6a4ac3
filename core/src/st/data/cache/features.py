"""Features: what techniques have computed once of every sample, beside its latents and captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from st.data.encoder import Encoder


def feature_encoders(taken: Iterable[str], answers: Iterable[tuple[str, Sequence[Encoder]]]) -> tuple[Encoder, ...]:
    """The encoders that plugins bring by ``st_encoders``, in the order of the plugin list.

    taken: the names of the family's own encoders. answers: by the plugin's name. Raises PluginError for one that reads
    captions, or has the name of another.
    """
    names = set(taken)
    found: list[Encoder] = []
    for name, answer in answers:
        for encoder in answer:
            if encoder.reads_captions:
                raise PluginError(f"{name} brings encoder {encoder.name!r}, which reads captions, not samples")
            if encoder.name in names:
                raise PluginError(f"{name} brings an encoder named {encoder.name!r}, and there is one already")
            names.add(encoder.name)
            found.append(encoder)
    return tuple(found)
