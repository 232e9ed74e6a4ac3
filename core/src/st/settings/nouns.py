"""Nouns: every public name with its signature and what it promises, as Markdown, written from the code."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

MODULES = ("st", "st.testing", "st.model.pipelines.tiny_kit")
"""Where public names are."""
TENSORS = re.compile(r"\b(Tensor|Latents|Predict|nn\.Parameter)\b")
SHAPES = re.compile(r"\([A-Z0-9][^()]*[,)]|\b(shapes?|like|scalars?)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Member:
    """A field, property or method of a class, or a name of a module. told: its docstring, empty where it has none."""

    name: str
    signature: str
    told: str


@dataclass(frozen=True, slots=True)
class Noun:
    """A public name. members: in the order of the source, without what begins with an underscore."""

    module: str
    name: str
    signature: str
    told: str
    members: tuple[Member, ...] = ()

    def text_of(self, member: Member) -> str:
        """What is said about a member: under it, or in the docstring of the class."""
        return member.told or self.told


def nouns(module: str) -> list[Noun]:
    """Every public name of a module. Imports all of them."""
    public: Any = import_module(module)
    names = getattr(public, "__all__", None) or _defined(public)
    homes: dict[str, str] = getattr(public, "_HOME", {})
    return [_noun(module, homes.get(name, module), name, getattr(public, name)) for name in names]


def nouns_page(modules: tuple[str, ...] = MODULES) -> str:
    """All public names of these modules as Markdown."""
    return "\n".join(f"## `{module}`\n\n{''.join(_section(noun) for noun in nouns(module))}" for module in modules)


def untold(noun: Noun) -> Iterator[str]:
    """What of a noun has no docstring, and what takes or gives tensors and says nothing about their shapes."""
    if not noun.told:
        yield f"{noun.module}.{noun.name} has no docstring"
    if noun.module == "st.testing":
        return
    if not noun.members and TENSORS.search(noun.signature) and not SHAPES.search(noun.told):
        yield f"{noun.module}.{noun.name} says no shapes"
    for member in noun.members:
        if TENSORS.search(member.signature) and not SHAPES.search(f"{member.told} {noun.told}"):
            yield f"{noun.module}.{noun.name}.{member.name} says no shapes"


def _noun(module: str, home: str, name: str, found: Any) -> Noun:
    told = inspect.cleandoc(found.__doc__ or "") if inspect.isclass(found) or inspect.isroutine(found) else ""
    if inspect.isclass(found):
        bases = [base.__name__ for base in found.__bases__ if base.__name__ not in ("object", "Generic", "Protocol")]
        of = f"({', '.join(bases)})" if bases else ""
        return Noun(module, name, f"class {name}{of}", told, tuple(_members(found)))
    if callable(found) and inspect.isfunction(found):
        return Noun(module, name, f"{name}{_signature(found)}", told)
    return Noun(module, name, f"{name} = {found!r}" if isinstance(found, tuple) else name, _said(home, name))


def _members(cls: type) -> Iterator[Member]:
    fields = _fields(cls)
    for name, (annotation, told) in fields.items():
        yield Member(name, f"{name}: {annotation}", told)
    for name, value in vars(cls).items():
        if name.startswith("_") or name in fields:
            continue
        plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if isinstance(plain, property):
            answer = inspect.signature(plain.fget).return_annotation if plain.fget else ""
            yield Member(name, f"{name}: {answer}", inspect.getdoc(plain) or "")
        elif inspect.isfunction(plain):
            yield Member(name, f"{name}{_signature(plain)}", inspect.getdoc(getattr(cls, name)) or "")


class _Raw:
    """Text that a signature shows as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _signature(function: Any) -> str:
    plain = inspect.signature(function)
    kept = [_shown(one) for name, one in plain.parameters.items() if name not in ("self", "cls")]
    answer = plain.return_annotation
    return str(plain.replace(parameters=kept, return_annotation=_Raw(answer) if isinstance(answer, str) else answer))


def _shown(one: inspect.Parameter) -> inspect.Parameter:
    """Annotations are text; a default that does not fit a line is three dots."""
    if isinstance(one.annotation, str):
        one = one.replace(annotation=_Raw(one.annotation))
    is_plain = one.default is one.empty or isinstance(one.default, (str, int, float, tuple, type(None)))
    return one if is_plain else one.replace(default=_Raw("..."))


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(import_module(module)))


def _fields(cls: type) -> dict[str, tuple[str, str]]:
    """Annotated attributes: how each is annotated, and the string under it."""
    for node in ast.walk(_tree(cls.__module__)):
        if isinstance(node, ast.ClassDef) and node.name == cls.__qualname__:
            return {name: found for name, found in _annotated(node.body) if not name.startswith("_")}
    return {}


def _annotated(body: list[ast.stmt]) -> Iterator[tuple[str, tuple[str, str]]]:
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = f" = {ast.unparse(node.value)}" if node.value is not None else ""
            yield node.target.id, (ast.unparse(node.annotation) + default, _text(following))


def _text(node: ast.stmt | None) -> str:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return inspect.cleandoc(node.value.value) if is_text else ""  # type: ignore[union-attr]


def _said(module: str, name: str) -> str:
    """The string under a module's own name."""
    body = _tree(module).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return _text(following)
    return ""


def _defined(module: Any) -> list[str]:
    """Public names that a module defines itself, in the order of its source."""
    found = [node for node in _tree(module.__name__).body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [getattr(node, "name", None) or getattr(getattr(node, "target", None), "id", "") for node in found]
    names += [target.id for node in found if isinstance(node, ast.Assign) for target in node.targets]  # type: ignore[attr-defined]
    return sorted(name for name in names if name and not name.startswith("_"))


def _section(noun: Noun) -> str:
    lines = [f"### `{noun.name}`", "", f"```text\n{noun.signature}\n```", "", noun.told, ""]
    for member in noun.members:
        told = " ".join(member.told.split())
        lines.append(f"- `{member.signature}`{f': {told}' if told else ''}")
    return "\n".join([*lines, "", ""] if noun.members else [*lines, ""])
