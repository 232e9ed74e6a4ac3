"""Readers: which kinds of updates the programs that adapter files are written for apply, and what they pass over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run is going to write of some layers, as far as its settings tell.

    kind: of the update, as its files are called ("lora", "lokr"). extras: what else it has ("dora", "rescaled").
    targets: the layers, as ``[adapter] targets`` names them.
    """

    kind: str
    extras: frozenset[str] = frozenset()
    targets: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """For sentences: "lokr with dora"."""
        return f"{self.kind} with {' and '.join(sorted(self.extras))}" if self.extras else self.kind


@dataclass(frozen=True, slots=True)
class Reader:
    """A program that reads adapter files. kinds: those that it applies. passed_over: of a kind, or of any ("*"), the
    extras that it does not look at, so that a layer changes by something else than what was trained."""

    name: str
    kinds: frozenset[str]
    passed_over: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def caveats(self, planned: Iterable[Planned]) -> list[str]:
        """What of these it would not show, a sentence each; each once."""
        found = []
        for one in planned:
            ignored = one.extras & (
                self.passed_over.get("*", frozenset()) | self.passed_over.get(one.kind, frozenset())
            )
            if one.kind not in self.kinds:
                found.append(f"{self.name} passes over {one.kind}: those layers stay untrained there")
            elif ignored:
                found.append(
                    f"{self.name} reads {one.kind} without {' and '.join(sorted(ignored))}: "
                    "those layers change by something else there than what was trained"
                )
        return list(dict.fromkeys(found))


_PRODUCTS = frozenset({"lora", "locon", "loha", "lokr"})

COMFYUI = Reader(
    "ComfyUI",
    _PRODUCTS | {"dylora", "glora", "full", "norm", "diag-oft", "boft"},
    {"diag-oft": frozenset({"rescaled"})},
)
KOHYA = Reader("kohya's sd-scripts", COMFYUI.kinds, {"*": frozenset({"dora", "rescaled"})})
DIFFUSERS = Reader("diffusers", frozenset({"lora", "locon", "dylora", "lokr"}))
