"""RenderingTests: previews that a family renders itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from st.testing.examples import CAPTIONS, encoded, example_inputs
from st.testing.family.subject import FamilyTests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from st.data.encoder import Role
    from st.model.family import ModelFamily


class RenderingTests(FamilyTests):
    """Of a family without ``render`` there is nothing to say: the core's sampler asks it as training does."""

    def test_a_preview_is_guided_by_a_negative_of_another_length(
        self, family: ModelFamily[Any], denoiser: nn.Module
    ) -> None:
        import torch

        from st.model.shot import Shot
        from st.report.rendering.rendering import RendersPictures

        if not isinstance(family, RendersPictures):
            pytest.skip("the core's sampler renders it")
        short, long = (self.conditions(family, text) for text in CAPTIONS)
        geometry = self.geometries[0]

        with torch.no_grad():
            for wanted, against in ((short, long), (long, short)):
                shot = Shot(wanted, against, geometry, seed=3, steps=2, guidance=3.0)
                first, second = (family.render(denoiser, shot) for _ in range(2))

                assert torch.isfinite(first).all()
                assert torch.equal(first, second)
                assert len(first) == 1
                if geometry.height:
                    assert first.shape[-2:] == (geometry.height, geometry.width)

    def conditions(self, family: ModelFamily[Any], text: str, role: Role = "caption") -> Mapping[str, Tensor]:
        """What the text encoders give of one text, collated. role: what the text is used for."""
        from dataclasses import replace

        import torch

        given = [replace(one, role=role) for one in example_inputs(family.codec(), self.geometries[0], (text,))]
        merged: dict[str, Tensor] = {}
        for encoder in family.text_encoders():
            (entry,) = encoded(encoder, given, torch.device("cpu"))
            merged |= entry
        return family.collate([merged])
