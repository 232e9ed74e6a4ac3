"""SeeingText: a pipeline's text encoder that looks at the references of a sample while it reads the caption."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from st.model.pipelines.pipeline_text import PipelineText

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st.data.encoder import Encode, Input, Reads


class SeeingText(PipelineText):
    """For pipelines that edit, whose ``encode_prompt`` is given an ``image``.

    Samples are read one by one: their pictures become as many tokens as they are large. A subclass says in
    ``looked_at`` how large they are shown.
    """

    reads: tuple[Reads, ...] = ("caption", "references")

    @property
    def fingerprint(self) -> str:
        return f"{type(self).__name__}-{super().fingerprint}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch

        pipeline = self._load(device)
        arguments = self._arguments()
        if "device" in inspect.signature(pipeline.encode_prompt).parameters:
            arguments["device"] = device

        def one(item: Input) -> Mapping[str, Tensor]:
            shown = [self.looked_at(pipeline, picture(pixels)) for pixels in item.references]
            with torch.no_grad():
                values = pipeline.encode_prompt(**(arguments | {"prompt": [item.caption or ""], "image": shown}))
            named = {name: value for name, value in zip(self.prompting.encodes, values, strict=True) if name}
            return self._row(named, 0)

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            return [one(item) for item in inputs]

        yield encode

    def looked_at(self, pipeline: Any, shown: Any) -> Any:
        """A reference, a picture of Pillow's in RGB, as the pipeline's call gives it to ``encode_prompt``."""
        return shown

    def count_tokens(self, caption: str) -> None:
        """Such pipelines cut nothing off."""


def picture(pixels: Tensor) -> Any:
    """Pillow's picture of (3, H, W) in [0, 1]."""
    import torch
    from PIL import Image

    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
