"""A file of LyCORIS settings means here what it means to the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris

from st.errors import StError
from st.testing import TinyFamily
from st_lycoris import LycorisAdapter, LycorisOptions
from st_lycoris.modules import modules, quiet
from st_lycoris.preset import read_preset

Upstream = Any
Facts = tuple[str, tuple[Any, ...], float]

FLUX = {
    "algo": "lokr",
    "bypass_mode": True,
    "multiplier": 1.0,
    "linear_dim": 3,
    "linear_alpha": 1,
    "factor": 4,
    "apply_preset": {
        "target_module": ["FluxAttention", "FeedForward"],
        "module_algo_map": {
            "FluxAttention": {"factor": 8},
            "FeedForward": {"algo": "loha", "dim": 2},
            "GELU": {"algo": "locon", "dim": 5},
        },
    },
}
UNET = {
    "algo": "lora",
    "linear_dim": 4,
    "linear_alpha": 2,
    "conv_dim": 3,
    "conv_alpha": 1,
    "apply_preset": {
        "enable_conv": True,
        "target_module": ["Transformer2DModel", "ResnetBlock2D"],
        "target_name": ["conv_in", "down_blocks.*downsamplers.*conv"],
        "name_algo_map": {"time_embedding.linear_1": {"algo": "full"}, "conv_out": {"dim": 2}},
        "exclude_name": ["up_blocks.*conv1"],
        "use_fnmatch": True,
    },
}
REGULAR = {
    "algo": "loha",
    "linear_dim": 2,
    "linear_alpha": 1,
    "train_norm": True,
    "apply_preset": {"enable_conv": False, "target_module": ["ResnetBlock2D"], "exclude_name": [r"up_blocks\.0"]},
}

WHOLE = {
    "algo": "lokr",
    "bypass_mode": True,
    "multiplier": 1.0,
    "full_matrix": True,
    "linear_dim": 10000,
    "linear_alpha": 1,
    "factor": 4,
    "apply_preset": {
        "target_module": ["FluxAttention", "FeedForward"],
        "module_algo_map": {"FeedForward": {"factor": 8, "dim": 10000}},
    },
}


def written(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "lycoris_config.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return str(file)


def by_the_library(denoiser: torch.nn.Module, settings: dict[str, Any]) -> dict[str, Facts]:
    """(class, shapes, scale) by name, of the network that the library makes."""
    root = {name: value for name, value in settings.items() if name != "apply_preset"}
    before = {name: getattr(LycorisNetwork, name) for name in vars(LycorisNetwork) if name.isupper()}
    try:
        with quiet():
            # What create_lycoris would set by itself: only this, of its built-in presets.
            network = create_lycoris(denoiser, preset=_toml(settings["apply_preset"]), **root)
    finally:
        for name, value in before.items():
            setattr(LycorisNetwork, name, value)
    return {one.lora_name: _facts(one) for one in network.loras}


def _toml(scope: dict[str, Any]) -> str:
    import tempfile

    import toml

    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as file:
        toml.dump(scope, file)
    return file.name


def _facts(module: Any) -> Facts:
    name = {"Difference": "FullModule"}.get(type(module).__name__, type(module).__name__)
    shapes = tuple((name, tuple(one.shape)) for name, one in sorted(module.named_parameters()))
    return name, shapes, getattr(module, "scale", 0.0)


@pytest.mark.parametrize(("model", "settings"), [("flux", FLUX), ("flux", WHOLE), ("unet", UNET), ("unet", REGULAR)])
def test_it_gives_every_layer_what_the_library_gives_it(
    request: pytest.FixtureRequest, model: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    upstream: Upstream = request.getfixturevalue(model)
    denoiser = upstream.build()
    LycorisAdapter(LycorisOptions(preset=written(tmp_path, settings))).attach(denoiser, ())

    mine = {f"lycoris_{path.replace('.', '_')}": _facts(module) for path, (_, module) in modules(denoiser).items()}

    assert len(mine) > 5
    assert mine == by_the_library(upstream.build(), settings)


def test_an_alpha_of_zero_is_the_rank(tmp_path: Path) -> None:
    preset = read_preset(written(tmp_path, {"algo": "lokr", "linear_dim": 8, "linear_alpha": 0}))

    assert (preset.default.rank, preset.default.alpha) == (8, None)


def test_a_rotation_does_without_the_alpha_that_every_file_has(tmp_path: Path) -> None:
    preset = read_preset(written(tmp_path, {"algo": "boft", "linear_dim": 8, "linear_alpha": 1}))

    assert preset.default.algo == "boft"
    assert preset.rebuilds


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"algo": "lokr", "factr": 4}, "'factr'"),
        ({"algo": "lokr", "multiplier": 0.5}, "multiplier = 0.5"),
        ({"algo": "lokr", "wd_on_output": False}, "wd_on_output"),
        ({"algo": "loka"}, "algo"),
        ({"algo": "loha", "factor": 4}, "no factor"),
        ({"algo": "lokr", "apply_preset": {"target_modules": []}}, "'target_modules'"),
        ({"algo": "lokr", "apply_preset": {"module_algo_map": {"A": {"algo": "loha", "factor": 1}}}}, "no factor"),
        ({"algo": "lokr", "apply_preset": {"target_name": ["*"]}}, "no regular expression"),
        ([], "no table"),
    ],
)
def test_what_it_cannot_mean_is_named_before_anything_is_loaded(
    flux: Upstream, settings: Any, word: str, tmp_path: Path
) -> None:
    found = LycorisAdapter(LycorisOptions(preset=written(tmp_path, settings))).problems(
        TinyFamily(TinyFamily.Options())
    )

    assert [problem.where for problem in found] == ["adapter.preset"]
    assert word in found[0].what


def test_a_missing_file_is_a_problem() -> None:
    found = LycorisAdapter(LycorisOptions(preset="nowhere.json")).problems(TinyFamily(TinyFamily.Options()))

    assert "no such file" in found[0].what


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ({"target_module": ["FluxAttention", "Feedforward"]}, ("'Feedforward'", "'FeedForward'")),
        ({"target_module": [], "target_name": ["transformer_blocks.7"]}, ("'transformer_blocks.7'",)),
        ({"target_module": ["LayerNorm"]}, ("names no layer",)),
        ({"target_module": ["FluxAttention"], "name_algo_map": {".*to_q": {"dim": 2}}}, ("a class around it",)),
    ],
)
def test_what_names_nothing_is_an_error(
    flux: Upstream, scope: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    adapter = LycorisAdapter(LycorisOptions(preset=written(tmp_path, {"algo": "lokr", "apply_preset": scope})))

    with pytest.raises(StError) as raised:
        adapter.attach(flux.build(), ())

    assert all(word in f"{raised.value.what} {raised.value.why}" for word in words)
