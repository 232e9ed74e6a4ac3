"""Conditions: what a denoiser is given of a clip beside the noise, as the upstream pipelines prepare it.

Clips are (B, 3, F, H, W) in [-1, 1], where 0 is grey. Names of tensors: ``first_frame`` and ``control``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from st.data.encoder import Encoder, Input
from st.model.pipelines.pipeline_codec import PipelineCodec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st.data.encoder import Encode
    from st.data.geometry import Geometry
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder
    from st_wan.flavours import Given

    Latents = Callable[[Tensor], Tensor]

FIRST_FRAME, CONTROL, IMAGE = "first_frame", "control", "image_embeds"
STRIDE = 4
"""Frames of a clip that one frame of latents holds; the first holds one."""
BLOCK = 8
"""Edge of the pixels that one latent of VACE stands for."""


class WanCodec(PipelineCodec):
    """Wan's autoencoder. Its entries hold what the denoiser is given of the clip, beside its latents."""

    takes_frames = True

    given: Given = "nothing"
    starts: bool = False
    """Whether the first frame is given."""

    @property
    def fingerprint(self) -> str:
        shown = f"-{self.given}-{self.starts}" if self.starts or self.given == "control" else ""
        return f"{super().fingerprint}{shown}"

    def latent_shape(self, geometry: Geometry) -> tuple[int, ...]:
        config = self.folder.config(self.component)
        scale = int(config.get("scale_factor_spatial", BLOCK))
        frames = (geometry.frames - 1) // STRIDE + 1
        return int(config["z_dim"]), frames, geometry.height // scale, geometry.width // scale

    def further(self, autoencoder: Any, entered: Tensor) -> Mapping[str, Tensor]:
        first = entered[:, :, :1] if self.starts else None
        return conditions_of(self.given, first, entered.shape[2], self.latents_of(autoencoder), entered)

    def latents_of(self, autoencoder: Any) -> Latents:
        """From clips to normalised latents; the mode, as upstream's pipelines take it."""

        def encode(clip: Tensor) -> Tensor:
            distribution = autoencoder.encode(clip.to(autoencoder.dtype)).latent_dist
            return self.normalise(autoencoder, distribution.mode().float())

        return encode


class FirstPicture(Encoder):
    """A picture of a prompt as the denoiser is given a clip's first frame, and as a vision model sees it."""

    name = "first_picture"
    reads = ("pixels",)

    def __init__(self, codec: WanCodec, eye: ImageEmbeds | None) -> None:
        self.codec, self.eye = codec, eye

    @property
    def fingerprint(self) -> str:
        return f"{self.codec.fingerprint}-{self.eye.fingerprint if self.eye else ''}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch

        with ExitStack() as stack:
            autoencoder = self.codec.load(device)
            see = stack.enter_context(self.eye.open(device)) if self.eye else None

            def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
                entries: list[dict[str, Tensor]] = []
                for one in inputs:
                    assert one.pixels is not None and one.geometry is not None
                    picture = one.pixels if one.pixels.ndim == 3 else one.pixels[:, 0]
                    with torch.no_grad():
                        entry = self._entry(autoencoder, picture.to(device), one.geometry.frames)
                    entries.append(entry | dict(see([one])[0] if see else {}))
                return list(entries)

            yield encode

    def _entry(self, autoencoder: Any, picture: Tensor, frames: int) -> dict[str, Tensor]:
        first = (picture * 2 - 1)[None, :, None]
        found = conditions_of(self.codec.given, first, frames, self.codec.latents_of(autoencoder), first)
        return {name: value[0].to("cpu", autoencoder.dtype) for name, value in found.items()}


class ControlClip(Encoder):
    """A clip that VACE is controlled by, none of which stays; a picture is one that does not move."""

    name = "control"
    reads = ("pixels",)

    def __init__(self, codec: WanCodec) -> None:
        self.codec = codec

    @property
    def fingerprint(self) -> str:
        return f"{type(self).__name__}-{self.codec.fingerprint}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch

        autoencoder = self.codec.load(device)

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            entries = []
            for one in inputs:
                assert one.pixels is not None and one.geometry is not None
                still = one.pixels if one.pixels.ndim == 4 else one.pixels[:, None]
                entered = still.expand(-1, one.geometry.frames, -1, -1).to(device)[None] * 2 - 1
                with torch.no_grad():
                    control = control_latents(entered, entered.new_ones(()), self.codec.latents_of(autoencoder))
                entries.append({CONTROL: control[0].to("cpu", autoencoder.dtype)})
            return list(entries)

        yield encode


class ImageEmbeds(Encoder):
    """What CLIP sees in a clip's first frame: (257, D), the second last of its hidden states."""

    name = "image"
    reads = ("pixels",)
    COMPONENTS = ("image_encoder", "image_processor")

    def __init__(self, folder: CheckpointFolder, pipeline: str) -> None:
        self.folder, self.pipeline = folder, pipeline

    @property
    def fingerprint(self) -> str:
        return f"{self.pipeline}-{self.folder.fingerprint(self.COMPONENTS)}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import diffusers
        import torch

        from st.model.pipelines.pipeline_text import load_pipeline

        kind = getattr(diffusers, self.pipeline)
        pipeline = load_pipeline(kind, self.folder, self.COMPONENTS, torch.float32).to(device)

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            pictures = [_as_picture(one.pixels) for one in inputs if one.pixels is not None]
            with torch.no_grad():
                seen: Tensor = pipeline.encode_image(pictures, device)
            return [{IMAGE: row.to("cpu", copy=True)} for row in seen]

        yield encode


def conditions_of(given: Given, first: Tensor | None, frames: int, encode: Latents, like: Tensor) -> dict[str, Tensor]:
    """What a denoiser is given of a clip of so many frames that begins with ``first`` (B, 3, 1, H, W).

    first: None where it is not given. like: a clip of the size.
    """
    if given == "padded" and first is not None:
        return {FIRST_FRAME: encode(padded(first, frames))}
    if given == "first" and first is not None:
        return {FIRST_FRAME: encode(first)}
    if given == "control":
        clip = like.new_zeros(*like.shape[:2], frames, *like.shape[3:])
        mask = clip.new_ones(1, 1, frames, 1, 1)
        if first is not None:
            clip[:, :, :1], mask[:, :, 0] = first, 0
        return {CONTROL: control_latents(clip, mask, encode)}
    return {}


def padded(first: Tensor, frames: int) -> Tensor:
    """A frame (B, 3, 1, H, W) and grey ones behind it."""
    import torch

    batch, channels, _, height, width = first.shape
    return torch.cat([first, first.new_zeros(batch, channels, frames - 1, height, width)], dim=2)


def spread(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1, 1)."""
    return values[:, None, None, None, None]


def first_at_zero(t: Tensor, shown: Tensor, frames: int) -> Tensor:
    """Times (B,) as those of frames, (B, 1, F, 1, 1), 0 where a first frame is shown. shown: (B,) bool."""
    import torch

    times = spread(t).repeat(1, 1, frames, 1, 1)
    times[:, :, :1] = torch.where(spread(shown), 0.0, times[:, :, :1])
    return times


def begun(clip: Tensor, first: Tensor, shown: Tensor) -> Tensor:
    """Latents of a clip with its first frame in place where it is shown. first: (B, C, 1, h, w). shown: (B,) bool."""
    import torch

    beginning = torch.where(spread(shown), first.to(clip), clip[:, :, :1])
    return torch.cat([beginning, clip[:, :, 1:]], dim=2)


def first_frame_mask(latents: Tensor) -> Tensor:
    """(B, 4, F, h, w): which pixel frames of each latent frame are given; of the first, all that it stands for."""
    batch, _, frames, height, width = latents.shape
    mask = latents.new_zeros(batch, STRIDE, frames, height, width)
    mask[:, :, 0] = 1
    return mask


def control_latents(clip: Tensor, mask: Tensor, encode: Latents) -> Tensor:
    """What VACE is given of a clip: latents of what stays and of what is made, (B, 2 C, F, h, w).

    mask: 0 where the clip stays, 1 where it is made; broadcastable to the clip.
    """
    import torch

    mask = torch.where(mask > 0.5, 1.0, 0.0).to(clip)
    return torch.cat([encode(clip * (1 - mask)), encode(clip * mask)], dim=1)


def control_mask(mask: Tensor) -> Tensor:
    """A mask (B, 1, F, H, W) as channels for VACE, (B, 64, F', h, w): the 8 x 8 pixels of each latent.

    Of the frames that a latent frame stands for the middle one is taken, as upstream does.
    """
    import torch

    batch, _, frames, height, width = mask.shape
    small = (-(-frames // STRIDE), height // BLOCK, width // BLOCK)
    cells = mask.reshape(batch, frames, small[1], BLOCK, small[2], BLOCK)
    channels = cells.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)
    return torch.nn.functional.interpolate(channels, size=small, mode="nearest-exact")


def control_channels(control: Tensor, starts: bool) -> Tensor:
    """Latents of ``control_latents`` (B, 32, F, h, w) with the mask that belongs to them, (B, 96, F, h, w).

    starts: whether the first frame stays; else nothing does.
    """
    import torch

    batch, _, frames, height, width = control.shape
    mask = control.new_ones(1, 1, (frames - 1) * STRIDE + 1, BLOCK, BLOCK)
    if starts:
        mask[:, :, 0] = 0
    return torch.cat([control, control_mask(mask).expand(batch, -1, -1, height, width)], dim=1)


def _as_picture(pixels: Tensor) -> Any:
    from PIL import Image

    first = pixels if pixels.ndim == 3 else pixels[:, 0]
    return Image.fromarray((first * 255).round().byte().permute(1, 2, 0).cpu().numpy())
