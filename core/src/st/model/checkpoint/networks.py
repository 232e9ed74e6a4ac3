"""Networks: the parts of a checkpoint, loaded whole or not at all, and without running any code that lies in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.errors import StError
from st.jsonfile import read_object
from st.model.checkpoint.checkpoint_folder import ANY
from st.model.checkpoint.quiet import quietly

if TYPE_CHECKING:
    import torch

    from st.model.checkpoint.checkpoint_folder import CheckpointFolder

MOST_LAYERS = 1000
"""More layers than any network has; a configuration that says so would be built for minutes before it fails."""

FOREIGN = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)
"""What a foreign configuration makes a constructor raise; a device that is full is no fault of it."""

WIDEST = 1_000_000
"""Wider than any layer is; weights of such a layer would be made up for minutes before they fail to load."""

_WIDTHS = re.compile(r"d_\w+|(\w+_)?(hidden_size|intermediate_size|dim|channels|width)")
_LAYERS = re.compile(r"(num_|n_)?(\w+_)?(layers|blocks|depth)(_\w+)?")


def load_network(
    kind: Any,
    folder: Path,
    what: str,
    *,
    dtype: torch.dtype | None = None,
    variant: str = "",
    device: torch.device | None = None,
) -> Any:
    """A network of diffusers or transformers with all of its weights.

    kind: its class. what: for messages, "model.checkpoint = 'x': its 'vae'". variant: of its files, where it has such.
    device: where its weights go, one tensor at a time, so that memory of the host never holds a converted copy of more
    than one for a device that has memory of its own; diffusers' networks only. On the host where None.
    Raises StError for weights that are missing or not finite, and for whatever a configuration or a file has that no
    network of this kind can be made of.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    from st.model.checkpoint.soundness import require_numbers

    check_config(folder, what)
    chosen = variant if variant and any(f".{variant}." in path.name for path in folder.glob("*.safetensors")) else None
    given = {**_untrusted(kind), **({} if dtype is None else {"dtype": dtype})}
    straight = device is not None and device.type != "cpu"
    if straight:
        given["device_map"] = {"": device}
    try:
        with quietly():
            network, loading = kind.from_pretrained(
                folder, variant=chosen, use_safetensors=True, output_loading_info=True, **given
            )
    except torch.OutOfMemoryError:
        raise
    except (*FOREIGN, SafetensorError, StrictDataclassError) as error:
        if straight:
            # On the way to a device a weight that is missing is an error of its own; on the host it has a name.
            return load_network(kind, folder, what, dtype=dtype, variant=variant)
        raise _unusable(what, f"{type(error).__name__}: {error}".splitlines()[0]) from error
    if absent := sorted(loading["missing_keys"]):
        # They would be made up of random numbers.
        raise _unusable(what, f"{len(absent)} of its weights are not there, such as {absent[0]!r}")
    # Whoever finds it takes the network for one that is spread over devices, and moves it.
    vars(network).pop("hf_device_map", None)
    if dtype != torch.float16:
        # Numbers that are fine in the file may not be in float16; what that spoils is named where it is computed.
        require_numbers(network, what)
    return network


def load_component(folder: CheckpointFolder, name: str, dtype: torch.dtype) -> Any:
    """A part of a checkpoint: a network with all of its weights, a tokenizer, a scheduler. Raises StError.

    A processor of texts and pictures that stands as a tokenizer is its tokenizer: captions need no more. Any other cuts
    pictures up with Pillow, whatever else is installed.
    """
    from torch import nn
    from transformers import ProcessorMixin

    if is_wrapped(folder, name):
        return unwrapped_tokenizer(folder, name)
    kind = component_class(folder, name)
    place, what = folder.root([name]) / name, f"model.checkpoint = {folder.location!r}: its {name!r}"
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return load_network(kind, place, what, dtype=dtype, variant=folder.variant)
    if isinstance(kind, type) and issubclass(kind, ProcessorMixin):
        return _load_processor(kind, place, what)
    return _load_plain(kind, place, what)


def is_wrapped(folder: CheckpointFolder, name: str) -> bool:
    """Whether a tokenizer stands inside of a processor, which is known by the class's name alone."""
    return name.startswith("tokenizer") and folder.components().get(name, "").endswith("Processor")


def unwrapped_tokenizer(folder: CheckpointFolder, name: str) -> Any:
    """The tokenizer inside of a processor. It answers as the processor also to who asks that for its ``tokenizer``."""
    tokenizer = load_tokenizer(folder, name)
    tokenizer.tokenizer = tokenizer
    return tokenizer


def load_tokenizer(folder: CheckpointFolder, name: str) -> Any:
    """A checkpoint's tokenizer, of whatever class. Raises StError for one that only its own code could make."""
    from transformers import AutoTokenizer

    place = folder.root([name]) / name
    kind: Any = AutoTokenizer
    if not folder.parts and folder.index()[name][0] not in (None, "transformers"):
        # Some pipelines of diffusers bring a class of their own, which transformers knows nothing of.
        kind = component_class(folder, name)
    return _load_plain(kind, place, f"model.checkpoint = {folder.location!r}: its {name!r}")


def component_class(folder: CheckpointFolder, name: str) -> Any:
    """The class of a part, which is one of diffusers or transformers. Raises StError for any other."""
    import diffusers
    import transformers

    library, kind = folder.entry(name)
    homes = {"diffusers": diffusers, "transformers": transformers}
    home = homes.get(str(library)) or getattr(diffusers.pipelines, str(library), None)
    if library == ANY:
        home = next((one for one in homes.values() if hasattr(one, str(kind))), None)
    found = getattr(home, str(kind), None) if home is not None else None
    if found is None or not hasattr(found, "from_pretrained"):
        raise StError(
            f"model.checkpoint = {folder.location!r}: its {name!r} is {kind!r} of {library!r}, which is not known",
            why="only classes of diffusers and transformers are loaded",
            fix="name another checkpoint, or update these libraries",
        )
    return found


def check_config(folder: Path, what: str) -> None:
    """Raises StError for a configuration that cannot be read, or that asks for more layers than there can be."""
    file = folder / "config.json"
    if not file.is_file():
        return
    try:
        config = read_object(file)
    except (OSError, ValueError) as error:
        raise _unusable(what, f"{file.name}: {error}") from error
    for name, value in _leaves(config):
        if isinstance(value, int) and value > MOST_LAYERS and _LAYERS.fullmatch(name):
            raise _unusable(what, f"{file.name} says {name} = {value}, and no network has more than {MOST_LAYERS}")
        if isinstance(value, int) and value > WIDEST and _WIDTHS.fullmatch(name):
            raise _unusable(what, f"{file.name} says {name} = {value}, and no layer is wider than {WIDEST}")


def _load_plain(kind: Any, folder: Path, what: str, **given: str) -> Any:
    """Something without weights. Nothing that lies in the folder is run, and nobody is asked whether it may be."""
    try:
        with quietly():
            return kind.from_pretrained(folder, **_untrusted(kind), **given)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
        raise _unusable(what, f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _load_processor(kind: Any, folder: Path, what: str) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer

    def begin(self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        kind.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    # Its parts are what its constructor names. Without torchvision there is no part for videos, and none is shown.
    without_videos = type(kind.__name__, (kind,), {"__init__": begin})
    tokenizer = _load_plain(AutoTokenizer, folder, what)
    cutter = _load_plain(AutoImageProcessor, folder, what, backend="pil")
    return without_videos(cutter, tokenizer, chat_template=tokenizer.chat_template)


def _untrusted(kind: Any) -> dict[str, bool]:
    """transformers asks on the terminal where this is left open; diffusers takes its own classes only."""
    return {"trust_remote_code": False} if str(kind.__module__).startswith("transformers") else {}


def _leaves(value: Any, name: str = "") -> Any:
    """(name, value) of everything in a configuration, those in lists under the list's name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value


def _unusable(what: str, why: str) -> StError:
    return StError(f"{what} cannot be used", why=why, fix="load it again from where it came from, or name another")
