"""Full: every weight of the denoiser learns, or every one of some kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from st.errors import StError
from st.model.adapters.adapter import ADAPTER, NO_FORMATS, Adapter, is_plain, restore
from st.options import Options

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st.model.family import ModelFamily
    from st.model.files.formats import AdapterFormat
    from st.registrar import Registrar

    ParamGroup = dict[str, Any]

FOLDER = "model"


class FullOptions(Options):
    """The denoiser's own weights learn."""

    dtype: Literal["fp32", "bf16", "precision"] = "fp32"
    """Precision that weights are kept in: fp32 loses no small update, bf16 halves memory, precision is the run's."""
    train: tuple[str, ...] = ()
    """Weights that learn, by name; * stands for anything ("*.bias", "blocks.*.norm*"). Empty: all of them."""
    freeze: tuple[str, ...] = ()
    """Weights that do not learn after all, by name."""


class FullAdapter(Adapter):
    """The denoiser itself. There is no untrained model left to ask."""

    def __init__(self, options: FullOptions) -> None:
        self.options = options

    def base_dtype(self, precision: torch.dtype) -> torch.dtype:
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "precision": precision}[self.options.dtype]

    def attach(
        self, denoiser: nn.Module, targets: Sequence[str], formats: Mapping[str, AdapterFormat] = NO_FORMATS
    ) -> Sequence[ParamGroup]:
        chosen = self._chosen(denoiser)
        denoiser.requires_grad_(False)
        for name, parameter in chosen.items():
            if not is_plain(parameter):
                raise StError(
                    f"{name!r} is quantized, so it cannot learn by itself",
                    fix='leave out [quantizer], or set adapter.kind to "lora"',
                )
            parameter.requires_grad_(True)
        count = sum(parameter.numel() for parameter in chosen.values())
        total = sum(parameter.numel() for parameter in denoiser.parameters())
        self.note = f"{count:,} of {total:,} weights learn"
        return [{"params": list(chosen.values()), "name": "denoiser"}]

    def state(self, denoiser: nn.Module) -> Mapping[str, Tensor]:
        return {name: parameter for name, parameter in denoiser.named_parameters() if parameter.requires_grad}

    def load(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        restore(self.state(denoiser), state, "the denoiser")

    def export(
        self, family: ModelFamily[Any], denoiser: nn.Module, directory: Path, metadata: Mapping[str, str]
    ) -> Path:
        import shutil

        folder, partial = directory / FOLDER, directory / f".{FOLDER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        family.save_checkpoint(denoiser, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        return folder

    def _chosen(self, denoiser: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(denoiser.named_parameters())
        for option, patterns in (("train", self.options.train), ("freeze", self.options.freeze)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in parameters):
                    raise StError(
                        f"adapter.{option} = {pattern!r} names no weight of {type(denoiser).__name__}",
                        why=f"weights have names such as {', '.join(map(repr, list(parameters)[:3]))}",
                        fix="use * for what may differ, as in '*.bias'",
                    )
        wanted = self.options.train or ("*",)
        chosen = {
            name: parameter
            for name, parameter in parameters.items()
            if any(fnmatchcase(name, one) for one in wanted)
            and not any(fnmatchcase(name, one) for one in self.options.freeze)
        }
        if not chosen:
            raise StError("adapter.freeze leaves no weight that learns")
        return chosen


def register(register: Registrar) -> None:
    """Training without an adapter."""
    register.add(ADAPTER, "full", FullAdapter, FullOptions)
