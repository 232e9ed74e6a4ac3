"""Every algorithm begins as nothing, learns, and comes back from its file as it was, in the library's own hands."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from safetensors import safe_open
from safetensors.torch import load_file

from st.errors import StError
from st.testing.runs import call_cli
from st_lycoris import LycorisAdapter, LycorisOptions
from st_lycoris.modules import modules, quiet

Upstream = Any
"""conftest's: this file is imported without it."""

CASES: list[tuple[str, dict[str, Any]]] = [
    ("lokr", {"rank": 2, "alpha": 1}),
    ("lokr", {"full_matrix": True, "factor": 4}),
    ("lokr", {"rank": 2, "use_dora": True}),
    ("lokr", {"rank": 2, "use_scalar": True}),
    ("loha", {"rank": 3, "alpha": 1, "use_tucker": True}),
    ("loha", {"rank": 3}),
    ("locon", {"rank": 3, "alpha": 1}),
    ("locon", {"rank": 3, "use_tucker": True, "dropout": 0.1}),
    ("glora", {"rank": 3, "alpha": 2}),
    ("dylora", {"rank": 4, "block_size": 2}),
    ("full", {"module_dropout": 0.2}),
    ("diag-oft", {"rank": 4, "constraint": 0.01, "rescaled": True}),
    ("boft", {"rank": 4}),
    ("ia3", {}),
    ("ia3", {"on_input": True}),
]


def adapter(algo: str, **settings: Any) -> LycorisAdapter:
    return LycorisAdapter(LycorisOptions(**{"algo": algo, "format": "lycoris", **settings}))


every_case = pytest.mark.parametrize(("algo", "settings"), CASES, ids=lambda one: one if isinstance(one, str) else "")


@pytest.fixture(params=["flux", "unet"])
def upstream(request: pytest.FixtureRequest) -> Upstream:
    found: Upstream = request.getfixturevalue(request.param)
    return found


def by_the_library(upstream: Upstream, file: Path) -> torch.Tensor:
    """What a fresh denoiser says with the file, in the hands of the library alone."""
    fresh = upstream.build()
    with quiet():
        network, _ = create_lycoris_from_weights(1.0, str(file), fresh)
        network.apply_to()
    assert len(network.loras) > 0
    return upstream.ask(fresh)


def from_the_header(upstream: Upstream, file: Path) -> torch.Tensor:
    """What a fresh denoiser says with a network that is built from the file's settings."""
    import json

    with safe_open(file, framework="pt") as opened:
        config = json.loads(opened.metadata()["lycoris_config"])
    scope, fresh = config.pop("apply_preset"), upstream.build()
    before = {name: getattr(LycorisNetwork, name) for name in vars(LycorisNetwork) if name.isupper()}
    try:
        with quiet():
            LycorisNetwork.apply_preset(scope)
            network = create_lycoris(fresh, **config)
    finally:
        for name, value in before.items():
            setattr(LycorisNetwork, name, value)
    network.apply_to()
    missing, unexpected = network.load_state_dict(load_file(file), strict=False)
    assert (missing, unexpected) == ([], [])
    return upstream.ask(fresh)


@every_case
def test_it_learns_and_comes_back(upstream: Upstream, algo: str, settings: dict[str, Any], tmp_path: Path) -> None:
    one, plain = adapter(algo, **settings), upstream.build()
    base = upstream.ask(plain)
    untrained = adapter(algo, **settings)
    untrained.attach(plain, upstream.targets)
    # A magnitude over the norm that it is: rounding. Everything else adds exact zeros.
    tolerance = 2e-6 if settings.get("use_dora") else 0.0
    assert (upstream.ask(plain) - base).abs().max() <= tolerance

    denoiser = upstream.trained(one)
    learned = upstream.ask(denoiser)
    with one.disabled(denoiser):
        assert torch.equal(upstream.ask(denoiser), base)
    assert torch.equal(upstream.ask(denoiser), learned)
    assert (learned - base).abs().max() > 1e-3

    file = one.export(None, denoiser, tmp_path, {"st_steps": "3"})  # type: ignore[arg-type]
    read = from_the_header if algo in {"ia3", "dylora"} else by_the_library
    torch.testing.assert_close(read(upstream, file), learned, atol=1e-5, rtol=0)

    again = upstream.build()
    adapter("lokr", start=str(file)).attach(again, upstream.targets)
    torch.testing.assert_close(upstream.ask(again.eval()), learned, atol=1e-5, rtol=0)


@every_case
def test_it_goes_on_bit_for_bit(flux: Upstream, algo: str, settings: dict[str, Any]) -> None:
    straight, first = flux.build(), flux.build()
    names = []
    ends = []
    for denoiser in (straight, first):
        torch.manual_seed(5)
        one = adapter(algo, **settings)
        optimizer = torch.optim.AdamW(one.attach(denoiser, flux.targets), lr=1e-2)
        flux.train(denoiser, optimizer, 2)
        if denoiser is first:
            kept = copy.deepcopy((dict(one.state(denoiser)), optimizer.state_dict()))
            torch.manual_seed(6)
            denoiser = flux.build()
            one = adapter(algo, **settings)
            optimizer = torch.optim.AdamW(one.attach(denoiser, flux.targets), lr=1e-2)
            one.load(denoiser, kept[0])
            optimizer.load_state_dict(kept[1])
        flux.train(denoiser, optimizer, 2)
        names.append(list(one.state(denoiser)))
        ends.append([tensor.detach().clone() for tensor in one.state(denoiser).values()])

    assert names[0] == names[1]
    assert all(torch.equal(mine, other) for mine, other in zip(*ends, strict=True))


def test_exactly_its_parameters_learn_and_the_base_stays(flux: Upstream) -> None:
    one, before = adapter("full"), flux.build().state_dict()
    denoiser = flux.trained(one)
    state = one.state(denoiser)

    assert {name for name, p in denoiser.named_parameters() if p.requires_grad} == set(state)
    assert all(torch.equal(tensor, denoiser.state_dict()[name]) for name, tensor in before.items())
    assert all(dict(denoiser.named_parameters())[name] is tensor for name, tensor in state.items())


def test_a_seed_gives_one_beginning_whatever_was_drawn_before(flux: Upstream) -> None:
    begins = []
    for seed, draws in ((3, 0), (3, 7), (4, 0)):
        torch.manual_seed(seed)
        torch.rand(draws)
        denoiser, one = flux.build(), adapter("locon", rank=2)
        one.attach(denoiser, flux.targets)
        begins.append([tensor.detach().clone() for tensor in one.state(denoiser).values()])

    assert all(torch.equal(mine, other) for mine, other in zip(begins[0], begins[1], strict=True))
    assert not all(torch.equal(mine, other) for mine, other in zip(begins[0], begins[2], strict=True))


def test_attaching_leaves_the_generator_as_it_was(flux: Upstream) -> None:
    denoiser = flux.build()
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    adapter("lokr").attach(denoiser, flux.targets)

    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_ranks_of_dylora_follow_the_generator_of_the_step(flux: Upstream) -> None:
    denoiser, one = flux.build(), adapter("dylora", rank=4, block_size=1)
    with torch.no_grad():
        one.attach(denoiser, flux.targets)
        for parameter in one.state(denoiser).values():
            parameter.normal_()
        denoiser.train()
        answers = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            answers.append(flux.ask(denoiser))

    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_settings_that_no_reader_gets_back_are_refused_before_training(unet: Upstream) -> None:
    with pytest.raises(StError, match="could not be read back"):
        adapter("lokr", rank=1, factor=4, decompose_both=True).attach(unet.build(), unet.targets)


def test_other_settings_for_some_layers(flux: Upstream, tmp_path: Path) -> None:
    one = adapter(
        "lokr",
        rank=2,
        factor=4,
        layers={"ff.net.0.proj": {"algo": "loha", "rank": 3}, "to_k": {"rank": 1}},
        exclude=("proj_out",),
    )
    denoiser = flux.trained(one)
    kinds = {path: type(module).__name__ for path, (_, module) in modules(denoiser).items()}

    assert kinds["transformer_blocks.0.ff.net.0.proj"] == "LohaModule"
    assert kinds["single_transformer_blocks.0.attn.to_k"] == "LokrModule"
    assert not any(path.endswith("proj_out") for path in kinds)
    assert modules(denoiser)["transformer_blocks.0.attn.to_k"][1].lora_dim == 1
    assert "loha on 1 layer:" in one.note
    assert "lokr on 7 layers" in one.note
    file = one.export(None, denoiser, tmp_path, {})  # type: ignore[arg-type]
    torch.testing.assert_close(by_the_library(flux, file), flux.ask(denoiser), atol=1e-5, rtol=0)
    torch.testing.assert_close(from_the_header(flux, file), flux.ask(denoiser), atol=1e-5, rtol=0)
    assert (tmp_path / "lycoris_config.json").is_file()


def test_wildcards_reach_layers_and_leave_normalisations(flux: Upstream) -> None:
    denoiser, one = flux.build(), adapter("lokr", rank=2, targets=("transformer_blocks.0.*",))
    one.attach(denoiser, ())

    assert all(isinstance(layer, torch.nn.Linear) for layer, _ in modules(denoiser).values())
    assert len(modules(denoiser)) > 10


def test_normalisations_learn_too(unet: Upstream, tmp_path: Path) -> None:
    one = adapter("lokr", rank=2, layers={"norm1": {"algo": "norm"}})
    denoiser = unet.trained(one)

    file = one.export(None, denoiser, tmp_path, {})  # type: ignore[arg-type]

    assert "norm on" in one.note
    assert any(key.endswith("norm1.w_norm") for key in load_file(file))
    torch.testing.assert_close(by_the_library(unet, file), unet.ask(denoiser), atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{"rank": 2, "alpha": 3}, {"factor": 4, "full_matrix": True}])
def test_diffusers_reads_lokr(flux: Upstream, settings: dict[str, Any], tmp_path: Path) -> None:
    one = adapter("lokr", format=("lycoris", "diffusers"), **settings)
    denoiser, fresh = flux.trained(one), flux.build()
    one.export(None, denoiser, tmp_path, {})  # type: ignore[arg-type]

    fresh.load_lora_adapter(str(tmp_path / "adapter-diffusers.safetensors"), prefix="transformer", use_safetensors=True)

    torch.testing.assert_close(flux.ask(fresh), flux.ask(denoiser), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("algo", "settings", "word"),
    [("loha", {}, "hada_w1_a"), ("lokr", {"use_dora": True, "rank": 2}, "dora_scale")],
)
def test_what_diffusers_cannot_read_is_refused_before_training(
    flux: Upstream, algo: str, settings: dict[str, Any], word: str
) -> None:
    with pytest.raises(StError, match="diffusers cannot read") as raised:
        flux.trained(adapter(algo, format="diffusers", **settings))

    assert word in raised.value.why


def test_a_copy_of_the_denoiser_is_independent(flux: Upstream) -> None:
    one = adapter("lokr", rank=2)
    denoiser = flux.trained(one)
    expected = flux.ask(denoiser)
    copied = copy.deepcopy(denoiser)
    with torch.no_grad():
        for parameter in one.state(denoiser).values():
            parameter.zero_()

    assert torch.equal(flux.ask(copied), expected)


def test_noise_to_begin_with_is_like_the_weight(flux: Upstream) -> None:
    torch.manual_seed(2)
    denoiser, one = flux.build(), adapter("lokr", full_matrix=True, factor=2, init_norm=1e-3)
    one.attach(denoiser, ("proj_mlp",))
    (layer, module), *_ = modules(denoiser).values()

    delta = module.get_weight(module.shape)

    assert bool((module.lokr_w1 == 1).all())
    torch.testing.assert_close(delta.std() / layer.weight.std(), torch.tensor(1e-3), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"algo": "loha"}, "no layer has"), ({"algo": "lokr", "rank": 1}, "two whole factors")],
)
def test_noise_that_has_no_place_is_refused(flux: Upstream, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(StError, match="init_norm") as raised:
        adapter(init_norm=1e-3, **settings).attach(flux.build(), flux.targets)

    assert word in f"{raised.value.what} {raised.value.why}"


def test_a_locon_file_is_lora_to_st_adapter(unet: Upstream, tmp_path: Path) -> None:
    one = adapter("locon", rank=3, alpha=1)
    file = one.export(None, unet.trained(one), tmp_path, {})  # type: ignore[arg-type]

    shown = call_cli("adapter", "inspect", file)
    merged = call_cli("adapter", "merge", file, file, tmp_path / "twice.safetensors")

    assert (shown.code, merged.code) == (0, 0)
    assert "rank       3" in shown.out
    assert "layers, rank 6" in merged.out
