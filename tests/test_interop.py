"""A sample of ``nox -s interop``, and what independent readers make of files of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import interop
import interop_readers as readers
import pytest
import torch
from torch import Tensor, nn

from st import AdapterFormat, Planned
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.adapter_file import read_adapter_file
from st_flux.formats import KOHYA
from st_lycoris import LycorisAdapter, LycorisOptions
from st_wan.formats import formats

LAYERS = {"blocks.0.attn1.to_q": "self_attn.q", "blocks.0.ffn.net.2": "ffn.2"}


@pytest.mark.parametrize("kind", ["lora", "lokr", "norm"])
@pytest.mark.parametrize("program", ["musubi", "comfyui"])
def test_every_tensor_of_a_large_model_has_its_place(program: str, kind: str) -> None:
    assert list(interop.faults(interop.wan(), program, kind)) == []


def test_every_layer_of_the_table_is_reached() -> None:
    model = interop.flux()

    tensors, _ = model.formats["kohya"].to_file(*interop.update(model, "lora"))

    assert {key.partition(".")[0] for key in tensors} == set(interop.known("kohya", model))


class Denoiser(nn.Module):
    """Two layers with the paths of Wan's."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(12, 16)})})
        block["ffn"] = nn.ModuleDict({"net": nn.ModuleList([nn.Identity(), nn.Identity(), nn.Linear(8, 8)])})
        self.blocks = nn.ModuleList([block])


def answers(layer: nn.Module, inputs: int) -> Tensor:
    """The weight with which a layer answers, (out, in), whatever changes it."""
    with torch.no_grad():
        whole: Tensor = layer(torch.eye(inputs)) - layer(torch.zeros(1, inputs))
    return whole.T


CASES: dict[str, dict[str, Any]] = {
    "locon": {"algo": "locon", "rank": 4, "alpha": 2.0},
    "dylora": {"algo": "dylora", "rank": 4, "block_size": 2, "alpha": 3.0},
    "loha": {"algo": "loha", "rank": 3, "alpha": 2.0},
    "lokr": {"algo": "lokr", "rank": 1, "alpha": 3.0, "factor": 2},
    "lokr of whole factors": {"algo": "lokr", "full_matrix": True, "factor": 2},
    "lokr of two products": {"algo": "lokr", "rank": 1, "alpha": 0.5, "factor": 4, "decompose_both": True},
    "glora": {"algo": "glora", "rank": 2, "alpha": 1.0},
    "full": {"algo": "full"},
    "diag-oft": {"algo": "diag-oft", "rank": 4},
    "diag-oft with a constraint": {"algo": "diag-oft", "rank": 4, "constraint": 0.01},
    "boft": {"algo": "boft", "rank": 4},
    "boft with a constraint": {"algo": "boft", "rank": 4, "constraint": 0.01},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", ["comfyui", "musubi"])
def test_the_change_in_a_file_is_the_change_that_was_trained(tmp_path: Path, name: str, layout: str) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser()
    before = {path: denoiser.get_submodule(path).weight.detach().clone() for path in LAYERS}
    adapter = LycorisAdapter(LycorisOptions(format=layout, **CASES[name]))
    adapter.attach(denoiser, tuple(LAYERS), formats(both=False))
    with torch.no_grad():
        for parameter in adapter.state(denoiser).values():
            parameter.add_(torch.randn(parameter.shape) * 0.3)

    file = adapter.export(None, denoiser.eval(), tmp_path, {})  # type: ignore[arg-type]

    written = by_layer(read_adapter_file(file)[0], layout)
    assert written.keys() == LAYERS.keys()
    for path, parts in written.items():
        weight = before[path]
        expected = answers(denoiser.get_submodule(path), weight.shape[1]) - weight
        assert expected.abs().max() > 1e-2
        torch.testing.assert_close(readers.comfyui(parts, weight), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{"alpha": 2.0}, {"use_rslora": True}, {"alpha_pattern": {"to_q": 9.0}}])
@pytest.mark.parametrize("layout", ["diffusers", "comfyui", "musubi"])
def test_a_lora_of_any_scale_is_the_change_that_was_trained(
    tmp_path: Path, layout: str, settings: dict[str, Any]
) -> None:
    denoiser = Denoiser()
    before = {path: denoiser.get_submodule(path).weight.detach().clone() for path in LAYERS}
    adapter = LoraAdapter(LoraOptions(rank=4, **settings))
    adapter.attach(denoiser, tuple(LAYERS))
    for parameter in adapter.state(denoiser).values():
        nn.init.normal_(parameter)
    state, shape = adapter.portable(denoiser)

    tensors, _ = formats(both=False)[layout].to_file(state, shape)

    read = readers.diffusers if layout == "diffusers" else readers.comfyui
    for path, parts in by_layer(tensors, layout).items():
        weight = before[path]
        expected = answers(denoiser.get_submodule(path), weight.shape[1]) - weight
        torch.testing.assert_close(read(parts, weight), expected, rtol=0, atol=1e-4)


def by_layer(tensors: Mapping[str, Tensor], layout: str) -> dict[str, dict[str, Tensor]]:
    """Parts by our path, as the layout's program takes a file apart."""
    names = {
        "diffusers": {f"transformer.{path}": path for path in LAYERS},
        "comfyui": {f"diffusion_model.blocks.0.{theirs}": path for path, theirs in LAYERS.items()},
        "musubi": {f"lora_unet_blocks_0_{theirs.replace('.', '_')}": path for path, theirs in LAYERS.items()},
    }[layout]
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        (stem,) = (name for name in names if key.startswith(f"{name}."))
        found.setdefault(names[stem], {})[key.removeprefix(f"{stem}.")] = tensor
    return found


@pytest.mark.parametrize(
    ("layout", "planned", "word"),
    [
        ("musubi", Planned("lora", frozenset({"dora"})), "without dora"),
        ("musubi", Planned("diag-oft"), "passes over diag-oft"),
        ("comfyui", Planned("diag-oft", frozenset({"rescaled"})), "without rescaled"),
        ("comfyui", Planned("ia3"), "passes over ia3"),
        ("comfyui", Planned("lora", frozenset({"dora"})), "norm of the untrained weights"),
        ("comfyui", Planned("lokr", frozenset({"dora"})), "norm of the untrained weights"),
    ],
)
def test_what_a_program_passes_over_is_said(layout: str, planned: Planned, word: str) -> None:
    family_formats: Mapping[str, AdapterFormat] = formats(both=True)

    (said,) = family_formats[layout].caveats([planned])

    assert word in said


def test_a_part_of_a_fused_layer_is_refused_with_the_plan() -> None:
    attention = ("attn.to_q", "attn.to_k", "attn.to_v")
    dora = frozenset({"dora"})

    (why,) = KOHYA.refusals([Planned("lora", dora, attention)])

    assert "single_blocks" not in why
    assert "linear1 stands for to_q, to_k, to_v, proj_mlp" in why
    assert "single_transformer_blocks.0.proj_mlp is not" in why
    assert KOHYA.refusals([Planned("lora", frozenset(), attention)]) == []
    assert KOHYA.refusals([Planned("lora", dora, (*attention, "proj_mlp"))]) == []
    assert "cannot be one update" in KOHYA.refusals([Planned("lokr", frozenset(), ("attn.to_q",))])[0]
