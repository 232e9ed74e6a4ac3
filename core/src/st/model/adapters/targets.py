"""Targets: which modules of a denoiser a name stands for."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from st.errors import StError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn


def match_modules(
    denoiser: nn.Module, patterns: Sequence[str], kinds: tuple[type[nn.Module], ...] | None = None
) -> tuple[str, ...]:
    """Paths of the modules that any pattern names, in the denoiser's order.

    A pattern is a path, the end of one (``attn.to_q``) or holds wildcards (``blocks.*.attn.to_q``). kinds: the classes
    that can be adapted; linear layers and convolutions where not said. Raises StError naming what comes closest to a
    pattern that matches nothing.
    """
    from torch import nn

    usable = kinds or (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    paths = {path: isinstance(module, usable) for path, module in denoiser.named_modules() if path}
    if not patterns:
        raise StError("no modules are named for the adapter", fix="set adapter.targets")
    for pattern in patterns:
        named = [path for path in paths if is_named(path, pattern)]
        if not any(paths[path] for path in named):
            what = f"the adapter's target {pattern!r} matches no layer of {type(denoiser).__name__}"
            why = f"{named[0]!r} is a {type(denoiser.get_submodule(named[0])).__name__}" if named else ""
            close = _closest(pattern, [path for path, fits in paths.items() if fits])
            raise StError(what, why=why, fix=f"closest are {', '.join(map(repr, close))}" if close else "")
    return tuple(path for path, fits in paths.items() if fits and any(is_named(path, one) for one in patterns))


def is_named(path: str, pattern: str) -> bool:
    """Whether a pattern stands for this path."""
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")
    return path == pattern or path.endswith(f".{pattern}")


def _closest(pattern: str, paths: Iterable[str]) -> list[str]:
    """Ends of paths, as long as the pattern is, that look like it; ends that begin or end like it come after."""
    depth = pattern.count(".") + 1
    ends = list(dict.fromkeys(".".join(path.split(".")[-depth:]) for path in paths))
    deeper = dict.fromkeys(".".join(path.split(".")[-depth - 1 :]) for path in paths)
    inside = [end for end in deeper if end.startswith(f"{pattern}.")]
    return (inside + get_close_matches(pattern, ends, n=3, cutoff=0.4))[:3] or ends[:3]
