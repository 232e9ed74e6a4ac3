"""Kinds of updates: what the tensors beside a layer in an adapter file make of its weight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from st.errors import StError
from st.options import Options
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from torch import Tensor

    from st.registrar import Registrar


class UpdateKind:
    """One kind of update in adapter files. Where it is registered, ``st adapter`` shows and adds files of it.

    Tensors are a layer's, by the names that they have behind the layer's (of LoRA by ours, ``lora_A.weight``).
    """

    marks: ClassVar[Collection[str]] = ()
    """Names of tensors of which a layer of this kind has at least one, and a layer of another kind none."""

    def rank(self, tensors: Mapping[str, Tensor]) -> int | None:
        """Of its factors; None where there are none."""
        return None

    def change(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What is added to the layer's weight, (out, in), with the kernel behind where the tensors tell of one.

        Float32. Raises StError, as here, where that depends on the weight.
        """
        raise StError(
            f"what {', '.join(sorted(tensors))} make of a layer depends on its weight, which is not in the file"
        )


UPDATE_KIND: StrategyKind[Callable[[Options], UpdateKind]] = StrategyKind("update_kind")
"""What adapter files hold of a layer: ``build(options)``, with no option. No section of a run file names it."""


def kind_of(tensors: Collection[str], kinds: Mapping[str, UpdateKind]) -> str:
    """The name of the kind that a layer with these tensors is of; '' where none is known. Biases come last: they lie
    beside updates of any kind.
    """
    found = [name for name, kind in kinds.items() if set(kind.marks) & (set(tensors) - {"diff_b"})]
    return found[0] if found else next((name for name, kind in kinds.items() if set(kind.marks) & set(tensors)), "")


def registered_kinds(registrar: Registrar) -> dict[str, UpdateKind]:
    """Every kind of update by name, in the order in which they were added."""
    found = (one for one in registrar.strategies() if one.kind == UPDATE_KIND.name)
    return {one.name: one.build(one.options()) for one in found}
