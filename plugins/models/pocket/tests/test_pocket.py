"""What pocket promises beyond what every family does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from st import Batch, Encoder, Geometry, Input, Media, Noised, StError
from st.testing.runs import CliResult, write_photos
from st_pocket import Pocket, PocketOptions
from st_pocket.codec import SpaceToDepth
from st_pocket.words import HashedWords

CPU = torch.device("cpu")
GEOMETRIES = [Geometry(64, 64), Geometry(48, 80), Geometry(80, 48), Geometry(16, 256)]


@pytest.fixture
def family() -> Pocket:
    return Pocket(PocketOptions(size="tiny"))


def encoded(encoder: Encoder, *captions: str) -> list[dict[str, torch.Tensor]]:
    with encoder.open(CPU) as encode:
        return [dict(entry) for entry in encode([Input(key="a", caption=caption) for caption in captions])]


def a_batch(family: Pocket, captions: tuple[str, ...], geometry: Geometry = GEOMETRIES[0]) -> tuple[Noised, Batch]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(captions), 192, geometry.height // 8, geometry.width // 8)
    clean, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    t = torch.linspace(0.2, 0.9, len(captions))
    conditions = family.collate(encoded(family.text_encoders()[0], *captions))
    batch = Batch(keys=captions, indices=tuple(range(len(captions))), dataset="a", latents=clean, conditions=conditions)
    return Noised(x=family.path(t).of(clean, noise), t=t, clean=clean, noise=noise), batch


def awake(family: Pocket) -> torch.nn.Module:
    """A denoiser whose blocks act, as trained ones do: at the start they pass tokens on and the answer is zero."""
    denoiser = family.load_denoiser(CPU, torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return denoiser


def test_the_shape_of_latents_is_known_beforehand() -> None:
    codec, geometry = SpaceToDepth(4), Geometry(32, 48)
    with codec.open(torch.device("cpu")) as encode:
        (entry,) = encode([Input("a", geometry, pixels=torch.zeros(3, 32, 48))])

    assert codec.latent_shape(geometry) == tuple(entry["latents"].shape)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_8_bit_picture_survives_the_codec(geometry: Geometry) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (3, geometry.height, geometry.width), generator=generator)
    codec = SpaceToDepth(8)

    with codec.open(CPU) as encode:
        entry = encode([Input(key="a", geometry=geometry, pixels=levels / 255)])[0]
    with codec.decoder(CPU) as decode:
        decoded = decode(entry["latents"][None])[0]

    assert entry["latents"].shape == (192, geometry.height // 8, geometry.width // 8)
    assert torch.equal((decoded * 255).round().long(), levels)


def test_words_are_the_same_in_another_process() -> None:
    program = "from st_pocket.words import vector; print(vector('cat', 64))"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)}

    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )

    from st_pocket.words import vector

    assert printed.stdout.strip() == repr(vector("cat", 64))


def test_spelling_counts_and_case_and_punctuation_do_not() -> None:
    cat, shouted, dog = encoded(HashedWords(16, 64), "a cat", "A cat!", "a dog")

    assert torch.equal(cat["words"], shouted["words"])
    assert not torch.equal(cat["words"], dog["words"])


def test_the_empty_caption_is_zeros() -> None:
    (entry,) = encoded(HashedWords(16, 64), "")

    assert not entry["words"].any()
    assert not entry["pooled"].any()


def test_words_beyond_the_budget_are_counted_and_not_read() -> None:
    encoder = HashedWords(budget=3, width=64)

    short, long = encoded(encoder, "one two three", "one two three four five")

    assert encoder.count_tokens("one two three four five") == (5, 3)
    assert torch.equal(short["words"], long["words"])
    assert torch.equal(short["pooled"], long["pooled"])


def test_fingerprints_change_with_what_the_encoders_do() -> None:
    words = {HashedWords(16, 64).fingerprint, HashedWords(8, 64).fingerprint, HashedWords(16, 32).fingerprint}

    assert len(words) == 3
    assert SpaceToDepth(8).fingerprint != SpaceToDepth(16).fingerprint


def test_same_seed_same_weights_and_the_global_stream_is_untouched() -> None:
    state = torch.random.get_rng_state()

    first, second, other = (
        Pocket(PocketOptions(size="tiny", seed=seed)).load_denoiser(CPU, torch.float32).state_dict()
        for seed in (1, 1, 2)
    )

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_saved_denoiser_loads_equal(family: Pocket, tmp_path: Path) -> None:
    denoiser = awake(family)

    family.save_checkpoint(denoiser, tmp_path)
    loaded = Pocket(PocketOptions(checkpoint=str(tmp_path))).load_denoiser(CPU, torch.float32)

    expected, actual = denoiser.state_dict(), loaded.state_dict()
    assert list(expected) == list(actual)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_a_folder_without_a_denoiser_is_named(tmp_path: Path) -> None:
    with pytest.raises(StError, match="holds no denoiser"):
        Pocket(PocketOptions(checkpoint=str(tmp_path))).load_denoiser(CPU, torch.float32)


def test_options_for_random_weights_are_refused_on_a_checkpoint() -> None:
    with pytest.raises(ValidationError, match="seed has no effect on a checkpoint; delete it"):
        PocketOptions(checkpoint="model", seed=1)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_prediction_is_like_the_latents(family: Pocket, geometry: Geometry) -> None:
    noised, batch = a_batch(family, ("a cat", "a dog"), geometry)

    prediction = family.predict(family.load_denoiser(CPU, torch.bfloat16), noised, batch)

    assert prediction.shape == noised.x.shape
    assert family.tokens(noised.x) == geometry.height * geometry.width // 64


def test_prediction_ignores_batch_mates(family: Pocket) -> None:
    noised, batch = a_batch(family, ("a cat", "a photo of a dog in the rain", ""))
    denoiser = awake(family)

    together = family.predict(denoiser, noised, batch)
    alone = family.predict(
        denoiser,
        Noised(x=noised.x[:1], t=noised.t[:1], clean=noised.clean[:1], noise=noised.noise[:1]),
        replace(
            batch, latents=batch.latents[:1], conditions={name: each[:1] for name, each in batch.conditions.items()}
        ),
    )

    # Matrix products of other sizes sum in another order.
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)


def test_prediction_depends_on_caption_and_time(family: Pocket) -> None:
    noised, batch = a_batch(family, ("a cat", "a dog"))
    denoiser = awake(family)

    expected = family.predict(denoiser, noised, batch)
    swapped = family.predict(
        denoiser, noised, replace(batch, conditions={n: c.flip(0) for n, c in batch.conditions.items()})
    )
    later = family.predict(denoiser, replace(noised, t=noised.t + 0.05), batch)

    assert not torch.allclose(expected, swapped)
    assert not torch.allclose(expected, later)


def test_no_geometry_of_the_rule_is_too_long_for_the_positions() -> None:
    rule = Pocket.geometry

    for width, height in ((4, 1), (1, 4), (3, 2), (1, 1)):
        geometry = rule.nearest(Media("image", height=height * 1000, width=width * 1000), area=2048**2)
        assert rule.accepts(geometry)
        assert max(geometry.width, geometry.height) <= 256


def test_an_adapter_on_weights_that_answer_zero_is_said_to_learn_nothing(
    run_file: Callable[[str], Path], st_cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos")
    file = run_file(
        f'plugins = ["pocket"]\noutput = "{tmp_path / "out"}"\nsteps = 11\nprecision = "fp32"\ndevice = "cpu"\n'
        '[model]\nsize = "tiny"\n[report]\nevery = 1000\n'
        f'[[dataset]]\nurl = "{photos}"\nresolution = 64\nalign = 16\n'
    )

    done = st_cli("train", file)

    assert done.code == 0, done.err
    said = done.out + done.err
    assert "every gradient of steps 1 to 10 is zero, so nothing is learned: 'proj_out.weight' and" in said
    assert "adapter.kind = 'full'" in said
    assert "no step of this run had a gradient" in said


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (None, "There is no config.json in that folder."),
        ({"_class_name": "AutoencoderKL"}, "It holds AutoencoderKL."),
        ({"_class_name": "SD3Transformer2DModel", "in_channels": 16}, "It holds SD3Transformer2DModel of 16 channels."),
        (["a list"], "It holds no model."),
    ],
)
def test_a_folder_of_another_model_is_refused_before_anything_is_loaded(
    settings: object, why: str, tmp_path: Path
) -> None:
    if settings is not None:
        (tmp_path / "config.json").write_text(json.dumps(settings))
    family = Pocket(PocketOptions(checkpoint=str(tmp_path)))

    for call in (family.check_files, lambda: family.load_denoiser(CPU, torch.float32)):
        with pytest.raises(StError) as caught:
            call()
        assert caught.value.why == why
        assert 'kind = "full"' in caught.value.fix
