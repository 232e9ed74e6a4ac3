"""Features: what techniques have computed once of every sample, beside its latents and captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from st.activation import Plugins
    from st.config import RunConfig
    from st.data.encoder import Encoder


def feature_encoders(config: RunConfig, plugins: Plugins, text_encoders: Sequence[Encoder]) -> tuple[Encoder, ...]:
    """The encoders that plugins bring by ``st_encoders``, in the order of the plugin list.

    text_encoders: the family's. Raises PluginError for one that reads captions, or has the name of another.
    """
    taken = {plugins.family.codec().name, *(encoder.name for encoder in text_encoders)}
    found: list[Encoder] = []
    for name, answer in plugins.answers("st_encoders", config=config, family=plugins.family):
        for encoder in answer:
            if encoder.reads == "caption":
                raise PluginError(f"{name} brings encoder {encoder.name!r}, which reads captions, not samples")
            if encoder.name in taken:
                raise PluginError(f"{name} brings an encoder named {encoder.name!r}, and there is one already")
            taken.add(encoder.name)
            found.append(encoder)
    return tuple(found)
