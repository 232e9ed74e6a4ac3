"""PartsTests: the options, sizes and encoders of a family."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.data.encoder import LatentCodec
from st.model.streams import streams_of
from st.testing.examples import encoded, example_inputs, example_media
from st.testing.family.subject import FamilyTests
from st.testing.plugins import heavy_imports_of

if TYPE_CHECKING:
    from st.data.geometry import Geometry
    from st.model.family import ModelFamily


class PartsTests(FamilyTests):
    """What a family is made of."""

    def test_import_stays_light(self, family: ModelFamily[Any]) -> None:
        assert heavy_imports_of(f"import {type(family).__module__}") == []

    def test_every_option_is_documented(self, family: ModelFamily[Any]) -> None:
        fields = type(family).Options.model_fields

        assert [name for name, field in fields.items() if not (field.description or "").strip().endswith(".")] == []

    def test_encoders_say_what_they_read(self, family: ModelFamily[Any]) -> None:
        from typing import get_args

        from st.data.encoder import Reads

        for encoder in (family.codec(), *streams_of(family).values(), *family.text_encoders()):
            assert isinstance(encoder.reads, tuple), f"{encoder.name}: reads is a tuple of words"
            assert set(encoder.reads) <= set(get_args(Reads)), f"{encoder.name} reads {encoder.reads}"
            assert encoder.reads, f"{encoder.name} reads nothing"

    def test_geometry_rule_is_a_fixed_point(self, family: ModelFamily[Any], geometry: Geometry) -> None:
        nearest = family.geometry.nearest(example_media(geometry), geometry.height * geometry.width)

        assert family.geometry.accepts(geometry)
        assert nearest == geometry

    def test_encoder_outputs_survive_the_cache(self, family: ModelFamily[Any], tmp_path: Path) -> None:
        import torch

        from st.data.cache.cache import Cache, Origin
        from st.data.store.store import Store

        store = Store.at(str(tmp_path / "cache"))
        written = {}
        writing = Cache(store)
        codec = family.codec()
        for encoder in (codec, *streams_of(family).values(), *family.text_encoders()):
            shown = encoder if isinstance(encoder, LatentCodec) else codec
            entries = encoded(encoder, example_inputs(shown, self.geometries[0]), torch.device("cpu"))
            for number, entry in enumerate(entries):
                origin = Origin(encoder.name, encoder.fingerprint, {"example": str(number)})
                writing.put(origin, entry)
                written[origin.key] = entry
        writing.flush()
        reading = Cache(store)

        for key, entry in written.items():
            restored = reading.get(key)
            assert restored is not None
            assert restored.keys() == entry.keys()
            assert all(torch.equal(restored[name], entry[name]) for name in entry)

    def test_fingerprint_changes_with_the_checkpoint(self, family: ModelFamily[Any], tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        same, other = tmp_path / "same", tmp_path / "other"
        for folder in (same, other):
            shutil.copytree(family.options.checkpoint, folder)
        for file in other.rglob("*.safetensors"):
            weights = {name: t + 1 if t.is_floating_point() else t for name, t in load_file(file).items()}
            save_file(weights, file, metadata={"format": "pt"})
        moved, changed = (
            type(family)(family.options.model_copy(update={"checkpoint": str(folder)})) for folder in (same, other)
        )

        assert self.fingerprints(moved) == self.fingerprints(family)
        assert not set(self.fingerprints(changed)) & set(self.fingerprints(family))

    def fingerprints(self, family: ModelFamily[Any]) -> list[str]:
        """Of every codec and text encoder."""
        encoders = (family.codec(), *streams_of(family).values(), *family.text_encoders())
        return [encoder.fingerprint for encoder in encoders]
