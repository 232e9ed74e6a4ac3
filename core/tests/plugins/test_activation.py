"""Named plugins take part in a run, in the order of the list; everything else is left alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from st.errors import ProblemsFound
from st.plugins.activation import plugin_names, scheme_of
from st.settings.assembly import assemble
from st.settings.config import RunConfig

Package = Callable[..., Path]
RunToml = Callable[[str], Path]
Start = Callable[..., Any]

HOOK = '''
import st

class Plugin:
    """Answer with a name."""

    class Options(st.Options):
        amount: int = 1
        """How much."""

    def __init__(self, options):
        self.options = options

    @st.hookimpl
    def {hook}:
        {body}
'''
EMPTY = '''
import st

class Plugin:
    """Do nothing."""

    class Options(st.Options):
        """None."""

    def __init__(self, options): ...
'''


def hook(signature: str, body: str) -> str:
    return HOOK.format(hook=signature, body=body)


@pytest.fixture
def install(package: Package) -> Callable[..., None]:
    """Install one plugin: ``install("a", source, kind="hooks")``."""

    def install(name: str, source: str, kind: str = "hooks") -> None:
        module = f"st_{name}"
        package(f"st-{name}", "1.0", {f"st.v1.{kind}": {name: f"{module}:Plugin"}}, **{module: source})

    return install


@pytest.fixture
def start(quill: Path, run_toml: RunToml) -> Start:
    """Assemble a run of the family ``quill`` and further plugins."""

    def start(*plugins: str, text: str = "", overrides: tuple[str, ...] = ()) -> Any:
        return assemble(run_toml('plugins = ["quill"]\n' + text), plugins, overrides, environment={})

    return start


@pytest.fixture
def refusal(start: Start) -> Callable[..., str]:
    """What is said where a run cannot be assembled."""

    def refusal(*plugins: str, text: str = "") -> str:
        with pytest.raises(ProblemsFound) as raised:
            start(*plugins, text=text)
        return str(raised.value)

    return refusal


def test_answers_come_in_the_order_of_the_plugin_list(install: Callable[..., None], start: Start) -> None:
    for name in "abc":
        install(name, hook("st_step(self, run)", f"return {name!r}"))

    _, plugins = start("b", "c,a")

    assert plugins.pm.hook.st_step(run=None) == ["b", "c", "a"]
    assert [plugin.name for plugin in plugins.active] == ["quill", "b", "c", "a"]


def test_plugin_that_is_not_named_is_not_imported(install: Callable[..., None], start: Start) -> None:
    install("loud", "raise SystemExit")

    start()

    assert "st_loud" not in sys.modules


def test_plugin_gets_its_section(install: Callable[..., None], start: Start) -> None:
    install("a", EMPTY.replace('"""None."""', 'amount: int = 1\n        """How much."""'))

    config, plugins = start("a", text="[a]\namount = 7")

    assert config.plugin("a").amount == 7
    assert config.plugin("b") is None
    assert config.plugin("quill") is config.model
    assert plugins.versions()["a"] == {"kind": "hooks", "distribution": "st-a", "version": "1.0"}


def test_family_is_made_from_the_model_section(start: Start) -> None:
    config, plugins = start(text="[model]\nscale = 2.0")

    assert plugins.family.options is config.model
    assert config.model.scale == 2.0


def test_list_is_added_to_and_taken_from() -> None:
    assert plugin_names(["a", "b"], ["c,no:a", "b"]) == (["b", "c"], ["a"])
    assert plugin_names(["models:a"], ["no:a"]) == ([], ["a"])
    assert plugin_names(["a"], ["no:a,a"]) == (["a"], [])


def test_taking_away_what_does_not_exist_is_refused(refusal: Callable[..., str]) -> None:
    assert refusal("no:quil") == "no:quil takes nothing away: no plugin is named 'quil'.\n  Did you mean 'quill'?"


def test_two_families_are_refused(install: Callable[..., None], refusal: Callable[..., str], quill: Path) -> None:
    source = (quill / "st_quill.py").read_text()
    install("second", source.replace("Quill", "Plugin"), kind="models")

    said = refusal("second")

    assert "a run trains one model family; plugins name 'quill' and 'second'." in said
    assert "Take one away: --plugins no:second" in said


def test_file_is_a_plugin_named_after_itself(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "my_loss.py"
    path.write_text(hook("st_step(self, run)", "return self.options.amount"))

    config, plugins = start(f"{path}:Plugin", text="[my_loss]\namount = 3")

    assert plugins.pm.hook.st_step(run=None) == [3]
    assert plugins.active[-1].name == "my_loss"
    assert f"{path}:Plugin" in config.plugins


def test_file_that_is_no_plugin_says_why(refusal: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "mine.py"

    assert f"there is no plugin file {str(path)!r}." in refusal(f"{path}:Plugin")
    path.write_text(EMPTY)
    assert f"plugin file {str(path)!r}: which class of it?" in refusal(f"{path}")
    assert "has no class 'Plugim'.\n  Did you mean 'Plugin'?" in refusal(f"{path}:Plugim")
    path.write_text("1 / 0")
    assert "failed to import: ZeroDivisionError: division by zero\n  Traceback: st plugins check" in refusal(
        f"{path}:A"
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("Plugin = 3", "'st_odd:Plugin' is not a class but int."),
        (EMPTY.replace('"""Do nothing."""', ""), "Plugin has no docstring."),
        ('class Plugin:\n    """Do nothing."""', "Plugin has no Options class."),
        (
            EMPTY.replace("self, options", "self"),
            "Plugin cannot be made as Plugin(options).\n  Its signature is Plugin().",
        ),
        (EMPTY.replace("...", "raise KeyError(1)"), "cannot be made: KeyError: 1\n  Traceback: st plugins check odd"),
        (hook("st_stepp(self, run)", "..."), "implements 'st_stepp', which is no hook.\n  Did you mean 'st_step', "),
        (hook("st_step(self, rnu)", "..."), "hook st_step has no argument 'rnu'.\n  It has: run."),
        (hook("st_step(self, run)", "...").replace("    @st.hookimpl\n", ""), "st_step is not marked as a hook"),
        (
            hook("st_step(self, run)", "...").replace("hookimpl", "hookimpl(tryfirst=True)"),
            "st_step is marked tryfirst, which st does not have.",
        ),
        (hook("st_register(self, register)", "raise KeyError(1)"), "failed in st_register: KeyError: 1"),
        (
            hook("st_register(self, register)", "register.add(st.OPTIMIZER, 'adamw', print, self.Options)"),
            "optimizer 'adamw' is claimed by st and by plugin 'odd' (st-odd 1.0).",
        ),
    ],
)
def test_plugin_that_breaks_a_promise_says_which(
    install: Callable[..., None], refusal: Callable[..., str], source: str, said: str
) -> None:
    install("odd", source)

    assert said in refusal("odd")


def test_incomplete_family_names_what_it_lacks(install: Callable[..., None], run_toml: RunToml) -> None:
    source = 'import st\n\nclass Plugin(st.ModelFamily["Plugin.Options"]):\n    """Half a family."""\n'
    install("half", source, kind="models")

    with pytest.raises(ProblemsFound, match=r"Plugin lacks adapter_formats, adapter_targets, codec, load_denoiser"):
        assemble(run_toml('plugins = ["half"]'), environment={})


def test_plugin_named_as_a_section_is_refused(install: Callable[..., None], refusal: Callable[..., str]) -> None:
    install("cache", EMPTY)

    assert "plugin 'cache' (st-cache 1.0) has the name of a section of every run file: [cache]." in refusal("cache")


def test_all_plugins_that_cannot_be_used_are_named_together(
    install: Callable[..., None], refusal: Callable[..., str]
) -> None:
    install("odd", "1 / 0")
    install("even", "import doesnotexist")

    said = refusal("odd,even,nonesuchplugin", text="[odd]\namount = 1\n[clip]\nnorm = -1")

    assert "plugin 'odd' (st-odd 1.0) failed to import: ZeroDivisionError" in said
    assert "plugin 'even' (st-even 1.0) failed to import: ModuleNotFoundError" in said
    assert "no plugin is named 'nonesuchplugin'" in said
    assert "[clip] norm = -1" in said
    assert "[odd]" not in said


BACKEND = '''
import st

class Plugin(st.DataBackend):
    """Samples from nowhere."""

    class Options(st.Options):
        region: str = "north"
        """Where it is."""

    def samples(self, unreadable): ...
    def read(self, key): ...
'''


def test_scheme_of_a_url_activates_its_backend(install: Callable[..., None], start: Start) -> None:
    install("nowhere", BACKEND, kind="backends")

    config, plugins = start(text='[[dataset]]\nurl = "nowhere://bucket"\nregion = "south"\nrepeats = 2')

    (dataset,) = config.datasets
    assert (dataset.scheme, dataset.backend.region, dataset.options.repeats) == ("nowhere", "south", 2)
    assert plugins.active[-1].name == "nowhere"
    assert plugins.registrar.lookup("backend", "nowhere").build is plugins.active[-1].instance


def test_option_of_neither_data_set_nor_backend_is_refused(
    install: Callable[..., None], refusal: Callable[..., str]
) -> None:
    install("nowhere", BACKEND, kind="backends")

    said = refusal(text='[[dataset]]\nurl = "nowhere://bucket"\nregoin = "south"\nrepeets = 2')

    assert "run.toml:4: [dataset.0] has no option 'regoin'. Did you mean 'region' or" in said
    assert "run.toml:5: [dataset.0] has no option 'repeets'. Did you mean 'repeats'?" in said


def test_scheme_without_a_backend_names_the_data_set(refusal: Callable[..., str]) -> None:
    said = refusal(text='[[dataset]]\nurl = "nonesuchscheme://bucket"')

    assert "run.toml:3: [dataset.0] url = 'nonesuchscheme://bucket': no plugin is named 'nonesuchscheme'." in said


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("photos", "file"),
        ("/data/photos", "file"),
        ("./a:b", "file"),
        ("C:\\photos", "file"),
        ("file:photos", "file"),
        ("s3://bucket/x", "s3"),
        ("Memory:x", "memory"),
    ],
)
def test_scheme_is_what_stands_before_the_colon(url: str, scheme: str) -> None:
    assert scheme_of(url) == scheme


def test_strategy_of_a_plugin_can_be_chosen(install: Callable[..., None], start: Start) -> None:
    install("pack", hook("st_register(self, register)", "register.add(st.OPTIMIZER, 'mine', print, self.Options)"))

    config, plugins = start("pack", text='[optimizer]\nkind = "mine"\namount = 4')

    assert (config.optimizer.kind, config.optimizer.options.amount) == ("mine", 4)
    assert config.optimizer.build is print
    assert plugins.registrar.lookup("optimizer", "mine").owner == "plugin 'pack' (st-pack 1.0)"


def test_family_made_at_run_time_can_be_named(install: Callable[..., None], quill: Path, run_toml: RunToml) -> None:
    install(
        "maker",
        hook(
            "st_register(self, register)",
            "from st_quill import Quill; register.add(st.FAMILY, 'made', Quill, Quill.Options)",
        ),
    )

    config, plugins = assemble(run_toml('plugins = ["made", "maker"]\n[model]\nscale = 3.0'), environment={})

    assert type(plugins.family).__name__ == "Quill"
    assert isinstance(config, RunConfig)
    assert [plugin.name for plugin in plugins.active] == ["made", "maker"]


def test_hook_calls_are_printed_on_request(
    install: Callable[..., None],
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in "ab":
        install(name, hook("st_step(self, run)", "return None"))
    monkeypatch.setenv("ST_TRACE_HOOKS", "1")
    _, plugins = start("a,b")
    capsys.readouterr()

    plugins.pm.hook.st_step(run=None)

    assert capsys.readouterr().err == "hook st_step(run): a, b\n"


def test_what_a_hook_raises_names_its_plugin(install: Callable[..., None], start: Start) -> None:
    install("a", hook("st_step(self, run)", "return None"))
    install("b", hook("st_step(self, run)", "raise ZeroDivisionError('mine')"))
    _, plugins = start("a,b")

    with pytest.raises(ZeroDivisionError) as raised:
        plugins.answers("st_step", run=None)

    (note,) = raised.value.__notes__
    assert note.startswith("plugin 'b' (") and note.endswith(" failed in st_step")
