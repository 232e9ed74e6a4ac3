"""Files in several formats, and files that other programs wrote under the denoiser's own paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from st import AdapterFormat, LoraShape, Planned, StError, comfyui_format
from st.model.adapters.adapter_start import read_known
from st.model.files.adapter_file import layout_caveats, layout_problems, read_adapter_file, try_layouts, write_layouts
from st.model.files.own_updates import Difference, LowRank
from st.model.files.update_kinds import kind_of

PATHS = ["blocks.0.attn.to_q", "blocks.0.attn.to_out.0", "proj_out"]


class Refusing(AdapterFormat):
    """Holds nothing."""

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        raise StError("it holds nothing", fix="name another")

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        raise StError("it reads nothing")

    def refusals(self, planned: object) -> list[str]:
        return ["it is made so"]


FORMATS: dict[str, AdapterFormat] = {"none": Refusing(), "comfyui": comfyui_format()}


def an_adapter() -> tuple[dict[str, Tensor], LoraShape]:
    state = {f"{path}.lora_A.weight": torch.randn(2, 6) for path in PATHS}
    state |= {f"{path}.lora_B.weight": torch.randn(5, 2) for path in PATHS}
    return state, LoraShape(dict.fromkeys(PATHS, 2), dict.fromkeys(PATHS, 1.0))


def test_a_format_that_fails_costs_no_other(tmp_path: Path) -> None:
    with pytest.raises(StError, match=r"it holds nothing; .*adapter-comfyui.safetensors is written"):
        write_layouts(tmp_path, ["none", "comfyui"], FORMATS, an_adapter(), {})

    tensors, _ = read_adapter_file(tmp_path / "adapter-comfyui.safetensors")
    assert len(tensors) == 3 * len(PATHS)


def test_what_a_format_cannot_hold_is_found_before_training() -> None:
    with pytest.raises(StError, match=r"adapter.format = 'none' cannot hold this adapter: it holds nothing"):
        try_layouts(["comfyui", "none"], FORMATS, an_adapter())


def test_refusals_are_problems_and_caveats_name_their_format() -> None:
    planned = [Planned("ia3")]

    refused, unknown = layout_problems(["none", "comfyui", "koya"], FORMATS, planned)

    assert (refused.where, refused.why) == ("adapter.format", "it is made so")
    assert "this family writes none, comfyui" in unknown.what
    (caveat,) = layout_caveats(["comfyui", "none"], FORMATS, planned)
    assert caveat.startswith("adapter.format = 'comfyui': ComfyUI passes over ia3")


FOREIGN = {
    "raw peft": lambda path, part: f"base_model.model.{path}.{part}",
    "peft with an adapter's name": lambda path, part: f"{path}.{part.replace('.weight', '.default.weight')}",
    "OneTrainer": lambda path, part: f"lora_transformer_{path.replace('.', '_')}.{part}",
    "the library": lambda path, part: f"lycoris_{path.replace('.', '_')}.{part}",
}


@pytest.mark.parametrize("program", FOREIGN)
def test_files_by_the_denoisers_paths_are_read(program: str) -> None:
    state, _ = an_adapter()
    tensors = {FOREIGN[program](*split(key)): tensor for key, tensor in state.items()}

    found, shape = read_known(tensors, {}, FORMATS.values(), lambda: PATHS)

    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert shape.alphas == dict.fromkeys(PATHS, 2.0)


def test_a_file_of_other_layers_is_refused() -> None:
    tensors = {"lora_unet_somewhere.lora_down.weight": torch.ones(2, 2)}

    with pytest.raises(StError, match="belong nowhere, such as 'lora_unet_somewhere"):
        read_known(tensors, {}, [comfyui_format()], lambda: PATHS)


def test_a_bias_beside_an_update_does_not_change_its_kind() -> None:
    kinds = {"full": Difference(), "lora": LowRank()}

    assert kind_of({"lora_A.weight", "lora_B.weight", "diff_b"}, kinds) == "lora"
    assert kind_of({"diff_b"}, kinds) == "full"
    assert kind_of({"hada_w1_a"}, kinds) == ""


def split(key: str) -> tuple[str, str]:
    path, _, part = key.partition(".lora_")
    return path, f"lora_{part}"
