"""WithText: a denoiser that learns together with the text encoders that read for it, as one module."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from st.model.checkpoint.networks import check_config, load_component
from st.model.pipelines.text_stack import INSIDE

if TYPE_CHECKING:
    from st.diffusion.objective import Batch, Noised
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder
    from st.model.pipelines.text_stack import Read

    Ask = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    Predict = Callable[[nn.Module, Noised, Batch], Tensor]


class WithText(nn.Module):
    """A denoiser under its component's name, beside its text encoders under theirs.

    Training asks through ``forward``, which is where sharded weights are gathered.
    """

    def __init__(self, name: str, denoiser: nn.Module, encoders: Mapping[str, nn.Module], read: Read) -> None:
        super().__init__()
        self._name, self._encoders, self._read = name, tuple(encoders), read
        for component, module in {name: denoiser, **encoders}.items():
            self.add_module(component, module)

    @property
    def plain(self) -> nn.Module:
        """The denoiser alone."""
        return self.get_submodule(self._name)

    def forward(self, ask: Ask, conditions: Mapping[str, Tensor]) -> Tensor:
        """What ``ask`` answers, given the denoiser and the conditions with what the encoders make of them."""
        return ask(self.plain, self.read(conditions))

    def read(self, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The conditions with what the encoders make of them."""
        encoders = {name: self.get_submodule(name) for name in self._encoders}
        return {**conditions, **self._read(encoders, conditions)}


def plain(denoiser: nn.Module) -> nn.Module:
    """The denoiser without text encoders beside it."""
    return denoiser.plain if isinstance(denoiser, WithText) else denoiser


def predict_with_text(predict: Predict, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
    """A family's ``predict`` of the plain denoiser, asked through the encoders where some learn beside it."""
    if not isinstance(denoiser, WithText):
        return predict(denoiser, noised, batch)

    def ask(alone: nn.Module, conditions: Mapping[str, Tensor]) -> Tensor:
        return predict(alone, noised, replace(batch, conditions=conditions))

    answer: Tensor = denoiser(ask, batch.conditions)
    return answer


def read_text(denoiser: nn.Module, conditions: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Conditions as a pipeline takes them, without gradients; as they are where no text encoder learns."""
    if not isinstance(denoiser, WithText):
        return conditions
    with torch.no_grad():
        return denoiser.read(conditions)


def load_text_encoder(folder: CheckpointFolder, component: str, dtype: torch.dtype) -> nn.Module:
    """One text encoder with its weights."""
    loaded: nn.Module = load_component(folder, component, dtype)
    return loaded


def text_modules(folder: CheckpointFolder, component: str) -> list[str]:
    """Every module path of a text encoder, found without its weights."""
    import transformers

    kind: Any = getattr(transformers, folder.components()[component])
    check_config(folder.root([component]) / component, f"model.checkpoint = {folder.location!r}")
    with torch.device("meta"):
        encoder: nn.Module = kind(kind.config_class(**folder.config(component)))
    return [path for path, _ in encoder.named_modules()]


def save_text_encoder(encoder: nn.Module, directory: Path) -> None:
    """Write a text encoder with the names that every version of transformers, and other programs, read."""
    from safetensors.torch import save_file

    shutil.rmtree(directory, ignore_errors=True)
    config: Any = encoder.config
    config.architectures = [type(encoder).__name__]
    config.save_pretrained(directory)
    named = {
        name if name.startswith((INSIDE, "text_projection")) else f"{INSIDE}{name}": tensor.detach().cpu().contiguous()
        for name, tensor in encoder.state_dict().items()
    }
    save_file(named, directory / "model.safetensors", metadata={"format": "pt"})
