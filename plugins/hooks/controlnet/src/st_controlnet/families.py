"""What a family answers so that it can be controlled. It imports nothing for it: having the methods is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from st import Encoder


@runtime_checkable
class AcceptsControl(Protocol):
    """A family that upstream has a control network for."""

    def control_encoder(self) -> Encoder | None:
        """What control pictures are encoded by; None for the family's codec."""
        ...

    def make_control(self, denoiser: nn.Module, layers: Sequence[int]) -> nn.Module:
        """Upstream's control network, begun from the denoiser's weights so that its residuals are zero.

        layers: blocks of each kind that it copies, from the first; () for what is usual. Raises StError where it can
        not be made.
        """
        ...

    def controlled(self, control: nn.Module, arguments: Mapping[str, Any], shown: Tensor) -> Mapping[str, Any]:
        """Further arguments of the denoiser's call: the network's residuals.

        arguments: of the call as it would be without. shown: what ``control_encoder`` gave, (B, ...).
        """
        ...


@runtime_checkable
class WidensInput(Protocol):
    """A family that upstream has control adapters for: its denoiser reads the control picture beside the noise."""

    def widen_input(self, denoiser: nn.Module) -> str:
        """Let the layer that reads latents read as many channels again, with weights of zero; the layer's path."""
        ...

    def widened(self, arguments: Mapping[str, Any], shown: Tensor) -> Mapping[str, Any]:
        """The arguments of the denoiser's call that differ. shown: latents of the control picture, (B, C, H, W)."""
        ...
