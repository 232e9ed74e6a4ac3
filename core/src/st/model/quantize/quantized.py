"""Quantized: linear layers whose weights are packed, and a network that is made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from st.errors import StError
from st.model.adapters.adapter import is_plain
from st.model.adapters.targets import is_named
from st.model.quantize.quantizer import Quantization

if TYPE_CHECKING:
    from st.model.quantize.quantizer import PackedWeight, Quantizer


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is packed, and made whole for each product, forward and backward.

    It computes what ``nn.Linear`` does with the restored weight, and keeps nothing of that weight for the backward
    pass. Kernels that multiply packed weights are made for few tokens at a time; a training step has thousands, where
    restoring costs less than the product, and every device can do it.
    """

    def __init__(self, layer: nn.Linear, packed: PackedWeight) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._restore = packed.restore
        self._parts = {name: f"packed_{name}" for name in packed.parts}
        for name, part in packed.parts.items():
            self.register_buffer(self._parts[name], part, persistent=False)
        bias: nn.Parameter | None = layer.bias
        self.register_parameter("bias", bias)
        if bias is None:
            # Empty. Pipelines read a network's dtype off its first parameter, which would be an adapter's.
            self.dtype_of_weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in), restored; it cannot be changed."""
        with torch.no_grad():
            return self._restore(self.parts)

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """The packed weight."""
        return {name: getattr(self, buffer) for name, buffer in self._parts.items()}

    def forward(self, input: Tensor) -> Tensor:
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
        product: Tensor = _Product.apply(input, bias, self)  # type: ignore[no-untyped-call]
        return product

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> QuantizedLinear:
        """Parts go to other devices, and never change their dtype: their scales would lose what they hold."""
        before = {buffer: getattr(self, buffer) for buffer in self._parts.values()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for buffer, part in before.items():
            moved = getattr(self, buffer)
            if moved.dtype != part.dtype:
                setattr(self, buffer, part.to(moved.device))
        return self


class _Product(torch.autograd.Function):
    """x W^T + b for a frozen W that the backward pass restores again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        weight = layer.weight
        return nn.functional.linear(x, weight.to(x.dtype) if torch.is_autocast_enabled(x.device.type) else weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        of_x = gradient @ ctx.layer.weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return of_x, of_bias, None


def quantize(network: nn.Module, quantizer: Quantizer, device: torch.device, keep: Sequence[str] = ()) -> Quantization:
    """Pack the linear layers of a frozen network in place, and move all of it to ``device``.

    The network comes on the CPU: one layer at a time is moved and packed there, so that it is never whole on the
    device. keep: layers that stay, by the end of their path or of one above them.
    """
    done = Quantization(quantizer.kind, type(network).__name__, size_bytes_before=_size_bytes(network))
    done.all_weights = sum(parameter.numel() for parameter in network.parameters())
    shared = _shared_weights(network)
    linear = _linear_layers(network)
    done.linear = len(linear)
    done.others = _others(network)
    for paths in linear:
        layer: Any = network.get_submodule(paths[0])
        reason = _reason_to_stay(layer, paths, quantizer, keep, shared)
        if reason:
            done.left.setdefault(reason, []).append(paths[0])
            continue
        done.layers, done.weights = done.layers + 1, done.weights + layer.weight.numel()
        with torch.no_grad():
            small = QuantizedLinear(layer, quantizer.pack(layer.weight.detach().to(device)))
        for path in paths:
            network.set_submodule(path, small)
    network.to(device).requires_grad_(False)
    done.size_bytes = _size_bytes(network)
    return done


def check_kept(network: nn.Module, keep: Sequence[str]) -> None:
    """Raises StError for what names no linear layer of this network."""
    paths = [paths[0] for paths in _linear_layers(network)]
    for pattern in keep:
        if not any(_is_within(path, pattern) for path in paths):
            raise StError(
                f"quantizer.keep = {pattern!r} names no linear layer of {type(network).__name__}",
                why=f"layers have names such as {', '.join(map(repr, paths[:3]))}" if paths else "",
                fix="name the end of a layer's path, or use * for what may differ",
            )


def _linear_layers(network: nn.Module) -> list[list[str]]:
    """The paths of each linear layer: one may be in several places."""
    found: dict[int, list[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        if path and isinstance(module, nn.Linear):
            found.setdefault(id(module), []).append(path)
    return list(found.values())


def _reason_to_stay(
    layer: nn.Linear, paths: Sequence[str], quantizer: Quantizer, keep: Sequence[str], shared: set[int]
) -> str:
    if any(_is_within(path, pattern) for path in paths for pattern in keep):
        return "to be kept"
    if type(layer) is not nn.Linear or not is_plain(layer.weight):
        return f"of class {type(layer).__name__}"
    if id(layer.weight) in shared:
        return "whose weight another module shares"
    if layer.weight.numel() < quantizer.options.smallest:
        return f"of fewer than {quantizer.options.smallest} weights"
    return quantizer.unfit((layer.out_features, layer.in_features))


def _is_within(path: str, pattern: str) -> bool:
    """Whether a pattern names this module or one that it is part of."""
    parts = path.split(".")
    return any(is_named(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _shared_weights(network: nn.Module) -> set[int]:
    """Weights that more than one module holds, such as an embedding that is an output layer too."""
    held = Counter(id(parameter) for _, parameter in _own_parameters(network))
    return {one for one, count in held.items() if count > 1}


def _others(network: nn.Module) -> dict[str, int]:
    """How many modules hold weights and are no linear layers, by class, the most frequent first."""
    owners = {id(module): module for module, _ in _own_parameters(network) if not isinstance(module, nn.Linear)}
    return dict(Counter(type(module).__name__ for module in owners.values()).most_common())


def _own_parameters(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            yield module, parameter


def _size_bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
