"""Quantizer: smaller frozen weights."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import Field

from st.errors import StError
from st.options import Options
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor

    from st.data.encoder import Encoder
    from st.model.family import ModelFamily
    from st.registrar import Choice


class QuantizerOptions(Options):
    """What every quantizer is told; the Options of each kind derive from it."""

    keep: tuple[str, ...] = ()
    """Layers of the denoiser that stay as they are, by the end of their path or of one above them; * stands for
    anything. Those that the family names stay in any case."""
    smallest: int = Field(default=1024, ge=0)
    """Layers of fewer weights stay as they are: they are little to save, and often what the others hang on."""
    text_encoders: bool = False
    """Quantize the text encoders as well. Captions are then encoded again, and kept apart in the cache."""


PACKING_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What libraries raise where they have no kernel for a device or a dtype."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight that was made small.

    parts: plain tensors on its device. restore: makes the weight of such parts, in its shape and dtype; the same parts
    always give the same weight.
    """

    parts: Mapping[str, Tensor]
    restore: Callable[[Mapping[str, Tensor]], Tensor]


QUANTIZER: StrategyKind[Callable[[Any], Quantizer]] = StrategyKind("quantizer")
"""``[quantizer] kind``: how frozen weights are made smaller."""


class Quantizer(ABC):
    """Makes the weights of frozen linear layers small: ``[quantizer] kind``.

    A subclass says how one weight is packed; ``quantize`` goes through a network, one layer at a
    time. The same weights always give the same packed weights, so that a checkpoint never holds them.

    kind: the name that the run file gives.
    """

    def __init__(self, kind: str, options: QuantizerOptions) -> None:
        self.kind, self.options = kind, options

    @property
    def fingerprint(self) -> str:
        """Changes when outputs of a quantized encoder would."""
        told = self.options.model_dump(mode="json", exclude={"keep", "text_encoders"})
        return f"{self.kind}-{json.dumps(told, sort_keys=True)}"

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raises StError, saying what to do, where weights of this dtype cannot be packed on this device.

        Asked before anything is loaded. A small matrix is packed and restored, so that a missing kernel, or one that
        gives something else, is found here.
        """
        import torch

        weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        here = f"quantizer.kind = {self.kind!r} cannot pack {str(dtype).removeprefix('torch.')} weights on {device}"
        fix = "set quantizer.kind to another kind, precision to another precision, or leave out [quantizer]"
        try:
            packed = self.pack(weight)
            error = float((packed.restore(packed.parts).float() - weight.float()).norm() / weight.float().norm())
        except PACKING_FAILURES as failure:
            raise StError(here, why=f"{type(failure).__name__}: {failure}".splitlines()[0], fix=fix) from failure
        # Two bits leave about half of the norm of random numbers; nonsense is further away than no weight at all.
        if not error < 0.8:
            raise StError(here, why=f"what it restores there is off by {error:.0%}", fix=fix)

    def unfit(self, shape: tuple[int, int]) -> str:
        """Why a weight (out, in) of this shape cannot be packed: "of an odd width"; '' where it can."""
        return ""

    @abstractmethod
    def pack(self, weight: Tensor) -> PackedWeight:
        """weight: (out, in) in fp32, bf16 or fp16, on the device where it is used. Deterministic; no gradients."""


@dataclass(slots=True)
class Quantization:
    """What became of a network.

    network: its class. layers: packed, of how many linear ones. weights: likewise, of all that there are. left: paths
    of linear layers that stayed, by reason. others: how many modules of each other class hold weights.
    """

    kind: str
    network: str
    layers: int = 0
    linear: int = 0
    weights: int = 0
    all_weights: int = 0
    size_bytes: int = 0
    size_bytes_before: int = 0
    left: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """For the report."""
        share = 100 * self.weights / max(self.all_weights, 1)
        unit, sign = (1e9, "GB") if self.size_bytes_before >= 1e9 else (1e6, "MB")
        became = f"{self.size_bytes_before / unit:.2f} {sign} became {self.size_bytes / unit:.2f} {sign}"
        stayed = [*self._reasons(), *(f"{count} {name}" for name, count in self.others.items())]
        return (
            f"{self.kind} quantized {self.layers} of {self.linear} linear layers of {self.network}, {share:.1f}% of "
            f"its weights: {became}{'; left as they are: ' if stayed else ''}{', '.join(stayed)}"
        )

    def require(self) -> None:
        """Raises StError where no layer was quantized."""
        if self.layers:
            return
        stay = f"of its {self.linear} linear layers all stay: {', '.join(self._reasons())}"
        raise StError(
            f"quantizer.kind = {self.kind!r} finds no layer of {self.network} to quantize",
            why=stay if self.linear else "it has no linear layers",
            fix="change quantizer.keep or quantizer.smallest, or leave out [quantizer]",
        )

    def _reasons(self) -> list[str]:
        return [f"{len(paths)} {reason}" for reason, paths in self.left.items()]


@runtime_checkable
class QuantizableEncoder(Protocol):
    """An encoder whose network can be quantized when it is loaded."""

    def quantized(self, quantizer: Quantizer, tell: Callable[[Quantization], None]) -> Encoder:
        """The same encoder with quantized weights, and a fingerprint of its own. tell: hears of each network."""
        ...


def text_encoders(
    chosen: Choice | None, family: ModelFamily[Any], tell: Callable[[Quantization], None] = lambda _: None
) -> Sequence[Encoder]:
    """The family's text encoders, quantized where the run file asks for it.

    chosen: the run's quantizer. tell: hears what became of each network, when it is loaded. Raises StError for encoders
    that cannot be quantized.
    """
    encoders = family.text_encoders()
    if chosen is None:
        return encoders
    quantizer: Quantizer = chosen.build(chosen.options)
    if not quantizer.options.text_encoders:
        return encoders
    found = [one.quantized(quantizer, tell) for one in encoders if isinstance(one, QuantizableEncoder)]
    if not found or len(found) < len(encoders):
        names = ", ".join(repr(one.name) for one in encoders if not isinstance(one, QuantizableEncoder))
        raise StError(
            f"quantizer.text_encoders: this family's text encoders cannot be quantized ({names or 'it has none'})",
            fix="delete quantizer.text_encoders",
        )
    return found
