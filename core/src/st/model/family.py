"""ModelFamily: a diffusion model that can be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

from st.data.shape.rule import GeometryRule
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.errors import StError
from st.options import Options
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path as FilePath
    from typing import Any

    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encoder, LatentCodec
    from st.diffusion.objective import Batch, Noised
    from st.diffusion.path import Path
    from st.diffusion.target import Target
    from st.model.files.formats import AdapterFormat
    from st.model.inside.blocks import BlockGroup

OptionsT = TypeVar("OptionsT", bound=Options)


FAMILY: StrategyKind[Callable[..., ModelFamily[Any]]] = StrategyKind("family")
"""A model family made at run time, named in ``plugins``."""


class ModelFamily(ABC, Generic[OptionsT]):
    """A diffusion model that can be trained: what it is made of, how to ask it, where it may be changed.

    ``class Mine(ModelFamily["Mine.Options"])`` with a nested ``Options``. The list of methods is closed: a further
    ability is an optional Protocol beside the feature that uses it.
    """

    Options: ClassVar[type[Options]] = Options
    geometry: GeometryRule = GeometryRule()
    """Sizes that it accepts; of the instance, where options decide it."""
    path: Path = staticmethod(straight)
    """How noise is mixed in. Set on the instance where options decide it; so is ``target``."""
    target: Target = staticmethod(velocity)
    """What the denoiser is asked for."""
    defaults: Mapping[str, Mapping[str, object]] = MappingProxyType({})
    """Sections that choose a strategy, as they are where the run file has none.

    For example ``{"weighting": {"kind": "inverse_square"}}``.
    """
    full_precision: ClassVar[Sequence[str]] = ()
    """Modules that a quantizer leaves as they are, by the end of their names."""
    drops_tokens: ClassVar[bool] = True
    """Whether techniques may run blocks on a part of the tokens, as far as that is known without weights."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def codec(self) -> LatentCodec: ...

    @abstractmethod
    def text_encoders(self) -> Sequence[Encoder]: ...

    @abstractmethod
    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The denoiser with its weights, in eval mode. Raises StError naming the folder or file that is missing."""

    @abstractmethod
    def tokens(self, latents: Tensor) -> int:
        """S: how many stream tokens these latents (B, C, ...) become inside the denoiser."""

    @abstractmethod
    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        """The denoiser's answer in the sense of ``target``, like noised.x.

        Packing, time scale, sign and guidance are in here.
        """

    def collate(self, encoded: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The text encoders' outputs of B samples as a batch: pads the first dimension with zeros and stacks.

        Where any entry had to be padded, ``<name>_mask`` (B, longest), bool, says which rows are real.
        """
        from st.model.collate import pad_and_stack

        return pad_and_stack(encoded)

    def time_shift(self, tokens: int) -> float:
        """k of the shift k t / (1 + (k - 1) t) that this family trains with at so many tokens; 1 is none."""
        return 1.0

    @abstractmethod
    def adapter_targets(self) -> Sequence[str]:
        """Module-name suffixes that adapters attach to, most useful first."""

    @abstractmethod
    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        """Adapter file layouts by name; the first is the default."""

    def blocks(self) -> Sequence[BlockGroup]:
        """Where tokens pass through the denoiser; () where no technique may reach in."""
        return ()

    def save_checkpoint(self, denoiser: nn.Module, directory: FilePath) -> None:
        """Write all weights so that ``Options(checkpoint=directory)`` loads them and upstream's tools do."""
        raise StError(f"{type(self).__name__} cannot save all of its weights", fix='set adapter.kind to "lora"')

    @classmethod
    def tiny(cls, directory: FilePath) -> Self:
        """Write a tiny checkpoint with random weights in the upstream layout and open it; seconds on a CPU."""
        raise StError(f"{cls.__name__} has no tiny checkpoint to write")


@runtime_checkable
class KnowsItsFiles(Protocol):
    """A family that can tell early whether what its options name is there."""

    def check_files(self) -> None:
        """Raise StError where files that the options name are missing on this machine, or are another family's.

        Imports no torch, loads no weights and asks no network: what only a hub knows is not checked.
        """


@runtime_checkable
class Remarks(Protocol):
    """A family that has something to say to whoever trains it in the flavour and with the options that were chosen."""

    def remarks(self) -> Sequence[str]:
        """A sentence each: what is possible and may not be meant. Opens no file; the plan and the report show them."""
        ...
