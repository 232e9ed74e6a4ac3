"""Features are the encoder's own, of as many frames as latents have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from st import Geometry, GeometryRule, Input, StError
from st_crepa import CrepaOptions
from st_crepa.encoder import FrameFeatures

CPU = torch.device("cpu")


def an_encoder(folder: Path | str, rule: GeometryRule | None = None, **options: object) -> FrameFeatures:
    given = CrepaOptions.model_validate({"model": str(folder), "encoder_image_size": 42, **options})
    return FrameFeatures(given, rule or GeometryRule())


def an_input(*shape: int, seed: int = 0) -> Input:
    pixels = torch.rand(3, *shape, generator=torch.Generator().manual_seed(seed))
    return Input(str(seed), Geometry(shape[-2], shape[-1], shape[0] if len(shape) == 3 else 1), pixels=pixels)


def test_features_are_the_patches_of_upstreams_model(dino: Path) -> None:
    from transformers import Dinov2Model

    given = an_input(56, 70)
    with an_encoder(dino).open(CPU) as encode, torch.no_grad():
        (found,) = encode([given])

    # Pillow's bicubic is torch's antialiased one, but for rounding to bytes.
    picture = Image.fromarray((given.pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    pixels = torch.tensor(list(picture.resize((42, 42), Image.Resampling.BICUBIC).tobytes())).reshape(42, 42, 3) / 255
    shown = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(dino).eval()(shown.permute(2, 0, 1)[None]).last_hidden_state
    assert found["crepa"].shape == (1, 3, 3, 12)
    assert found["crepa"].dtype == torch.bfloat16
    close = torch.nn.functional.cosine_similarity(found["crepa"].float().reshape(9, 12), tokens[0, 1:], dim=-1)
    assert close.min() > 0.999


def test_another_size_than_the_encoders_own_gives_its_own_grid(dino: Path) -> None:
    with an_encoder(dino, encoder_image_size=70).open(CPU) as encode, torch.no_grad():
        assert encode([an_input(56, 56)])[0]["crepa"].shape == (1, 5, 5, 12)


def test_registers_are_no_patches(tmp_path: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, num_register_tokens=4
    )
    model = Dinov2WithRegistersModel(config).eval()
    model.save_pretrained(tmp_path)

    with an_encoder(tmp_path, encoder_image_size=28).open(CPU) as encode, torch.no_grad():
        (found,) = encode([an_input(28, 28)])

    assert found["crepa"].shape == (1, 2, 2, 8)


def test_of_a_clip_the_frames_of_its_latents_are_looked_at(dino: Path) -> None:
    clip, rule = an_input(9, 42, 42), GeometryRule(frames_modulus=4)
    with an_encoder(dino, rule, encoder_frames_batch_size=2).open(CPU) as encode, torch.no_grad():
        found = encode([clip, an_input(9, 42, 42, seed=1)])
        singly = [encode([Input("one", Geometry(42, 42), pixels=clip.pixels[:, frame])])[0] for frame in (0, 4, 8)]

    assert [one["crepa"].shape for one in found] == [(3, 3, 3, 12)] * 2
    # Products of other shapes add up in another order, and bfloat16 rounds what is left.
    expected = torch.cat([one["crepa"] for one in singly]).float()
    assert torch.allclose(found[0]["crepa"].float(), expected, rtol=0.02, atol=0.02)


def test_a_fingerprint_changes_when_features_do(dino: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(dino, tmp_path / "copy")
    plain = an_encoder(dino).fingerprint

    assert an_encoder(copy, weight=0.1).fingerprint == plain
    assert an_encoder(dino, encoder_image_size=70).fingerprint != plain
    assert an_encoder(dino, GeometryRule(frames_modulus=4)).fingerprint != plain
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert an_encoder(copy).fingerprint != plain


def test_what_cannot_be_an_encoder_is_refused_in_words(dino: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    (tmp_path / "model.safetensors").touch()

    with pytest.raises(StError, match="there is no such folder"):
        _ = an_encoder(tmp_path / "nowhere").fingerprint
    with pytest.raises(StError, match="no model of transformers"):
        _ = an_encoder(tmp_path.parent).fingerprint
    with pytest.raises(StError, match="is a 'bert', not a DINOv2"):
        _ = an_encoder(tmp_path).width
    with pytest.raises(StError, match="encoder_image_size = 40 is no multiple of 14") as refused:
        _ = an_encoder(dino, encoder_image_size=40).edge
    assert refused.value.fix == "set it to 28 or 42"
