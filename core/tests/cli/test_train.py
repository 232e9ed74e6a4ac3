"""``st train`` before training: what it refuses and what it plans, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from st.cli import run
from st.installing import install_command
from st.plugins.catalogue import parse_known

RUN = """
    plugins = ["quill"]
    steps = 10
    output = "runs/first"
    [[dataset]]
    url = "file:photos"
"""
TREAD = '''
    import st
    from pydantic import Field

    class Skip:
        """Skip some tokens."""

        class Options(st.Options):
            drop: float = Field(0.5, gt=0, lt=1)
            """Fraction that is skipped."""
            first: int = Field(2, ge=0)
            """First block."""

        def __init__(self, options):
            self.options = options
'''

RunToml = Callable[[str], Path]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a dry run says on standard error where it ends with 2."""

    def dry_run(path: Path, *arguments: str) -> str:
        code = run(["train", str(path), "--dry-run", *arguments])
        output = capsys.readouterr()
        assert code == 2, output
        return output.err

    return dry_run


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the run file is to be trained on, seen from the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("a square")
    return folder


@pytest.fixture
def skip(package: Callable[..., Path]) -> None:
    package("st-skip", "1.0", {"st.v1.hooks": {"skip": "st_skip:Skip"}}, st_skip=TREAD)


def test_plan_is_printed(quill: Path, run_toml: RunToml, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["train", str(run_toml(RUN)), "--dry-run", "--set", "optimizer.lr=0.5"])

    output = capsys.readouterr()
    assert code == 0, output.err
    assert "st-quill 1.2" in output.out
    assert "optimizer.lr" in output.out


def test_unknown_plugin_is_answered_with_the_closest(
    quill: Path, run_toml: RunToml, refused: Callable[..., str]
) -> None:
    path = run_toml(RUN.replace('"quill"', '"quil"'))

    assert refused(path) == "Error: no plugin is named 'quil'.\n  Did you mean 'quill'?\n"


def test_plugin_of_ours_that_is_not_installed_says_how(
    run_toml: RunToml, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "st.plugins.catalogue.known_plugins", lambda: parse_known('[models]\nsablewood = "st-sablewood"')
    )

    exact = refused(run_toml(RUN.replace('"quill"', '"sablewood"')))
    close = refused(run_toml(RUN.replace('"quill"', '"sabelwood"')))

    assert exact == f"Error: plugin 'sablewood' is not installed.\n  Fix: {install_command('st-sablewood')}\n"
    assert close == (
        "Error: no plugin is named 'sabelwood'.\n"
        f"  Did you mean 'sablewood'? It is not installed: {install_command('st-sablewood')}\n"
    )


def test_plugin_of_another_api_is_refused_without_importing_it(
    package: Callable[..., Path], run_toml: RunToml, refused: Callable[..., str]
) -> None:
    package("st-old", "0.2", {"st.v0.hooks": {"old": "st_old:Old"}}, st_old="raise SystemExit")
    package("st-young", "3.0", {"st.v2.hooks": {"young": "st_young:Young"}}, st_young="raise SystemExit")

    old = refused(run_toml(RUN.replace('"quill"', '"old"')))
    young = refused(run_toml(RUN.replace('"quill"', '"young"')))

    assert "Error: plugin 'old' (st-old 0.2) speaks plugin API 0; this st speaks 1.\n  Fix: " in old
    assert f"  Fix: {install_command('st-old', '-U')}\n" in old
    assert "plugin 'young' (st-young 3.0) speaks plugin API 2; this st speaks 1.\n" in young
    assert f"  Fix: {install_command('st-core', '-U')}\n" in young


def test_plugin_that_fails_to_import_is_named_with_its_package(
    quill: Path, package: Callable[..., Path], run_toml: RunToml, refused: Callable[..., str]
) -> None:
    package("st-broken", "0.2", {"st.v1.hooks": {"broken": "st_broken:Broken"}}, st_broken="import doesnotexist")

    said = refused(run_toml(RUN), "--plugins", "broken")

    assert said == (
        "Error: plugin 'broken' (st-broken 0.2) failed to import: ModuleNotFoundError: No module named 'doesnotexist'\n"
        "  Traceback: st plugins check broken\n"
        f"  Reinstall: {install_command('st-broken', '--force-reinstall')}\n"
    )


@pytest.mark.usefixtures("quill", "skip")
def test_every_wrong_setting_is_shown_with_its_line(run_toml: RunToml, refused: Callable[..., str]) -> None:
    path = run_toml("""
        plugins = ["quill", "skip"]
        steps = 10
        output = "runs/first"
        [skip]
        drop = 1.5
        frist = 3
        [[dataset]]
        url = "file:photos"
        repeats = "many"
        [optimizer]
        kind = "admw"
        [clip]
        norm = -1
    """)

    assert refused(path) == (
        "Error: run.toml:5: [skip] drop = 1.5: must be less than 1.\n"
        "Error: run.toml:6: [skip] has no option 'frist'. Did you mean 'first'?\n"
        "Error: run.toml:9: [dataset.0] repeats = 'many': must be a whole number.\n"
        "Error: run.toml:11: [optimizer] kind = 'admw': no optimizer is named 'admw'. Did you mean 'adamw'?\n"
        "  There are: adafactor, adamw, adamw_bf16, sgd.\n"
        "Error: run.toml:13: [clip] norm = -1: must be at least 0.\n"
    )


@pytest.mark.usefixtures("quill", "skip")
def test_section_of_an_inactive_plugin_is_refused(run_toml: RunToml, refused: Callable[..., str]) -> None:
    path = run_toml(RUN + "    [skip]\n    drop = 0.5\n")

    assert refused(path) == (
        "Error: run.toml:6: [skip] configures a plugin that is not active.\n"
        '  Add "skip" to plugins, or delete the section.\n'
    )


@pytest.mark.usefixtures("quill", "skip")
def test_section_of_a_plugin_that_was_taken_away_is_left_alone(run_toml: RunToml) -> None:
    path = run_toml(RUN.replace('"quill"', '"quill", "skip"') + "    [skip]\n    drop = 0.5\n")

    assert run(["train", str(path), "--dry-run", "--plugins", "no:skip"]) == 0


def test_contradiction_found_by_a_plugin_is_shown(
    quill: Path, package: Callable[..., Path], run_toml: RunToml, refused: Callable[..., str]
) -> None:
    package(
        "st-picky",
        "1.0",
        {"st.v1.hooks": {"picky": "st_picky:Picky"}},
        st_picky='''
            import st

            class Picky:
                """Refuse every run."""

                class Options(st.Options):
                    """None."""

                def __init__(self, options): ...

                @st.hookimpl
                def st_check(self, config):
                    what = f"picky reads block 8 of {config.model.checkpoint}."
                    yield st.Problem("picky", what, fix="Set picky.block.")
        ''',
    )

    said = refused(run_toml(RUN), "--plugins", "picky")

    assert said == "Error: picky reads block 8 of quill-tiny.\n  Set picky.block.\n"


@pytest.mark.usefixtures("quill")
def test_problems_of_file_override_and_environment_name_their_source(
    run_toml: RunToml, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ST_OPTIMIZER__BETA1", "2")

    said = refused(run_toml(RUN + "    [model]\n    scale = 'big'\n"), "--set", "clip.norm=high")

    assert said == (
        "Error: run.toml:7: [model] scale = 'big': must be a number.\n"
        "Error: --set clip.norm='high': must be a number.\n"
        "Error: ST_OPTIMIZER__BETA1=2: must be less than 1.\n"
    )


def test_run_without_a_family_lists_those_installed(
    quill: Path, run_toml: RunToml, refused: Callable[..., str]
) -> None:
    said = refused(run_toml(RUN.replace('"quill"', "")))

    assert said.startswith("Error: no model family is named in plugins.\n  Installed: ")
    assert "quill" in said


def test_what_training_needs_is_asked_for_at_once(quill: Path, run_toml: RunToml, refused: Callable[..., str]) -> None:
    said = refused(run_toml('plugins = ["quill"]'))

    assert "run.toml: steps: must be set, or epochs." in said
    assert "run.toml: output: must be set." in said
    assert "run.toml: [[dataset]]: there is none to train on." in said


def test_both_steps_and_epochs_are_refused(quill: Path, run_toml: RunToml, refused: Callable[..., str]) -> None:
    assert (
        refused(run_toml(RUN), "--set", "epochs=2")
        == "Error: run.toml:2: steps = 10 and epochs = 2: give one of them.\n"
    )


def test_missing_run_file_says_where_it_was_looked_for(tmp_path: Path, refused: Callable[..., str]) -> None:
    said = refused(tmp_path / "none.toml")

    assert (
        said == f"Error: there is no run file {str(tmp_path / 'none.toml')!r}.\n  Looked for {tmp_path / 'none.toml'}\n"
    )


def test_prompt_file_that_is_missing_stops_the_run_before_anything_is_loaded(
    quill: Path, run_toml: RunToml, refused: Callable[..., str]
) -> None:
    said = refused(run_toml(RUN), "--set", "validation.every=5", "--set", "validation.library=none.txt")

    assert "none.txt" in said


def test_defect_ends_with_a_traceback_and_1(
    package: Callable[..., Path], quill: Path, run_toml: RunToml, capsys: pytest.CaptureFixture[str]
) -> None:
    source = '''
        import st

        class Faulty:
            """Fail."""

            class Options(st.Options):
                """None."""

            def __init__(self, options): ...

            @st.hookimpl
            def st_check(self, config):
                raise ZeroDivisionError("mine")
    '''
    package("st-faulty", "1.0", {"st.v1.hooks": {"faulty": "st_faulty:Faulty"}}, st_faulty=source)

    code = run(["train", str(run_toml(RUN)), "--dry-run", "--plugins", "faulty"])

    assert code == 1
    assert "ZeroDivisionError: mine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("batch=2", "too few samples to fill a batch"),
        ("dataset.0.url=nowhere", "folder 'nowhere' does not exist."),
        ("dataset.0.url=photos/a.png", "'photos/a.png' is a file; a data set is a folder of them."),
        ("validation.every=5", "validation.every = 5 renders nothing: there are no prompts."),
        ("validation.prompts=['a']", "validation.prompts would never be rendered: validation.every is not set."),
        ("optimizer.lr=1e9", "optimizer.lr = 1e+09 would destroy the weights in one step."),
        ("optimizer.groups=[{match='a',lr=1e9}]", "optimizer.groups.0.lr = 1e+09 would destroy"),
        ("steps=true", "--set steps=true: must be a whole number."),
        ("clip.norm=true", "--set clip.norm=true: must be a number."),
    ],
)
@pytest.mark.usefixtures("quill")
def test_a_dry_run_finds_what_training_would_stop_at_or_do_in_vain(
    setting: str, said: str, run_toml: RunToml, refused: Callable[..., str]
) -> None:
    assert said in refused(run_toml(RUN), "--set", setting)


@pytest.mark.usefixtures("quill")
def test_a_dry_run_finds_what_cannot_be_accepted(run_toml: RunToml, capsys: pytest.CaptureFixture[str]) -> None:
    foo = run(["train", str(run_toml(RUN)), "--dry-run", "--resume", "--accept", "foo"])
    alone = run(["train", str(run_toml(RUN)), "--dry-run", "--accept", "batch"])

    assert (foo, alone) == (2, 2)
    said = capsys.readouterr().err
    assert "--accept foo: there is no such setting." in said
    assert "--accept batch has no effect without --resume" in said


@pytest.mark.usefixtures("quill")
def test_options_of_another_kind_are_refused_as_that(run_toml: RunToml, refused: Callable[..., str]) -> None:
    path = run_toml(RUN + '    [adapter]\n    kind = "lora"\n    rank = 8\n')

    assert refused(path, "--set", "adapter.kind=full") == (
        "Error: run.toml:8: [adapter] rank is an option of 'lora', not of the kind that is chosen.\n"
        "  Chosen by --set adapter.kind='full'\n"
        "  Take it out of the section, or choose one that has it.\n"
    )


@pytest.mark.usefixtures("quill")
def test_a_dry_run_writes_nothing(run_toml: RunToml, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))

    assert run(["train", str(run_toml(RUN)), "--dry-run"]) == 0

    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.suffix != ".toml"] == []


@pytest.mark.parametrize("command", [["--help"], ["plugins"], ["train", "--dry-run"], ["data", "--help"]])
def test_start_imports_nothing_heavy(quill: Path, run_toml: RunToml, command: list[str]) -> None:
    arguments = [*command, *([str(run_toml(RUN))] if "--dry-run" in command else [])]
    # A dry run lists the pictures.
    listing = () if "--dry-run" in command else ("numpy", "pyarrow", "PIL")
    heavy = ("torch", "diffusers", "transformers", "accelerate", "peft", *listing)
    code = (
        "import sys; from st.cli import run; code = run(sys.argv[1:]); "
        f"print('loaded', *(name for name in {heavy!r} if name in sys.modules)); sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(quill), os.environ.get("PYTHONPATH", "")])}

    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded"]


@pytest.mark.parametrize("command", [["-h"], ["data", "-h"], ["adapter", "-h"], ["train", "-h"]])
def test_help_says_whole_sentences_however_narrow_the_terminal(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")

    assert run(command) == 0

    said = capsys.readouterr().out
    assert "..." not in said.replace("[ARGS]...", "")
    assert command != ["-h"] or "Train diffusion models with plugins" in said


def test_an_interrupt_before_training_listens_is_one_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("st.cli.application", interrupted)

    assert run(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
