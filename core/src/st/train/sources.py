"""Sources: what a run reads its samples from, and what its cache entries are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st.importing import quiet_libraries
from st.model.adapters.references import references_read
from st.model.streams import streams_of

if TYPE_CHECKING:
    from st.data.backend import DataBackend
    from st.data.cache.origins import Origins
    from st.data.dataset import DatasetConfig
    from st.data.sets.prepare import SampleTransform
    from st.plugins.activation import Plugins
    from st.settings.config import RunConfig


def data_parts(plugins: Plugins, dataset: DatasetConfig) -> tuple[DataBackend, list[SampleTransform]]:
    """The backend of a data set, and what plugins make of its samples."""
    backend = plugins.registrar.lookup("backend", dataset.scheme).build(dataset.options.url, dataset.backend)
    return backend, [answer for _, answer in plugins.answers("st_sample_transform", dataset=dataset)]


def origins(config: RunConfig, plugins: Plugins) -> Origins:
    """What a run's cache entries are made of, for commands that look at them or at data without a run."""
    from st.data.cache.origins import Origins
    from st.model.quantize.quantizer import text_encoders
    from st.train.stages import brought_encoders

    quiet_libraries()
    family = plugins.family
    encoders = text_encoders(config.quantizer, family)
    read = references_read(family, config.adapter.build(config.adapter.options))
    features = brought_encoders(config, plugins, encoders)
    return Origins(family.codec(), encoders, read.encoder if read else None, features, streams_of(family))
