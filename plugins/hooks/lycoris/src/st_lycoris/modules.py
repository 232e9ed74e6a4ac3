"""Modules of the library, made for one layer each and put in front of it."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from lycoris.modules import (  # type: ignore[import-untyped]
    ButterflyOFTModule,
    DiagOFTModule,
    DyLoraModule,
    FullModule,
    GLoRAModule,
    IA3Module,
    LoConModule,
    LohaModule,
    LokrModule,
    LycorisBaseModule,
    NormModule,
    get_module,
    make_module,
)
from torch import Tensor, nn

from st import StError
from st.model.adapters.adapter import is_plain
from st_lycoris.options import USES, Algorithm

CHILD = "lycoris"
"""Name of the module inside of the layer that it changes: there, training mode, devices and engines reach it."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.GroupNorm)


class Difference(FullModule):  # type: ignore[misc]
    """A whole weight beside the frozen one.

    The library's own ``apply_to`` takes the weight off the layer, where other modules look for its dtype, and keeps a
    copy of it in CPU memory; its forward works without either.
    """

    def __init__(self, name: str, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(name, layer, *args, **kwargs)
        self._org_weight = [layer.weight]
        self.org_bias = [layer.bias] if isinstance(layer.bias, Tensor) else None

    def apply_to(self, **kwargs: Any) -> None:
        LycorisBaseModule.apply_to(self, **kwargs)

    def custom_state_dict(self) -> dict[str, Tensor]:
        return {"diff": self.weight} | ({"diff_b": self.bias} if self.bias is not None else {})


class KeyedDyLora(DyLoraModule):  # type: ignore[misc]
    """DyLoRA whose ranks come from torch's generator, and that is whole where it does not train.

    The library asks Python's generator, which recomputation and a resumed run do not restore, in validation too.
    """

    name = "dylora"

    def get_random_rank_weight(self) -> tuple[Tensor, Tensor, Tensor]:
        block = int(torch.randint(self.block_count, ())) if self.training else self.block_count - 1
        weights: tuple[Tensor, Tensor, Tensor] = self.get_weight(block * self.block_size)
        return weights

    def custom_state_dict(self) -> dict[str, Tensor]:
        """The LoRA of full rank. Its readers divide alpha by the rank, DyLoRA by the number of blocks."""
        state: dict[str, Tensor] = super().custom_state_dict()
        up = state["lora_up.weight"]
        return {
            "alpha": state["alpha"] * self.block_size,
            "lora_up.weight": up.reshape(*up.shape, *[1] * (len(self.shape) - 2)),
            "lora_down.weight": state["lora_down.weight"],
        }


CLASSES: Mapping[str, type[LycorisBaseModule]] = {
    "lokr": LokrModule,
    "loha": LohaModule,
    "locon": LoConModule,
    "glora": GLoRAModule,
    "dylora": KeyedDyLora,
    "full": Difference,
    "diag-oft": DiagOFTModule,
    "boft": ButterflyOFTModule,
    "ia3": IA3Module,
    "norm": NormModule,
}
_NAMES = {"use_dora": "weight_decompose", "on_input": "train_on_input"}


def build(path: str, layer: nn.Module, settings: Algorithm) -> LycorisBaseModule:
    """A module that changes nothing yet. Raises StError for a layer that the algorithm does not know."""
    refuse_unfit(path, layer, settings)
    cls, given = CLASSES[settings.algo], settings.settings()
    keywords = {_NAMES.get(name, name): value for name, value in given.items() if name not in {"rank", "alpha"}}
    if "rank" in given:
        keywords["lora_dim"] = settings.rank
    if "alpha" in given:
        alpha = settings.rank if settings.alpha is None else settings.alpha
        # Of one block, not of all of them, as this algorithm counts.
        keywords["alpha"] = alpha / settings.block_size if settings.algo == "dylora" else alpha
    bypass = stands_beside(layer, settings)
    if settings.algo != "norm":
        keywords["bypass_mode"] = bypass
    try:
        with quiet():
            module: LycorisBaseModule = cls(path, layer, **keywords)
    except (ValueError, RuntimeError, TypeError) as error:
        raise StError(
            f"{settings.algo} cannot be made for {path!r}, a {type(layer).__name__}: {error}",
            fix="change adapter.rank, or give that layer other settings in adapter.layers",
        ) from error
    if settings.dropout and not bypass:
        raise StError(
            f"adapter.dropout has no effect on {path!r}, a grouped or dilated {type(layer).__name__}",
            fix="set adapter.dropout to 0, or exclude that layer",
        )
    return module


def perturb(path: str, layer: nn.Module, module: LycorisBaseModule, size: float) -> None:
    """Begin a Kronecker product of whole factors with noise that has the mean and the spread of the layer's weight,
    times ``size``. Raises StError for another module, and for weights that cannot be read."""
    weight: Any = layer.weight
    if not (isinstance(module, LokrModule) and module.use_w1 and module.use_w2 and type(weight.data) is Tensor):
        raise StError(
            f"adapter.init_norm has no effect on {path!r}, a {type(layer).__name__} with {name_of(module)}",
            why="it is for lokr with two whole factors, beside weights that are numbers",
            fix="set adapter.full_matrix = true, or leave out adapter.init_norm",
        )
    deviation, mean = torch.std_mean(weight.detach().float())
    with torch.no_grad():
        module.lokr_w1.fill_(1.0)
        module.lokr_w2.normal_(float(mean), float(deviation)).mul_(size)


def stands_beside(layer: nn.Module, settings: Algorithm) -> bool:
    """Whether the module computes its part beside the layer, rather than the layer's whole weight anew.

    Both give the same, but beside it nothing is rounded to the weight's precision, and the weight may be quantized.
    Rotations and scales of the outputs take the bias with them there, which readers of the file do not. The library's
    own convolutions are made without dilation and groups.
    """
    return not settings.rebuilds and (settings.algo == "ia3" or not _unusual(layer))


def refuse_unfit(path: str, layer: nn.Module, settings: Algorithm) -> None:
    """Raises StError where the library would fail later, or would compute something else than its file says."""
    weight, kind, algo = getattr(layer, "weight", None), type(layer).__name__, settings.algo
    fits = isinstance(layer, NORMS if algo == "norm" else LAYERS)
    if not fits or weight is None or (algo == "norm" and getattr(layer, "bias", None) is None):
        what = "a normalisation with weight and bias" if algo == "norm" else "a linear layer or a convolution"
        raise StError(
            f"{path!r} is a {kind}, and {algo} changes {what}", fix="exclude that layer, or give it another algo"
        )
    if not is_plain(weight) and not stands_beside(layer, settings):
        raise StError(
            f"{path!r} is quantized, and {algo} computes its whole weight anew",
            fix="leave out [quantizer], or use lokr, loha, locon or glora without use_dora",
        )
    if algo == "glora" and getattr(layer, "groups", 1) != 1:
        raise StError(f"{path!r} is a grouped {kind}, which glora does not know", fix="exclude that layer")


def remade(path: str, layer: nn.Module, tensors: Mapping[str, Tensor], stem: str) -> LycorisBaseModule:
    """The module whose tensors a file has under ``stem``, as the library makes it. Raises StError where it does not."""
    mine = {key.removeprefix(f"{stem}."): tensor for key, tensor in tensors.items() if key.startswith(f"{stem}.")}
    cls, parameters = get_module(tensors, stem)
    algo = next((name for name, one in CLASSES.items() if cls is not None and issubclass(one, cls)), "")
    if not algo:
        has = ", ".join(sorted(mine)) or "nothing"
        raise StError(f"{stem!r} is of no algorithm that can be trained here", why=f"it has {has}")
    on_input = bool(mine.get("on_input", torch.tensor(0)))
    changes = {"on_input": on_input} if algo == "ia3" else {"use_dora": "dora_scale" in mine}
    settings = Algorithm.model_validate({"algo": algo, **{name: True for name, value in changes.items() if value}})
    refuse_unfit(path, layer, settings)
    try:
        with quiet(), torch.no_grad():
            if cls is IA3Module:
                # The library's make_module_from_state_dict takes one tensor too few for it, as of 4.1.3.
                module = cls(stem, layer, train_on_input=on_input)
                module.weight.copy_(mine["weight"])
            elif cls is FullModule:
                module = Difference.make_module_from_state_dict(stem, layer, *parameters)
            else:
                module = make_module(cls, parameters, stem, layer)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise StError(f"{stem!r} does not fit {path!r}, a {type(layer).__name__}: {error}") from error
    module.bypass_mode = stands_beside(layer, settings)
    back = module.state_dict()
    if isinstance(module, LokrModule) and module.use_w1 and module.use_w2:
        # Two whole factors have no rank, and so no scale either: alpha says nothing.
        back["alpha"] = mine.get("alpha", back["alpha"])
    wrong = [key for key in sorted(back.keys() | mine.keys()) if not _same(back.get(key), mine.get(key))]
    if wrong:
        raise StError(f"{stem!r} does not fit {path!r}: {', '.join(wrong)} would not be what the file has")
    return module


def refuse_unreadable(path: str, layer: nn.Module, module: LycorisBaseModule) -> None:
    """Raises StError where the library's loader would make something else of the module's file.

    It makes no IA3 at all: those files are read by building the network from its settings and loading weights into it.
    """
    if isinstance(module, IA3Module):
        return
    tensors = {f"{CHILD}.{key}": tensor.detach().cpu() for key, tensor in module.state_dict().items()}
    cls, parameters = get_module(tensors, CHILD)
    why = ""
    try:
        with quiet():
            back = make_module(cls, parameters, CHILD, layer)
        # Of a dynamic rank only the LoRA of full rank is written.
        if not isinstance(module, KeyedDyLora):
            why = _difference(module, back)
    except (RuntimeError, ValueError, AttributeError) as error:
        why = str(error)
    if why:
        raise StError(
            f"a file of these settings could not be read back: {path!r}, {type(module).__name__}",
            why=why,
            fix="leave out adapter.decompose_both, or change adapter.factor",
        )


def install(layer: nn.Module, module: LycorisBaseModule, dtype: torch.dtype) -> None:
    """Put a module in front of its layer, on the layer's device. What it trains is kept in ``dtype``."""
    # The fused kernels are chosen by timing, so a resumed run could round differently; whoever wants them says so.
    os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    module.to(weight.device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(True)
    module.train(layer.training)
    layer.add_module(CHILD, module)
    module.apply_to()
    if not is_plain(weight):
        layer.register_forward_hook(_whole_gradients)


def modules(denoiser: nn.Module) -> dict[str, tuple[nn.Module, LycorisBaseModule]]:
    """(layer, module) by the layer's path, in the denoiser's order."""
    end = f".{CHILD}"
    return {
        path.removesuffix(end): (denoiser.get_submodule(path.removesuffix(end)), module)
        for path, module in denoiser.named_modules()
        if path.endswith(end) and isinstance(module, LycorisBaseModule)
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the library prints and logs while it makes modules; what matters of it is an error here."""
    logger = logging.getLogger("LyCORIS")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


class _Whole(torch.autograd.Function):
    """Nothing forward; backward, a gradient in one piece."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def _whole_gradients(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """A forward hook. optimum-quanto 0.2.7 views its layers' gradients, which fails on one with holes."""
    return _Whole.apply(output)  # type: ignore[no-any-return,no-untyped-call]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return False
    return one.shape == other.shape and torch.equal(one.detach().cpu(), other.to(one.dtype).cpu())


def _difference(module: LycorisBaseModule, back: LycorisBaseModule) -> str:
    mine = {name: tuple(one.shape) for name, one in module.named_parameters() if name != "scalar"}
    theirs = {name: tuple(one.shape) for name, one in back.named_parameters()}
    if mine != theirs:
        name = next(name for name in [*mine, *theirs] if mine.get(name) != theirs.get(name))
        return f"{name!r} is {mine.get(name, 'not')} in this run, and {theirs.get(name, 'not')} in what is read"
    scales = getattr(module, "scale", 1.0), getattr(back, "scale", 1.0)
    return (
        f"the scale is {scales[0]:g} in this run, and {scales[1]:g} in what is read" if scales[0] != scales[1] else ""
    )


def _unusual(layer: nn.Module) -> bool:
    dilation = getattr(layer, "dilation", 1)
    return getattr(layer, "groups", 1) != 1 or any(
        one != 1 for one in (dilation if isinstance(dilation, tuple) else (1,))
    )


def name_of(module: LycorisBaseModule) -> str:
    """The algorithm of a module."""
    return next(name for name, cls in CLASSES.items() if isinstance(module, cls))


def settings_of(module: LycorisBaseModule) -> Algorithm:
    """The settings that give a module of these shapes, for one that was made from a file."""
    algo = name_of(module)
    given: dict[str, object] = {"algo": algo}
    whole = getattr(module, "full_matrix", False)
    if "rank" in USES[algo] and not whole:
        given["rank"] = module.block_size if algo in {"diag-oft", "boft"} else module.lora_dim
    if "alpha" in USES[algo] and not whole:
        given["alpha"] = float(module.alpha)
    for name, value in {
        "full_matrix": whole,
        "use_tucker": getattr(module, "tucker", False),
        "use_dora": getattr(module, "wd", False),
        "constraint": float(module.alpha) if algo in {"diag-oft", "boft"} else 0.0,
        "rescaled": getattr(module, "rescaled", False),
        "on_input": getattr(module, "train_input", False),
    }.items():
        if value and name in USES[algo]:
            given[name] = value
    if algo == "lokr":
        given |= _factors(module)
    return Algorithm.model_validate(given)


def _factors(module: LokrModule) -> dict[str, object]:
    """factor is what divides: the size of the smaller factor on either side."""
    w1 = module.lokr_w1.shape if module.use_w1 else (len(module.lokr_w1_a), module.lokr_w1_b.shape[1])
    return {"factor": max(w1), "decompose_both": not module.use_w1}
