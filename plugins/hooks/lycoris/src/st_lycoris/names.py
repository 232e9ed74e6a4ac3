"""What can be told of files of LyCORIS without loading one, and without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from st import AdapterFormat, LoraShape, Planned
from st.jsonfile import parse_object

if TYPE_CHECKING:
    from torch import Tensor

    from st_lycoris.options import Algorithm

LIBRARY = "lycoris"
"""Name of the library's own layout, and what begins its names of layers."""
_WHOLE = (".diff", ".oft_blocks", ".dora_scale", ".w_norm")


@dataclass(frozen=True, slots=True)
class Unconstrained(AdapterFormat):
    """Another format, with rotations that are as small as their constraint made them and no constraint beside them.

    Readers other than the library take its number for another one.
    """

    inner: AdapterFormat

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        free = dict(state)
        for name in (one for one in state if one.endswith(".oft_blocks")):
            path = name.removesuffix(".oft_blocks")
            free[name], free[f"{path}.alpha"] = _freed(state[name], state[f"{path}.alpha"])
        return self.inner.to_file(free, shape)

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        return self.inner.from_file(tensors, metadata)

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner.refusals(planned)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner.caveats(planned)


def planned(algorithm: Algorithm, targets: Sequence[str]) -> Planned:
    """What files will hold of layers with these settings."""
    flags = {
        "dora": algorithm.use_dora,
        "tucker": algorithm.use_tucker,
        "rescaled": algorithm.rescaled,
        "decompose_both": algorithm.decompose_both,
    }
    return Planned(algorithm.algo, frozenset(name for name, wanted in flags.items() if wanted), tuple(targets))


def start_rebuilds(start: str) -> bool:
    """Whether a file holds an algorithm that computes whole weights; False for what is no safetensors file.

    Needs no torch: it is asked while a run is planned.
    """
    try:
        with Path(start).expanduser().open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_object(file.read(size).decode()) if size < 2**27 else {}
            for key, facts in header.items():
                if key.endswith(".on_input"):
                    begin, end = facts["data_offsets"]
                    file.seek(8 + size + begin)
                    if not any(file.read(end - begin)):
                        return True
    except (OSError, ValueError, TypeError, LookupError):
        # What is wrong with the file is said when it is opened.
        return False
    return any(key.endswith(_WHOLE) for key in header)


def _freed(blocks: Tensor, constraint: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, alpha) that give the same rotation without a constraint.

    The library allows the antisymmetric part a norm of the constraint times the layer's outputs: blocks of
    (blocks, size, size), and with butterflies (steps, blocks, size, size).
    """
    outputs = blocks.shape[-3] * blocks.shape[-1]
    limit = constraint.to(blocks) * outputs
    norm = (blocks - blocks.transpose(-1, -2)).norm() + 1e-8
    scale = (limit / norm).clamp(max=1.0)
    return blocks * scale.where(constraint.to(blocks) > 0, scale.new_ones(())), constraint.new_zeros(())
