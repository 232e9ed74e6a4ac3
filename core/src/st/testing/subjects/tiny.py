"""TinyFamily: the smallest complete family, which core's own tests and a plugin's tests train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

import st.options
from st.data.shape.rule import GeometryRule
from st.model.family import ModelFamily
from st.model.inside.blocks import BlockGroup, TokenStream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encoder, LatentCodec
    from st.diffusion.objective import Batch, Noised
    from st.model.files.formats import AdapterFormat

DENOISER, CODEC, TEXT = "denoiser.safetensors", "codec.safetensors", "text.safetensors"


def _narrow_positions(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    return {"positions": arguments["positions"][keep]}


class TinyFamily(ModelFamily["TinyFamily.Options"]):
    """A transformer of 40,000 weights on 8x8 patches of pixels; it learns a picture in seconds on one core."""

    class Options(st.options.Options):
        checkpoint: str = Field("", validate_default=True)
        """Folder that `tiny` wrote."""

    geometry = GeometryRule(multiple=8)

    def codec(self) -> LatentCodec:
        from st.testing.subjects.tiny_parts import TinyCodec

        return TinyCodec(self._file(CODEC))

    def text_encoders(self) -> Sequence[Encoder]:
        from st.testing.subjects.tiny_parts import TinyText

        return (TinyText(self._file(TEXT)),)

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from safetensors.torch import load_file

        from st.testing.subjects.tiny_parts import TinyTransformer

        denoiser = TinyTransformer()
        denoiser.load_state_dict(load_file(self._file(DENOISER)))
        return denoiser.to(device, dtype).eval()

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[-1] * latents.shape[-2]

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        conditions = batch.conditions
        answer: Tensor = denoiser(noised.x, noised.t, conditions["text"], conditions.get("text_mask"))
        return answer

    def adapter_targets(self) -> Sequence[str]:
        return "to_q", "to_k", "to_v", "to_out"

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.peft_layout import diffusers_format

        return {"diffusers": diffusers_format("transformer")}

    def blocks(self) -> Sequence[BlockGroup]:
        return (BlockGroup("blocks", TokenStream(select=_narrow_positions)),)

    def save_checkpoint(self, denoiser: nn.Module, directory: Path) -> None:
        import shutil

        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in denoiser.state_dict().items()}, directory / DENOISER)
        for name in (CODEC, TEXT):
            shutil.copyfile(self._file(name), directory / name)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        import torch
        from safetensors.torch import save_file

        from st.testing.subjects.tiny_parts import TEXT_WIDTH, TinyTransformer

        directory.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            save_file(TinyTransformer().state_dict(), directory / DENOISER)
            save_file({"table": torch.randn(256, TEXT_WIDTH)}, directory / TEXT)
        save_file({"scale": torch.ones(1)}, directory / CODEC)
        return cls(cls.Options(checkpoint=str(directory)))

    def _file(self, name: str) -> Path:
        from pathlib import Path

        from st.errors import StError

        file = Path(self.options.checkpoint) / name
        if not file.is_file():
            what = f"model.checkpoint = {self.options.checkpoint!r}: there is no {name!r}."
            raise StError(what, fix=f"{type(self).__name__}.tiny(directory) writes one.")
        return file
