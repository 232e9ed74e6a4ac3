"""Loading: import a plugin's class and hold it to what every plugin promises."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import st
from st import hookspecs
from st.errors import PluginError, StError
from st.installing import install_command
from st.options import Options
from st.plugins.catalogue import Installed, Kind
from st.spelling import did_you_mean, either

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

T = TypeVar("T")
_FORBIDDEN_MARKS = ("tryfirst", "trylast", "hookwrapper", "wrapper", "optionalhook")


def load(plugin: Installed) -> type[Any]:
    """Import a plugin's class and check it. Raises PluginError naming the package, for whatever is wrong with it."""
    module, _, attribute = plugin.target.partition(":")
    cls = at_border(plugin, "failed to import", lambda: getattr(import_module(module), attribute))
    return check_class(plugin, cls)


def at_border(plugin: Installed, failed: str, call: Callable[[], T]) -> T:
    """What ``call`` into a plugin's code returns; whatever it raises becomes a PluginError. Its own StErrors pass."""
    try:
        return call()
    except StError:
        raise
    except Exception as error:
        local = not plugin.version
        fix = "" if local else f"Reinstall: {install_command(plugin.distribution, '--force-reinstall')}"
        raise PluginError(
            f"{plugin.label} {failed}: {type(error).__name__}: {error}",
            why=f"Traceback: st plugins check {plugin.target if local else plugin.name}",
            fix=fix if failed == "failed to import" else "",
        ) from error


def is_local(name: str) -> bool:
    """Whether a name of the plugin list is a file: ``./my_loss.py:MyLoss``."""
    return name.partition(":")[0].endswith(".py")


def load_local(name: str) -> tuple[Installed, type[Any]]:
    """Load ``./my_loss.py:MyLoss``; the plugin is named after the file, and the class says of which kind it is."""
    text, _, attribute = name.partition(":")
    path = Path(text)
    if not path.is_file():
        raise PluginError(f"there is no plugin file {text!r}.", fix=f"Looked for {path.absolute()}")
    if not attribute:
        raise PluginError(f"plugin file {text!r}: which class of it?", fix=f"Say {text}:NameOfTheClass")
    found = Installed(path.stem, "hooks", str(path), "", name, st.API[0])
    module = at_border(found, "failed to import", lambda: _import_file(path))
    cls = getattr(module, attribute, None)
    if cls is None:
        classes = [name for name, value in vars(module).items() if inspect.isclass(value)]
        known = f"Classes: {', '.join(classes)}." if classes else "It defines none."
        fix = " ".join(filter(None, (did_you_mean(attribute, classes), known)))
        raise PluginError(f"plugin file {text!r} has no class {attribute!r}.", fix=fix)
    found = replace(found, kind=_kind_of(cls))
    return found, check_class(found, cls)


def _import_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"st_local_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    # Dataclasses and pydantic look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _kind_of(cls: Any) -> Kind:
    from st.data.backend import DataBackend
    from st.model.family import ModelFamily
    from st.report.tracker import Tracker

    bases: dict[type, Kind] = {ModelFamily: "models", Tracker: "trackers", DataBackend: "backends"}
    other: Kind = "commands" if hasattr(cls, "command") and not hasattr(cls, "Options") else "hooks"
    return next((kind for base, kind in bases.items() if isinstance(cls, type) and issubclass(cls, base)), other)


def check_class(plugin: Installed, cls: object) -> type[Any]:
    """``cls`` if it is what every plugin is: a documented class with nested Options that is made from them.

    A command has neither: what is typed are its options. Raises PluginError.
    """
    if not isinstance(cls, type):
        raise PluginError(f"{plugin.label}: {plugin.target!r} is not a class but {type(cls).__name__}.")
    if not (cls.__doc__ or "").strip():
        raise PluginError(f"{plugin.label}: {cls.__name__} has no docstring.", fix="One line says what it does.")
    if plugin.kind == "commands":
        return _check_command(plugin, cls)
    options = getattr(cls, "Options", None)
    if not (isinstance(options, type) and issubclass(options, Options)):
        fix = "Nest one in it: class Options(st.Options): ..."
        raise PluginError(f"{plugin.label}: {cls.__name__} has no Options class.", fix=fix)
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise PluginError(f"{plugin.label}: {cls.__name__} lacks {', '.join(missing)}.")
    arguments = ("url", "options") if plugin.kind == "backends" else ("options",)
    try:
        inspect.signature(cls).bind(*arguments)
    except TypeError:
        signature = f"{cls.__name__}({', '.join(arguments)})"
        what = f"{plugin.label}: {cls.__name__} cannot be made as {signature}."
        raise PluginError(what, why=f"Its signature is {cls.__name__}{inspect.signature(cls)}.") from None
    _check_hooks(plugin, cls)
    return cls


def command_of(name: str, cls: type[Any]) -> Any:
    """What typer makes of a command's class: of its function, or of its app. The class says what it does."""
    import typer

    command: Any = inspect.getattr_static(cls, "command")
    if isinstance(command, typer.Typer):
        made = typer.main.get_group(command)
        made.name, made.help = name, made.help or inspect.getdoc(cls)
        return made
    app = typer.Typer(name=name, rich_markup_mode=None, add_completion=False)
    app.command(name, help=inspect.getdoc(command.__func__) or inspect.getdoc(cls))(command.__func__)
    return typer.main.get_command(app)


def _check_command(plugin: Installed, cls: type[Any]) -> type[Any]:
    import typer

    command = inspect.getattr_static(cls, "command", None)
    if not isinstance(command, (staticmethod, typer.Typer)):
        fix = "Give it one: @staticmethod above def command(...), or command = typer.Typer()"
        raise PluginError(f"{plugin.label}: {cls.__name__} has no function or app named command.", fix=fix)
    return cls


def _check_hooks(plugin: Installed, cls: type) -> None:
    specs = hook_arguments()
    for name, method in inspect.getmembers_static(cls, callable):
        marks = getattr(method, "st_impl", None)
        if marks is None:
            if name in specs:
                what = f"{plugin.label}: {name} is not marked as a hook, so it would never be called."
                raise PluginError(what, fix="Put @st.hookimpl above it.")
            continue
        if plugin.kind == "backends":
            raise PluginError(f"{plugin.label}: {name} would never be called: backends carry no hooks.")
        hook = marks["specname"] or name
        if hook not in specs:
            fix = did_you_mean(hook, specs) or f"Hooks: {', '.join(specs)}."
            raise PluginError(f"{plugin.label} implements {hook!r}, which is no hook.", fix=fix)
        if used := [mark for mark in _FORBIDDEN_MARKS if marks[mark]]:
            fix = "Plugins are asked in the order of the plugin list."
            raise PluginError(f"{plugin.label}: {hook} is marked {used[0]}, which st does not have.", fix=fix)
        unknown = [argument for argument in arguments_of(method) if argument not in specs[hook]]
        if unknown:
            what = f"{plugin.label}: hook {hook} has no argument {either(map(repr, unknown))}."
            raise PluginError(what, fix=f"It has: {', '.join(specs[hook])}." if specs[hook] else "It has none.")


def hook_arguments() -> dict[str, tuple[str, ...]]:
    """Every hook in the order in which a run calls them, with the names of its arguments."""
    return {
        name: tuple(inspect.signature(function).parameters)
        for name, function in vars(hookspecs).items()
        if name.startswith("st_") and inspect.isfunction(function)
    }


def arguments_of(method: Any) -> list[str]:
    """The names of a method's arguments, without ``self``."""
    return list(inspect.signature(method).parameters)[1:]
