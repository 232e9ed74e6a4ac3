"""Assistant: a frozen adapter that is there while a distilled model is trained, and not when it draws.

Training undoes a distillation into few steps, and pictures of few steps fall apart. An adapter that has already undone
it takes the blame: what is trained beside it learns the pictures only, and works on the model without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.errors import StError
from st.model.adapters.adapter_start import read_known
from st.model.checkpoint.hub import is_repository
from st.model.checkpoint.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st.model.files.formats import AdapterFormat
    from st.model.files.stacking import Update
    from st.notes import Notes

FILE = "pytorch_lora_weights.safetensors"
"""Name of an assistant in a repository, where nothing else is said."""


@dataclass(slots=True)
class Beside:
    """A forward hook that adds a low-rank update to what a linear layer answers. down: (rank, in). up: (out, rank)."""

    down: Tensor
    up: Tensor
    active: bool = True

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self.active:
            return output
        from torch.nn.functional import linear

        update = linear(linear(args[0].to(self.down.dtype), self.down), self.up)
        return output + update.to(output.dtype)


def bring_assistant(
    denoiser: nn.Module, location: str, strength: float, formats: Mapping[str, AdapterFormat], notes: Notes
) -> None:
    """Find the adapter that ``model.assistant`` names, put it beside the denoiser, and say so.

    For a family's ``st_denoiser_loaded``: weights are quantized by then, and nothing learns yet. No location, or a
    strength of 0, is none. Raises StError.
    """
    if location and strength:
        count = add_assistant(denoiser, find_assistant(location), formats, strength)
        notes.note(f"assistant {location!r} beside {count} layers, in training only", kind="assistant")


def find_assistant(location: str) -> Path:
    """The file on this machine: a path, a repository, or one file of it. Raises StError."""
    is_folder = not location.endswith(".safetensors") and not Path(location).expanduser().exists()
    named = f"{location}/{FILE}" if is_folder and is_repository(location) else location
    return Weights(named, setting="model.assistant").file()


def add_assistant(denoiser: nn.Module, file: Path, formats: Mapping[str, AdapterFormat], strength: float) -> int:
    """Put an adapter file beside the layers of a denoiser, quantized or not; how many. Raises StError if it fits not.

    formats: the family's, any of which the file may be in. Nothing of the denoiser's weights changes, and none of the
    adapter's are its parameters.
    """
    from st.model.files.adapter_file import read_adapter_file
    from st.model.files.stacking import read_updates

    modules = dict(denoiser.named_modules())
    tensors, metadata = read_adapter_file(file)
    updates = read_updates(*read_known(tensors, metadata, formats.values(), lambda: list(modules)))
    foreign = sorted(updates.keys() - modules.keys())
    if foreign or not updates:
        raise StError(
            f"model.assistant: {file.name!r} fits no {type(denoiser).__name__}",
            why=f"{len(foreign)} of its {len(updates)} layers are not there, such as {', '.join(foreign[:3])}",
            fix="name an adapter that was trained on this model",
        )
    like = next(one for one in denoiser.parameters() if one.is_floating_point())
    for path, one in updates.items():
        modules[path].register_forward_hook(_beside(one, like, strength))
    return len(updates)


@contextmanager
def without_assistant(denoiser: nn.Module) -> Iterator[None]:
    """The denoiser as it will be used."""
    resting = [hook for hook in _hooks(denoiser) if hook.active]
    for hook in resting:
        hook.active = False
    try:
        yield
    finally:
        for hook in resting:
            hook.active = True


def _beside(one: Update, like: Tensor, strength: float) -> Beside:
    up = one.up.float() * (one.scale * strength)
    return Beside(one.down.to(like.device, like.dtype), up.to(like.device, like.dtype))


def _hooks(denoiser: nn.Module) -> Iterator[Beside]:
    for module in denoiser.modules():
        hooks: Any = module._forward_hooks.values()
        yield from (hook for hook in hooks if isinstance(hook, Beside))
