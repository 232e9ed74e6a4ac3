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


class Slight(str):
    """A caveat of a program that reads all that is planned and computes some of it in another way."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Reader:
    """A program that reads adapter files. kinds: those that it applies. passed_over: of a kind, or of any ("*"), the
    extras that it does not look at, so that a layer changes by something else than what was trained. otherwise: extras
    that it computes in another way, and what it does."""

    name: str
    kinds: frozenset[str]
    passed_over: Mapping[str, frozenset[str]] = field(default_factory=dict)
    otherwise: Mapping[str, str] = field(default_factory=dict)

    def caveats(self, planned: Iterable[Planned]) -> list[str]:
        """What of these it would not show, or show otherwise (``Slight``), a sentence each; each once."""
        found: list[str] = []
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
            else:
                found += [
                    Slight(f"{self.name} {self.otherwise[extra]}: those layers come out a little otherwise there")
                    for extra in sorted(one.extras & self.otherwise.keys())
                ]
        return list(dict.fromkeys(found))


_PRODUCTS = frozenset({"lora", "locon", "loha", "lokr"})

COMFYUI = Reader(
    "ComfyUI",
    _PRODUCTS | {"dylora", "glora", "full", "norm", "diag-oft", "boft"},
    {"diag-oft": frozenset({"rescaled"})},
    {"dora": "divides the magnitudes of dora by the norm of the untrained weights, not of the changed ones"},
)
KOHYA = Reader("kohya's sd-scripts", COMFYUI.kinds, {"*": frozenset({"dora", "rescaled"})})
MUSUBI = Reader("musubi-tuner", _PRODUCTS | {"dylora"}, {"*": frozenset({"dora"})})
DIFFUSERS = Reader("diffusers", frozenset({"lora", "locon", "dylora", "lokr"}))
