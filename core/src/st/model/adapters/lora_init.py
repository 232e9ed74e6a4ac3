"""What a LoRA's way to begin asks of layers and of torch's generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from st.errors import StError
from st.model.adapters.adapter import is_plain

if TYPE_CHECKING:
    from torch import nn


def refuse_unusual(denoiser: nn.Module, paths: Sequence[str], init: str, linear: type[nn.Module]) -> None:
    """Raises StError for a layer whose weights cannot be taken apart."""
    for path in paths:
        layer = denoiser.get_submodule(path)
        if not isinstance(layer, linear) or not is_plain(layer.weight):
            raise StError(
                f"adapter.init = {init!r} cannot take apart the weights of {path!r}, a {type(layer).__name__}",
                fix="set adapter.init to 'default', or leave that layer out of adapter.targets",
            )


@contextmanager
def fixed_draws() -> Iterator[None]:
    """The same random numbers inside of a ``with``, whatever was drawn before, and none used up outside."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
