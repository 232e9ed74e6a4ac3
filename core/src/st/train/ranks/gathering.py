"""Gathering: a denoiser whose weights are shared out, whole again for as long as it is written."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from st.train.ranks.ranks import Ranks


@contextmanager
def whole_weights(denoiser: nn.Module, ranks: Ranks, *, frozen: bool) -> Iterator[None]:
    """Inside, rank 0's parameters are whole and in memory of the host; every rank enters.

    frozen: also those that do not learn. Weights are gathered one by one, so no device holds two of them whole.
    """
    by_parameter: dict[Tensor, nn.Parameter] = {}
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in denoiser.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not ranks.splits(parameter) or not (frozen or parameter.requires_grad):
                continue
            if parameter not in by_parameter:
                full = ranks.gather(ranks.part(parameter), parameter)
                by_parameter[parameter] = nn.Parameter(full.cpu(), requires_grad=parameter.requires_grad)
            places.append((module, name, parameter))
    for module, name, parameter in places if ranks.main else ():
        module._parameters[name] = by_parameter[parameter]
    try:
        yield
    finally:
        for module, name, parameter in places if ranks.main else ():
            module._parameters[name] = parameter
