"""EncoderRun: an open encoder that is asked in batches and answers whatever the device's memory allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from st.errors import OutOfMemory, SampleUnreadable, StError

if TYPE_CHECKING:
    from st.data.encoder import Encode, Encoder, Input

    Answer = Mapping[str, Tensor] | SampleUnreadable

HOPELESS = 8
"""Samples that an encoder may fail on before its first answer: with that many, it is the encoder."""


class EncoderRun:
    """An open encoder. Where a batch does not fit into the device's memory, it and all later ones are halved."""

    def __init__(self, encoder: Encoder, encode: Encode, size: int) -> None:
        self._encoder, self._encode, self._size = encoder, encode, size
        self._good = self._bad = 0

    def __call__(self, inputs: Sequence[Input]) -> list[Answer]:
        """What the encoder gives for each input, checked to be finite; what is wrong with one that it fails on.

        Raises OutOfMemory where one input alone does not fit, StError where the encoder fails on a caption, and where
        it has answered nothing and failed on so many samples that they cannot be at fault.
        """
        answers: list[Answer] = []
        while len(answers) < len(inputs):
            part = inputs[len(answers) : len(answers) + self._size]
            given = self._ask(part)
            if given is None:
                self._halve(part)
                continue
            answers += [self._checked(one, answer) for one, answer in zip(part, given, strict=True)]
        return answers

    def _checked(self, one: Input, answer: Mapping[str, Tensor] | StError) -> Answer:
        error = answer if isinstance(answer, StError) else self._not_finite(one, answer)
        if error is None:
            assert not isinstance(answer, StError)
            self._good += 1
            return answer
        self._bad += 1
        if one.caption is not None or (self._bad == HOPELESS and not self._good):
            raise error
        return SampleUnreadable(one.key, "; ".join(filter(None, (error.what, error.why, error.fix))))

    def _ask(self, inputs: Sequence[Input]) -> list[Mapping[str, Tensor] | StError] | None:
        """The encoder's answers, or why there is none to one; None where memory ran out.

        A batch that fails is asked one by one, so that one sample's fault is not its neighbours'.
        """
        try:
            with torch.no_grad():
                return list(self._encode(inputs))
        except torch.OutOfMemoryError:
            return None
        except StError:
            raise
        except Exception as error:
            if len(inputs) == 1:
                shown = repr(_name(inputs[0]))
                failed = StError(f"encoder {self._encoder.name!r} failed on {shown}: {type(error).__name__}: {error}")
                failed.__cause__ = error
                return [failed]
        answers: list[Mapping[str, Tensor] | StError] = []
        for one in inputs:
            alone = self._ask([one])
            if alone is None:
                return None
            answers += alone
        return answers

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

    def _not_finite(self, one: Input, tensors: Mapping[str, Tensor]) -> StError | None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dtype.itemsize > 1 and not torch.isfinite(tensor).all():
                half = tensor.dtype == torch.float16
                return StError(
                    f"encoder {self._encoder.name!r} gives NaN or infinity for {_name(one)!r} ({name}, {tensor.dtype})",
                    why="float16 overflows in many autoencoders and text encoders" if half else "",
                    fix="run this encoder in bfloat16 or float32" if half else "",
                )
        return None


def _name(one: Input) -> str:
    return one.key if one.caption is None else one.caption[:80]
