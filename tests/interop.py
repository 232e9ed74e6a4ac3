"""Every kind of update in every format against what the programs that read it know: names, parts, shapes.

``python tests/interop.py`` takes Flux, SDXL and Wan at their published sizes, without weights, makes an update of each
kind for every layer, writes it in each format, and looks up every tensor: its layer in the table of the program that
the file is for, and whether its parts are those of a weight with the shape there. What a format refuses, and what its
plan says a program passes over, stands beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import interop_tables as tables
import torch
from torch import Tensor, nn

from st import AdapterFormat, LoraShape, Planned, StError
from st.model.files.formats import shape_of

RANK = 4
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A family at its published size. table: the makers' layers. dotted: how ComfyUI names them beside that."""

    denoiser: nn.Module
    formats: Mapping[str, AdapterFormat]
    table: Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of update. parts: what lies beside a layer with a weight of this shape. of: whether they tell of it."""

    planned: Planned
    parts: Callable[[Shape], dict[str, Shape]]
    of: Callable[[Mapping[str, Shape], Shape], bool]


def _lora(shape: Shape) -> dict[str, Shape]:
    ones = tuple(1 for _ in shape[2:])
    return {"lora_A.weight": (RANK, *shape[1:]), "lora_B.weight": (shape[0], RANK, *ones)}


def _dora(shape: Shape) -> dict[str, Shape]:
    magnitude = (shape[0],) if len(shape) == 2 else (1, shape[0], *(1 for _ in shape[2:]))
    return {**_lora(shape), "lora_magnitude_vector": magnitude}


def _flat(shape: Shape) -> int:
    return torch.Size(shape[1:]).numel()


def _loha(shape: Shape) -> dict[str, Shape]:
    halves = {f"hada_w{n}_a": (shape[0], RANK) for n in (1, 2)} | {f"hada_w{n}_b": (RANK, _flat(shape)) for n in (1, 2)}
    return {**halves, "alpha": ()}


def _lokr(shape: Shape) -> dict[str, Shape]:
    factors = {"lokr_w2_a": (shape[0] // 2, RANK), "lokr_w2_b": (RANK, _flat(shape) // 2)}
    return {"lokr_w1": (2, 2), **factors, "alpha": ()}


def _glora(shape: Shape) -> dict[str, Shape]:
    first = {"a1.weight": (shape[1], RANK), "a2.weight": (RANK, shape[1])}
    return {**first, "b1.weight": (shape[0], RANK), "b2.weight": (RANK, shape[1]), "alpha": ()}


def _is_of(first: str, last: str) -> Callable[[Mapping[str, Shape], Shape], bool]:
    """Whether two tensors tell of a weight's outputs, and of its inputs with the kernel."""

    def fits(parts: Mapping[str, Shape], shape: Shape) -> bool:
        down = parts[last]
        return parts[first][0] == shape[0] and torch.Size(down[1:]).numel() == _flat(shape)

    return fits


def _ends(parts: Mapping[str, Shape], shape: Shape) -> bool:
    up = "lora_up.weight" if "lora_up.weight" in parts else "lora_B.weight"
    down = "lora_down.weight" if "lora_down.weight" in parts else "lora_A.weight"
    return _is_of(up, down)(parts, shape) and parts[up][1] == parts[down][0]


KINDS: Mapping[str, Kind] = {
    "lora": Kind(Planned("lora"), _lora, _ends),
    "dora": Kind(Planned("lora", frozenset({"dora"})), _dora, lambda p, s: _ends(p, s) and p["dora_scale"][0] == s[0]),
    "loha": Kind(Planned("loha"), _loha, _is_of("hada_w1_a", "hada_w2_b")),
    "lokr": Kind(
        Planned("lokr"),
        _lokr,
        lambda p, s: 2 * p["lokr_w2_a"][0] == s[0] and 2 * p["lokr_w2_b"][1] == _flat(s),
    ),
    "glora": Kind(Planned("glora"), _glora, lambda p, s: p["b1.weight"][0] == s[0] and p["a1.weight"][0] == s[1]),
    "full": Kind(Planned("full"), lambda s: {"diff": s, "diff_b": s[:1]}, lambda p, s: p["diff"] == s),
    "diag-oft": Kind(
        Planned("diag-oft"),
        lambda s: {"oft_blocks": (s[0] // 2, 2, 2), "alpha": ()},
        lambda p, s: p["oft_blocks"][0] * p["oft_blocks"][1] == s[0],
    ),
    "boft": Kind(
        Planned("boft"),
        lambda s: {"oft_blocks": (1, s[0] // 2, 2, 2), "alpha": ()},
        lambda p, s: p["oft_blocks"][1] * p["oft_blocks"][2] == s[0],
    ),
    "norm": Kind(Planned("norm"), lambda s: {"w_norm": s, "b_norm": s}, lambda p, s: p["w_norm"] == s),
    "ia3": Kind(
        Planned("ia3"),
        lambda s: {"ia3.weight": (s[0], *(1 for _ in s[1:])), "on_input": ()},
        lambda p, s: p["weight"][0] == s[0],
    ),
}


def update(model: Model, kind: str) -> tuple[dict[str, Tensor], LoraShape]:
    """An update of this kind for every layer that can have one, on the meta device."""
    state = {}
    for path, weight in weights(model.denoiser, norms=kind == "norm").items():
        for part, shape in KINDS[kind].parts(tuple(weight.shape)).items():
            state[f"{path}.{part}"] = torch.empty(shape, device="meta")
    return state, shape_of(state, {})


def weights(denoiser: nn.Module, *, norms: bool) -> dict[str, Tensor]:
    """By path, of the layers that updates are for, or of normalisations with weights."""
    layers = (nn.Linear, nn.Conv2d, nn.Conv3d)
    found = {}
    for path, module in denoiser.named_modules():
        weight = getattr(module, "weight", None)
        wanted = isinstance(module, (nn.LayerNorm, nn.GroupNorm)) if norms else isinstance(module, layers)
        if wanted and isinstance(weight, Tensor):
            found[path] = weight
    return found


def known(program: str, model: Model) -> dict[str, Shape]:
    """What a program calls the layers of a model in adapter files, and the shapes of their weights."""
    makers = {f"lora_unet_{path.replace('.', '_')}": shape for path, shape in model.table.items()}
    ours = {
        path: tuple(one.shape) for norms in (False, True) for path, one in weights(model.denoiser, norms=norms).items()
    }
    if program in ("kohya", "musubi"):
        return makers
    if program == "diffusers":
        return {f"{head}.{path}": shape for path, shape in ours.items() for head in ("transformer", "unet")}
    dotted = {f"diffusion_model.{path}": shape for path, shape in model.table.items()}
    by_path = {f"transformer.{path}": shape for path, shape in ours.items()}
    flat = {
        f"{head}_{path.replace('.', '_')}": shape for path, shape in ours.items() for head in ("lora_unet", "lycoris")
    }
    return {**makers, **dotted, **by_path, **flat}


def faults(model: Model, program: str, kind: str) -> Iterator[str]:
    """What is wrong with a file. Raises StError where the format refuses it, on the plan or in writing."""
    layout, asked = model.formats[program], KINDS[kind]
    paths = tuple(weights(model.denoiser, norms=kind == "norm"))
    planned = Planned(asked.planned.kind, asked.planned.extras, paths)
    refused = layout.refusals([planned])
    if refused:
        raise StError(refused[0])
    tensors, _ = layout.to_file(*update(model, kind))
    names = known(program, model)
    layers: dict[str, dict[str, Shape]] = {}
    for key, tensor in tensors.items():
        stem = next((name for name in _heads(key) if name in names), "")
        if not stem:
            yield f"{key} is no layer that {program} knows"
        else:
            layers.setdefault(stem, {})[key[len(stem) + 1 :]] = tuple(tensor.shape)
    for stem, parts in layers.items():
        if program == "diffusers" and kind == "dora":
            parts = {**parts, "dora_scale": (max(parts["lora_magnitude_vector"]),)}
        if not asked.of(parts, names[stem]):
            yield f"{stem} has {parts}, and its weight is {names[stem]}"


def _heads(key: str) -> Sequence[str]:
    """Beginnings of a key, longest first."""
    words = key.split(".")
    return [".".join(words[:count]) for count in range(len(words) - 1, 0, -1)]


def models() -> Iterator[tuple[str, Callable[[], Model]]]:
    """Each family at its published size."""
    yield "flux", flux
    yield "sdxl", sdxl
    yield "wan", wan


def flux() -> Model:
    from diffusers import FluxTransformer2DModel

    from st_flux.family import Flux
    from st_flux.flavours import FluxOptions

    with torch.device("meta"):
        denoiser: Any = FluxTransformer2DModel(guidance_embeds=True)
    return Model(denoiser, Flux(FluxOptions()).adapter_formats(), tables.flux())


def wan() -> Model:
    from diffusers import WanTransformer3DModel

    from st_wan.formats import formats

    with torch.device("meta"):
        denoiser: Any = WanTransformer3DModel(in_channels=36, image_dim=1280, added_kv_proj_dim=5120)
    return Model(denoiser, formats(both=False), tables.wan())


def sdxl() -> Model:
    from diffusers import UNet2DConditionModel

    from st_sdxl.files import unet_formats

    build: Any = UNet2DConditionModel
    with torch.device("meta"):
        unet = build(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )

    def paths() -> list[str]:
        return [path for path, _ in unet.named_modules()]

    return Model(unet, unet_formats(paths, kohya_original=True), tables.sdxl())


def main() -> int:
    """0 where every tensor of every file has its place."""
    failed = 0
    print(f"{'family':8}{'format':11}{'kind':10}{'tensors':>8}  ")
    for family, build in models():
        model = build()
        for program in model.formats:
            for kind, one in KINDS.items():
                count = len(update(model, kind)[0])
                try:
                    wrong = list(faults(model, program, kind))
                except StError as error:
                    print(f"{family:8}{program:11}{kind:10}{'':>8}  refused: {error.what}")
                    continue
                said = "; ".join(model.formats[program].caveats([one.planned]))
                failed += bool(wrong)
                print(f"{family:8}{program:11}{kind:10}{count:8}  {f'FAILS: {wrong[0]}' if wrong else said or 'read'}")
    print(f"{failed} of the files would not be read as they were meant")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
