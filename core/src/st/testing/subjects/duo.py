"""TinyDuo: the smallest family with two streams: clips and what is heard with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from st.model.inside.blocks import BlockGroup, TokenStream
from st.testing.subjects.tiny import CODEC, DENOISER, TEXT, TinyFamily

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st.data.encoder import LatentCodec
    from st.diffusion.objective import Batch, Noised
    from st.model.adapters.references import References
    from st.randomness import Draws

CLIP, SOUND = "clip", "sound"


def _narrow(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    return {"positions": arguments["positions"][keep]}


class TinyDuo(TinyFamily):
    """A transformer of 80,000 weights over patches of a clip and pieces of its sound, which read each other."""

    class Options(TinyFamily.Options):
        begins: bool = False
        """Whether the first frame of a clip is given: at time zero, and not scored."""

    options: TinyDuo.Options

    def codec(self) -> LatentCodec:
        from st.testing.subjects.duo_parts import ClipCodec

        return ClipCodec(self._file(CODEC))

    def streams(self) -> Mapping[str, LatentCodec]:
        from st.testing.subjects.duo_parts import SoundCodec

        return {CLIP: self.codec(), SOUND: SoundCodec(self._file(CODEC))}

    def references(self) -> References | None:
        """The picture that the clip of a prompt begins with."""
        from st.model.adapters.references import References

        return References(at_least=0, at_most=1) if self.options.begins else None

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from safetensors.torch import load_file

        from st.testing.subjects.duo_parts import DuoTransformer

        denoiser = DuoTransformer()
        denoiser.load_state_dict(load_file(self._file(DENOISER)))
        return denoiser.to(device, dtype).eval()

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[-1] * latents.shape[-2] * latents.shape[-3]

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        from st.diffusion.layout import to_tokens

        layout = batch.layout
        assert layout is not None, "a batch of this family has its streams"
        x, t = layout.split(noised.x), layout.split_times(noised.t)
        frames, height, width = x[CLIP].shape[2:]
        grids = {CLIP: (frames, height, width), SOUND: (1, 1, x[SOUND].shape[2])}
        times = {name: to_tokens(t[name], x[name].shape, grids[name]) for name in x}
        answers = denoiser(
            x[CLIP],
            x[SOUND],
            times[CLIP],
            times[SOUND],
            batch.conditions["text"],
            text_mask=batch.conditions.get("text_mask"),
            silent=batch.lacking.get(SOUND),
        )
        return layout.join(dict(zip((CLIP, SOUND), answers, strict=True)))

    def times(self, t: Tensor, batch: Batch, draws: Draws | None) -> Tensor:
        layout, first = batch.layout, self._first(batch)
        assert layout is not None, "a batch of this family has its streams"
        if first is None:
            return t
        clip = t.reshape(-1, 1, 1, 1, 1).repeat(1, 1, batch.latents.shape[2], 1, 1)
        clip[:, :, 0] = 0
        return layout.join_times({CLIP: clip, SOUND: t})

    def start(self, noise: Tensor, batch: Batch) -> Tensor:
        layout, first = batch.layout, self._first(batch)
        assert layout is not None, "a batch of this family has its streams"
        if first is None:
            return noise
        streams = layout.split(noise)
        streams[CLIP] = streams[CLIP].clone()
        streams[CLIP][:, :, :1] = first.to(noise)
        return layout.join(streams)

    def blocks(self) -> Sequence[BlockGroup]:
        heard = TokenStream(argument="sound_states", returned=1)
        return (BlockGroup("blocks", TokenStream(select=_narrow, returned=0), {SOUND: heard}),)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        import torch
        from safetensors.torch import save_file

        from st.testing.subjects.duo_parts import DuoTransformer
        from st.testing.subjects.tiny_parts import TEXT_WIDTH

        directory.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            save_file(DuoTransformer().state_dict(), directory / DENOISER)
            save_file({"table": torch.randn(256, TEXT_WIDTH)}, directory / TEXT)
        save_file({"scale": torch.ones(1)}, directory / CODEC)
        return cls(cls.Options(checkpoint=str(directory)))

    def _first(self, batch: Batch) -> Tensor | None:
        """The latents of the first frame, (B, C, 1, H, W): the clip's own in training, a prompt's reference else."""
        return batch.extras.get("first", batch.extras.get("reference")) if self.options.begins else None
