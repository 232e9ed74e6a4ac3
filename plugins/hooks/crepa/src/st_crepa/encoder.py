"""FrameFeatures: what a frozen vision encoder sees in each frame, computed once and cached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from st import Encoder, GeometryRule, Input, Problem, StError
from st.errors import ProblemsFound
from st.model.checkpoint.networks import load_network

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from st_crepa.options import CrepaOptions

NAME = "crepa"
"""Of the encoder, and of its tensor in ``batch.extras``: (B, F, n, n, width), bfloat16."""
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue, as DINOv2 was trained with."""


class FrameFeatures(Encoder):
    """Patch features of a DINOv2. Of a clip, one frame in ``rule.frames_modulus``: as many as its latents have."""

    name = NAME
    reads = ("pixels",)

    def __init__(self, options: CrepaOptions, rule: GeometryRule) -> None:
        self.options, self.rule = options, rule

    @property
    def fingerprint(self) -> str:
        from hashlib import blake2b

        from st.data.store.weights_digest import weights_digest

        digest = blake2b(digest_size=16)
        for path in sorted([self.folder / "config.json", *self.folder.glob("*.safetensors")]):
            digest.update(f"{path.name}\0{weights_digest(path)}\0".encode())
        return f"1-{digest.hexdigest()}-{self.options.encoder_image_size}-{self.rule.frames_modulus}"

    @cached_property
    def folder(self) -> Path:
        """Where the encoder is. Raises StError where there is none."""
        from st.model.checkpoint.hub import download

        if problem := location_problem(self.options.model):
            raise ProblemsFound([problem])
        folder = Path(self.options.model).expanduser()
        if not folder.is_dir():
            folder = download(self.options.model, "", ("config.json", "*.safetensors"), (), "crepa.model")
        if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
            raise StError(
                f"crepa.model = {self.options.model!r} is no model of transformers",
                why="it has no config.json, or no weights in safetensors",
                fix="name a DINOv2, such as facebook/dinov2-base",
            )
        return folder

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """(width of a feature, edge of a patch)."""
        from st.model.checkpoint.checkpoint_folder import read_json

        config = read_json(self.folder / "config.json")
        if not isinstance(config.get("hidden_size"), int) or not isinstance(config.get("patch_size"), int):
            raise StError(
                f"crepa.model = {self.options.model!r} is a {config.get('model_type')!r}, not a DINOv2",
                fix="name a DINOv2, such as facebook/dinov2-base",
            )
        return config["hidden_size"], config["patch_size"]

    @property
    def width(self) -> int:
        """Numbers per feature."""
        return self._sizes[0]

    @property
    def edge(self) -> int:
        """n: features per edge of a frame. Raises StError for an image size that patches do not fill."""
        size, patch = self.options.encoder_image_size, self._sizes[1]
        if size % patch:
            below = max(size // patch * patch, patch)
            raise StError(
                f"crepa.encoder_image_size = {size} is no multiple of {patch}, the patch of {self.options.model!r}",
                fix=f"set it to {below} or {below + patch}",
            )
        return size // patch

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Callable[[Sequence[Input]], list[Mapping[str, Tensor]]]]:
        import torch
        from transformers import AutoModel

        edge = self.edge
        what = f"crepa.model = {self.options.model!r}"
        model = load_network(AutoModel, self.folder, what, dtype=torch.float32)
        model = model.to(device).eval().requires_grad_(False)

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            clips = [self._frames(one.pixels) for one in inputs if one.pixels is not None]
            parts = torch.split(torch.cat(clips), self.options.encoder_frames_batch_size)
            found = torch.cat([features(part.to(device)).cpu() for part in parts])
            return [{NAME: clip} for clip in torch.split(found, [len(clip) for clip in clips])]

        def features(frames: Tensor) -> Tensor:
            tokens: Tensor = model(pixel_values=prepared(frames, self.options.encoder_image_size)).last_hidden_state
            # Class and register tokens come first, however many there are.
            return tokens[:, -edge * edge :].reshape(len(frames), edge, edge, -1).to(torch.bfloat16)

        yield encode

    def _frames(self, pixels: Tensor) -> Tensor:
        """The frames that are looked at, (F', 3, H, W), of (3, H, W) or (3, F, H, W)."""
        from st_crepa.alignment import evenly

        if pixels.ndim == 3:
            return pixels[None]
        total = pixels.shape[1]
        count = max((total - self.rule.frames_remainder) // self.rule.frames_modulus + 1, 1)
        return pixels[:, evenly(total, count if self.rule.frames_modulus > 1 else total)].movedim(1, 0)


def location_problem(model: str) -> Problem | None:
    """What is wrong with ``crepa.model``, as far as is known without asking the hub."""
    from st.model.checkpoint.hub import is_repository

    if Path(model).expanduser().is_dir() or is_repository(model):
        return None
    fix = "Name a folder with config.json and model.safetensors, or a repository on the hub as owner/name."
    return Problem("crepa.model", f"crepa.model = {model!r}: there is no such folder.", fix=fix)


def prepared(frames: Tensor, size: int) -> Tensor:
    """Frames in [0, 1] as a DINOv2 is shown them: squares of an edge, whatever their aspect, and normalised."""
    import torch

    square = torch.nn.functional.interpolate(
        frames, size=(size, size), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    mean, spread = (square.new_tensor(values)[:, None, None] for values in (MEAN, SPREAD))
    return (square - mean) / spread
