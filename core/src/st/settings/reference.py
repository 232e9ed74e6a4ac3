"""Reference: options and hooks as Markdown, written from the code that reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from inspect import cleandoc, getdoc, signature
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from st import hookspecs
from st.data.backend import BACKEND
from st.errors import StError
from st.options import Options
from st.plugins.activation import hook_manager
from st.plugins.builtin import Builtin
from st.plugins.catalogue import Catalogue, Installed
from st.plugins.loading import at_border, hook_arguments, is_local, load, load_local
from st.reading.toml import value_text
from st.registrar import Registrar, Strategy
from st.settings.config import CHOICES, SECTIONS, RunOptions, section_options
from st.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_BLOCK = re.compile(r"(<!-- generated: st reference (?P<command>[^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_SIGNS = {"gt": ">", "ge": "\u2265", "lt": "<", "le": "\u2264", "multiple_of": "a multiple of"}
_WORDS: dict[object, str] = {str: "string", bool: "true or false", Any: "anything"}


class ReferenceUnknown(StError):
    """A page of the reference that does not exist."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Described:
    """Plugins that were loaded to be described, with every strategy that they and the core bring."""

    plugins: tuple[tuple[Installed, type[Any]], ...]
    registrar: Registrar


def describe(names: Iterable[str], catalogue: Catalogue | None = None) -> Described:
    """Load plugins by name; the strategies of one whose options lack defaults stay unknown. Raises PluginError."""
    catalogue = catalogue or Catalogue.scan()
    registrar = Registrar()
    Builtin().st_register(registrar)
    plugins = []
    for name in names:
        installed, cls = load_local(name) if is_local(name) else _load(catalogue.find(name))
        if installed.kind == "commands":
            raise ReferenceUnknown(f"{name!r} is a command, without settings.", fix=f"Type st {installed.name} --help")
        plugins.append((installed, cls))
        if installed.kind == "backends":
            registrar.add(BACKEND, installed.name, cls, cls.Options)
            continue
        try:
            options = cls.Options()
        except ValidationError:
            continue
        instance = at_border(installed, "cannot be made", lambda: cls(options))  # noqa: B023
        with registrar.owned_by(installed.label) as register:
            hook_manager([(installed.name, instance)]).hook.st_register(register=register)
    return Described(tuple(plugins), registrar)


def _load(installed: Installed) -> tuple[Installed, type[Any]]:
    return installed, load(installed)


def options_page(names: Sequence[str] = ()) -> str:
    """The options of plugins and of sections of the core as Markdown tables; without names, everything of the core."""
    if not names:
        sections = ["run", "dataset", *CHOICES, *SECTIONS]
        return "\n".join(f"## `{name}`\n\n{options_page([name])}" for name in sections)
    described = describe(name for name in names if name not in {"run", "dataset", *CHOICES, *SECTIONS})
    pages = [_core_page(name, described.registrar) for name in names if name in {"run", "dataset", *CHOICES, *SECTIONS}]
    for installed, cls in described.plugins:
        prefix = {"models": "model", "backends": "dataset"}.get(installed.kind, installed.name)
        pages.append(options_table(prefix, cls.Options))
        # An engine has the options of [ranks].
        brought = [
            found
            for found in described.registrar.strategies()
            if found.owner == installed.label and found.kind not in ("engine", "update_kind")
        ]
        pages += [_strategy_table(strategy) for strategy in brought if strategy.build is not cls]
    return "\n".join(pages)


def _core_page(name: str, registrar: Registrar) -> str:
    if name == "run":
        return options_table("", RunOptions)
    if name == "dataset":
        from st.data.dataset import DatasetOptions

        backends = [_strategy_table(strategy) for strategy in registrar.strategies() if strategy.kind == "backend"]
        return "\n".join([options_table("dataset", DatasetOptions), *backends])
    if name in SECTIONS:
        return options_table(name, section_options(name))
    found = [_strategy_table(strategy) for strategy in registrar.strategies() if strategy.kind == name]
    if name == "optimizer":
        from st.train.updates.groups import GroupOptions

        found.append(
            f"`[[optimizer.groups]]`: {getdoc(GroupOptions)}\n\n{options_table('optimizer.groups.0', GroupOptions)}"
        )
    return "\n".join(found) if found else "The core brings none; plugins do.\n"


def _strategy_table(strategy: Strategy) -> str:
    title, prefix = f'`[{strategy.kind}] kind = "{strategy.name}"`', str(strategy.kind)
    if strategy.kind == "backend":
        title, prefix = f'`url = "{strategy.name}:..."`', "dataset"
    meaning = (getdoc(strategy.options) or "").partition("\n\n")[0].replace("\n", " ")
    return f"{title}: {meaning}\n\n{options_table(prefix, strategy.options)}"


def options_table(prefix: str, cls: type[Options]) -> str:
    """A Markdown table of the options of ``cls``, nested ones as further rows."""
    rows = list(_rows(prefix, cls))
    if not rows:
        return "It has no options.\n"
    lines = ["| option | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows), ""]
    )


def _rows(prefix: str, cls: type[Options]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in cls.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        yield f"`{path}`", type_text(field), _default(field), (field.description or "").replace("\n", " ")
        for nested, is_list in _nested(field.annotation):
            yield from _rows(f"{path}.0" if is_list else path, nested)


def _nested(annotation: Any, is_list: bool = False) -> Iterator[tuple[type[Options], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation, is_list
    for argument in get_args(annotation):
        yield from _nested(argument, is_list or get_origin(annotation) in (list, tuple))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    assert value is not PydanticUndefined
    if value is None:
        return "unset"
    plain = value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, Options) else value
    return f"`{value_text(plain)}`"


def type_text(field: FieldInfo) -> str:
    """What a field takes: ``float (> 0, < 1)``, ``"a" or "b"``, ``list of int``."""
    limits = [text for item in field.metadata for text in _limits(item)]
    return _type(field.annotation) + (f" ({', '.join(limits)})" if limits else "")


def _limits(item: Any) -> Iterator[str]:
    if isinstance(item, FieldInfo):
        yield from (text for inner in item.metadata for text in _limits(inner))
        return
    for name, sign in _SIGNS.items():
        if (limit := getattr(item, name, None)) is not None:
            yield f"{sign} {limit:g}"
    if (fewest := getattr(item, "min_length", None)) is not None:
        yield f"at least {fewest}"
    if (most := getattr(item, "max_length", None)) is not None:
        yield f"at most {most}"


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value_text(value)}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not NoneType)
    if origin in (list, tuple, set, frozenset):
        members = list(dict.fromkeys(_type(argument) for argument in arguments if argument is not Ellipsis))
        return f"list of {' and '.join(members)}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        limits = [text for item in annotation.__metadata__ for text in _limits(item)]
        return _type(annotation.__origin__) + (f" ({', '.join(limits)})" if limits else "")
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return "table"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def hooks_page() -> str:
    """Every hook in the order in which a run calls them, with its arguments and its docstring."""
    pages = []
    for name in hook_arguments():
        function = getattr(hookspecs, name)
        # Annotations are text there, so that hooks can speak of types that cost much to import.
        head = f"{name}{signature(function)}".replace("'", "")
        pages.append(f"## `{head}`\n\n{cleandoc(function.__doc__ or '')}\n".replace("``", "`"))
    return "\n".join(pages)


def page(command: str) -> str:
    """What ``st reference COMMAND`` prints: ``options NAME...``, ``hooks`` or ``nouns``. Raises ReferenceUnknown."""
    kind, *names = command.split()
    if kind == "options":
        return options_page(names)
    if kind == "hooks" and not names:
        return hooks_page()
    if kind == "nouns":
        from st.settings.nouns import MODULES, nouns_page

        return nouns_page(tuple(names) or MODULES)
    fix = did_you_mean(kind, ("options", "hooks", "nouns")) or "There are: options, hooks, nouns."
    raise ReferenceUnknown(f"st reference {command}: there is no such page.", fix=fix)


def filled(text: str) -> str:
    """A text whose blocks between ``<!-- generated: st reference ... -->`` and ``<!-- end -->`` are up to date."""
    return _BLOCK.sub(lambda block: f"{block[1]}{page(block['command'])}{block[3]}", text)
