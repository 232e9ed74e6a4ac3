"""Architecture: what other programs call a model, so that they know where an adapter file belongs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from st.model.family import ModelFamily
    from st.model.files.formats import LoraShape


@dataclass(frozen=True, slots=True)
class Architecture:
    """The names of one model in the headers of adapter files.

    name: of ``modelspec.architecture``, without what follows a slash. implementation: whose code the name refers to.
    base: of ``ss_base_model_version``. network: of ``ss_network_module``. prediction: '' for models to which the
    question does not apply. v2: what ``ss_v2`` says, which tells two models of one base apart. Names of modelspec:
    github.com/Stability-AI/ModelSpec, 1.0.0.
    """

    name: str
    implementation: str
    base: str
    network: str
    prediction: Literal["", "epsilon", "v"] = ""
    v2: bool = False


@runtime_checkable
class Described(Protocol):
    """A family whose model has a name among other programs."""

    def architecture(self) -> Architecture:
        """The names of the model that its options choose. Opens no file."""
        ...


def adapter_facts(family: ModelFamily[Any], kind: str) -> dict[str, str]:
    """What the header says of the model that an adapter of this kind ("lora") is for; empty where it has no name."""
    if not isinstance(family, Described):
        return {}
    model = family.architecture()
    facts = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{model.name}/{kind}",
        "modelspec.implementation": model.implementation,
        "ss_base_model_version": model.base,
        "ss_network_module": model.network,
        "ss_v2": str(model.v2),
    }
    return facts | ({"modelspec.prediction_type": model.prediction} if model.prediction else {})


def lora_facts(family: ModelFamily[Any], shape: LoraShape) -> dict[str, str]:
    """``adapter_facts`` of a low-rank adapter, with its size; "Dynamic", as with kohya's tools, where ranks differ."""
    return {
        **adapter_facts(family, "lora"),
        "ss_network_dim": _one(shape.ranks),
        "ss_network_alpha": _one(shape.alphas),
    }


def _one(numbers: Mapping[str, float]) -> str:
    counts = Counter(numbers.values())
    return f"{next(iter(counts)):g}" if len(counts) == 1 else "Dynamic"
