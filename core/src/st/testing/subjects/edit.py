"""TinyEdit: the smallest family whose text encoder looks at the references of a sample while it reads the caption."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from st.data.encoder import Encoder
from st.testing.subjects.tiny import TEXT, TinyFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import Tensor

    from st.data.encoder import Encode, Input
    from st.model.adapters.references import References

ROLES = ("caption", "negative", "dropped")


class TinyEdit(TinyFamily):
    """TinyFamily, told of one or two references by its text encoder alone."""

    def text_encoders(self) -> Sequence[Encoder]:
        return (TinyLook(self._file(TEXT)),)

    def references(self) -> References:
        """One or two pictures."""
        from st.model.adapters.references import References

        return References(at_least=1, at_most=2)


class TinyLook(Encoder):
    """A token for the role of a caption, one with the mean colour of each reference, and then the caption's bytes."""

    name = "look"
    reads = ("caption", "role", "references")

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def fingerprint(self) -> str:
        from st.testing.subjects.tiny_parts import file_digest

        return file_digest(self.file)

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch
        from safetensors.torch import load_file

        from st.testing.subjects.tiny_parts import codes

        table = load_file(self.file)["table"].to(device)

        def one(item: Input) -> Mapping[str, Tensor]:
            looks = [table.new_zeros(table.shape[1]) for _ in item.references]
            for look, shown in zip(looks, item.references, strict=True):
                look[:3] = shown.to(device).flatten(1).mean(1)
            role = table[ROLES.index(item.role) + 1]
            return {"text": torch.cat([torch.stack([role, *looks]), table[codes(item.caption or "")]]).cpu()}

        yield lambda inputs: [one(item) for item in inputs]
