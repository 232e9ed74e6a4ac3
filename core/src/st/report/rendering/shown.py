"""Reference pictures of validation prompts: read, brought to the size of what is rendered, and encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from st.errors import SampleUnreadable, StError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st.data.encoder import Encoder
    from st.data.geometry import Geometry
    from st.data.sets.words import Words
    from st.report.rendering.prompts import Prompt


@dataclass(slots=True)
class Shown:
    """What the references of prompts encode to. encoder: what reads them; it is loaded once for all new ones.

    joint: the text encoders that read references beside a text.
    """

    encoder: Encoder
    entries: dict[tuple[str, Geometry], Mapping[str, Tensor]] = field(default_factory=dict)
    joint: tuple[Encoder, ...] = ()
    texts: dict[tuple[Words, tuple[str, ...], Geometry], dict[str, Tensor]] = field(default_factory=dict)

    def learn(self, wanted: Sequence[tuple[Prompt, Geometry]], device: torch.device) -> None:
        """Encode what is not known yet. Raises StError naming a file that cannot be used."""
        self._learn_references(wanted, device)
        asked = {
            (words, prompt.references, geometry): None for prompt, geometry in wanted for words in _words_of(prompt)
        }
        self._learn_texts([one for one in asked if one not in self.texts], device)

    def _learn_texts(self, wanted: Sequence[tuple[Words, tuple[str, ...], Geometry]], device: torch.device) -> None:
        for encoder in self.joint if wanted else ():
            own = {"pixels", "audio"}.intersection(encoder.reads)
            if own:
                what = f"{encoder.name!r} reads the {min(own)} of a sample, and a prompt has none"
                raise StError(what, fix="render with the family's own pipeline")
            with encoder.open(device) as encode:
                for words, paths, geometry in wanted:
                    shown = tuple(read_pixels(path, geometry) for path in paths)
                    given = replace(words.input(encoder), geometry=geometry, references=shown)
                    self.texts.setdefault((words, paths, geometry), {}).update(encode([given])[0])

    def conditions(
        self, prompt: Prompt, words: Words, geometry: Geometry, device: torch.device
    ) -> Mapping[str, Tensor]:
        """What the encoders of texts with references give for a text of a prompt."""
        asked = (words, prompt.references, geometry)
        if self.joint and asked not in self.texts:
            self._learn_texts([asked], device)
        return self.texts.get(asked, {})

    def _learn_references(self, wanted: Iterable[tuple[Prompt, Geometry]], device: torch.device) -> None:
        from st.data.encoder import Input

        pairs = dict.fromkeys((path, geometry) for prompt, geometry in wanted for path in prompt.references)
        unknown = [pair for pair in pairs if pair not in self.entries]
        if not unknown:
            return
        pixels = {pair: read_pixels(*pair) for pair in unknown}
        with self.encoder.open(device) as encode:
            for (path, geometry), given in pixels.items():
                (self.entries[path, geometry],) = encode([Input(path, geometry, pixels=given)])

    def extras(self, prompt: Prompt, geometry: Geometry, device: torch.device) -> dict[str, Tensor]:
        """``Batch.extras`` of one prompt: its references by ``reference_name``, (1, ...) each."""
        from st.data.sample import reference_name

        return {
            reference_name(number, name): tensor.unsqueeze(0).to(device)
            for number, path in enumerate(prompt.references)
            for name, tensor in self.entries[path, geometry].items()
        }


def _words_of(prompt: Prompt) -> tuple[Words, ...]:
    return (prompt.words, prompt.against) if prompt.guided else (prompt.words,)


def read_pixels(path: str, geometry: Geometry) -> Tensor:
    """A picture as it is shown at a size: resized to cover it, its middle kept; (3, H, W) float32 in [0, 1].

    Raises StError naming the file.
    """
    import torch

    from st.data.geometry import Fit
    from st.data.media.header import read_header
    from st.data.media.picture import decode

    fix = "correct references of that prompt"
    try:
        data = Path(path).read_bytes()
        header = read_header(path, data)
        assert header is not None
        width, height = header.upright
        scale = max(geometry.height / height, geometry.width / width)
        resized = (max(round(height * scale), geometry.height), max(round(width * scale), geometry.width))
        crop = ((resized[0] - geometry.height) // 2, (resized[1] - geometry.width) // 2)
        pixels = decode(path, data, Fit(geometry, resized, crop, 0.0))
    except OSError as error:
        raise StError(f"the reference {path!r} cannot be read: {error.strerror}", fix=fix) from error
    except SampleUnreadable as error:
        raise StError(f"the reference {path!r} cannot be read: {error.reason}", fix=fix) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).contiguous() / 255
