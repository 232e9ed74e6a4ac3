"""Adapter: the part of a denoiser that learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from st.errors import StError
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st.diffusion.objective import Batch, Noised
    from st.errors import Problem
    from st.model.adapters.references import References
    from st.model.family import ModelFamily
    from st.model.files.formats import AdapterFormat

    ParamGroup = dict[str, Any]

NO_FORMATS: Mapping[str, AdapterFormat] = MappingProxyType({})


ADAPTER: StrategyKind[Callable[[Any], Adapter]] = StrategyKind("adapter")
"""``[adapter] kind``: what learns."""


class Adapter(ABC):
    """The part of a denoiser that learns. Built by name (``[adapter] kind``) with its options.

    ``attach`` is called once, on a frozen denoiser; afterwards exactly the parameters in its groups require gradients.
    """

    note: str = ""
    """What ``attach`` did, in one sentence for the report: how many modules learn, with how many weights."""
    exports_base: bool = True
    """Whether ``export`` reads weights that do not learn."""
    begins_as_base: bool = False
    """Whether the denoiser answers as the frozen one does until the first step. False where that is not known."""

    @property
    def needs_whole(self) -> str:
        """What it does with weights that needs them whole on every process, after "adapter": "takes them apart".

        '' where it works with parts of weights as well; nothing is loaded yet.
        """
        return ""

    def base_dtype(self, precision: torch.dtype) -> torch.dtype:
        """What the denoiser's weights are loaded as, given the run's precision."""
        return precision

    def problems(self, family: ModelFamily[Any]) -> Sequence[Problem]:
        """What was asked for and this family cannot do; found with the plan, before anything is loaded.

        Needs no torch.
        """
        return ()

    def caveats(self, family: ModelFamily[Any]) -> Sequence[str]:
        """What is not wrong and has to be known of what will be written, a sentence each; shown with the plan.

        Such as what the programs that a file is for do not apply. Needs no torch.
        """
        return ()

    def references(self, family: ModelFamily[Any]) -> References | None:
        """What the adapter takes of reference pictures; None where they are the family's own affair. Needs no torch."""
        return None

    def predict(self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        """The answer of the denoiser with this adapter, as ``ModelFamily.predict`` gives it, (B, C, ...).

        The one way in which training and previews ask; an adapter that is shown more than the denoiser overrides it.
        """
        return family.predict(denoiser, noised, batch)

    def begin(self, family: ModelFamily[Any], denoiser: nn.Module) -> None:
        """Take what is needed of the denoiser's own weights, or make room in it, before any of it is quantized.

        Called once, on the frozen denoiser, on the device where it was loaded; ``attach`` follows.
        """

    @abstractmethod
    def attach(
        self, denoiser: nn.Module, targets: Sequence[str], formats: Mapping[str, AdapterFormat] = NO_FORMATS
    ) -> Sequence[ParamGroup]:
        """Make the denoiser trainable; optimizer parameter groups.

        targets: the family's ``adapter_targets``. formats: its ``adapter_formats``, for what begins with a file. Raises
        StError naming the closest modules where nothing, or less than was asked for, matches.
        """

    @abstractmethod
    def state(self, denoiser: nn.Module) -> Mapping[str, Tensor]:
        """The trained tensors, each in the shape of its weight, named as the denoiser knows them; not copied."""

    @abstractmethod
    def load(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` gave, in the same shapes, exactly. Raises StError for missing, unexpected or misshapen
        tensors."""

    @abstractmethod
    def export(
        self, family: ModelFamily[Any], denoiser: nn.Module, directory: Path, metadata: Mapping[str, str]
    ) -> Path:
        """Write what users load elsewhere into ``directory``; the path of the file or folder written.

        The denoiser's tensors are whole: a sharded one is gathered before.
        """

    def disabled(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """The frozen model's own prediction, for regularisation and teachers. Raises StError where there is none."""
        raise StError(
            f"{type(self).__name__} changes the denoiser's own weights, so there is no untrained model left to ask",
            why="a technique of this run compares the trained model with the untrained one",
            fix='set adapter.kind to "lora", or leave that technique out',
        )

    def scaled(self, denoiser: nn.Module, factor: float) -> AbstractContextManager[None]:
        """``factor`` times what the adapter adds, inside of a ``with``: 0 is the untrained model, 1 the trained one.

        Where blocks are computed again in backward, backward belongs inside too. Raises StError, on entering and for
        any factor, where there is nothing that adds up.
        """
        raise StError(
            f"{type(self).__name__} cannot count what it has learnt {factor:g} times",
            why="a technique of this run trains it at several strengths",
            fix='set adapter.kind to "lora", or leave that technique out',
        )


def restore(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Copy ``state`` into parameters of the same names and shapes, whole or sharded.

    Raises StError naming what is missing, unexpected or misshapen, before anything is changed. what: "the adapter", for
    the error.
    """
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor

    missing, unexpected = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    if missing or unexpected:
        lines = [f"{len(missing)} tensors are missing, such as {missing[0]!r}"] if missing else []
        lines += [f"{len(unexpected)} tensors belong nowhere, such as {unexpected[0]!r}"] if unexpected else []
        raise StError(f"the stored state is not that of {what}: {'; '.join(lines)}", fix=_SAME)
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            found, expected = tuple(state[name].shape), tuple(parameter.shape)
            raise StError(f"{name!r} has shape {found} in the stored state, {expected} in {what}", fix=_SAME)
    with torch.no_grad():
        for name, parameter in parameters.items():
            tensor = state[name]
            if isinstance(parameter, DTensor) and not isinstance(tensor, DTensor):
                tensor = distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
            parameter.copy_(tensor)


def is_plain(parameter: object) -> bool:
    """Whether a weight is an ordinary tensor of floats: not quantized, and not packed into a class of its own."""
    from torch import Tensor, nn

    return type(parameter) is nn.Parameter and type(parameter.data) is Tensor and parameter.is_floating_point()


_SAME = "use the model, rank and targets that it was saved with"
