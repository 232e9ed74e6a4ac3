"""EncoderRun: an open encoder that is asked in batches and answers whatever the device's memory allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from st.errors import OutOfMemory, StError

if TYPE_CHECKING:
    from st.data.encoder import Encode, Encoder, Input


class EncoderRun:
    """An open encoder. Where a batch does not fit into the device's memory, it and all later ones are halved."""

    def __init__(self, encoder: Encoder, encode: Encode, size: int) -> None:
        self._encoder, self._encode, self._size = encoder, encode, size

    def __call__(self, inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
        """What the encoder gives for each input, checked to be finite.

        Raises OutOfMemory where one input alone does not fit, StError where the encoder fails or gives NaN or infinity.
        """
        answers: list[Mapping[str, Tensor]] = []
        while len(answers) < len(inputs):
            part = inputs[len(answers) : len(answers) + self._size]
            given = self._ask(part)
            if given is None:
                self._halve(part)
                continue
            for one, tensors in zip(part, given, strict=True):
                self._check(one, tensors)
            answers += given
        return answers

    def _ask(self, inputs: Sequence[Input]) -> list[Mapping[str, Tensor]] | None:
        """The encoder's answers; None where memory ran out."""
        try:
            with torch.no_grad():
                return self._encode(inputs)
        except torch.OutOfMemoryError:
            return None
        except StError:
            raise
        except Exception as error:
            shown = ", ".join(repr(_name(one)) for one in inputs[:3])
            raise StError(
                f"encoder {self._encoder.name!r} failed on {shown}: {type(error).__name__}: {error}",
            ) from error

    def _halve(self, inputs: Sequence[Input]) -> None:
        """Called outside the ``except`` block, whose traceback would keep the failed batch's memory."""
        if self._size == 1 or len(inputs) == 1:
            raise OutOfMemory(
                f"encoder {self._encoder.name!r} runs out of memory on {_name(inputs[0])!r} alone",
                why=f"its input is {inputs[0].geometry or 'a caption'}",
                fix="use a smaller resolution, an encoder in a smaller precision, or encode with device = 'cpu'",
            )
        self._size = (min(self._size, len(inputs)) + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check(self, one: Input, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dtype.itemsize > 1 and not torch.isfinite(tensor).all():
                raise StError(
                    f"encoder {self._encoder.name!r} gives NaN or infinity for {_name(one)!r} ({name}, {tensor.dtype})",
                    why="float16 overflows in many autoencoders and text encoders" if _is_half(tensor) else "",
                    fix="run this encoder in bfloat16 or float32, or remove the sample",
                )


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float16


def _name(one: Input) -> str:
    return one.key if one.caption is None else one.caption[:80]
