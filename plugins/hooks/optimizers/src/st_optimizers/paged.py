"""Paged optimizers, whose state is paged again after a checkpoint is restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.optim.adamw import PagedAdamW8bit as PlainPagedAdamW8bit
from bitsandbytes.optim.adamw import PagedAdamW32bit as PlainPagedAdamW32bit
from bitsandbytes.optim.lion import PagedLion8bit as PlainPagedLion8bit
from bitsandbytes.optim.optimizer import Optimizer8bit

STATES = ("state1", "state2")


class _PagedAgain(Optimizer8bit):
    """bitsandbytes restores a paged state as plain tensors on the device, which then runs out of memory."""

    def load_state_dict(self, state_dict: Mapping[str, Any], move_to_device: bool = False) -> None:
        """Restore the state on the computer, page it, and move only what is small to the device."""
        super().load_state_dict(state_dict, move_to_device)  # type: ignore[no-untyped-call]
        for parameter, state in self.state.items():
            for name in STATES:
                if name in state:
                    state[name] = self._paged(parameter, state[name])
        self.to_gpu()  # type: ignore[no-untyped-call]

    def _paged(self, parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        buffer: torch.Tensor = self.get_state_buffer(parameter, dtype=value.dtype)  # type: ignore[no-untyped-call]
        if parameter.is_cuda:
            # The buffer is cleared by the device, and what follows may be a copy by the host.
            torch.cuda.synchronize(parameter.device)
        return buffer.copy_(value)


class PagedAdamW(_PagedAgain, PlainPagedAdamW32bit):
    """bitsandbytes' PagedAdamW32bit."""


class PagedAdamW8bit(_PagedAgain, PlainPagedAdamW8bit):
    """bitsandbytes' PagedAdamW8bit."""


class PagedLion8bit(_PagedAgain, PlainPagedLion8bit):
    """bitsandbytes' PagedLion8bit."""
