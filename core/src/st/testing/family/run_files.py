"""RunFileTests: the run files that the documentation of a family shows train."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import pytest

from st.testing.declared import Conformance

if TYPE_CHECKING:
    from st.model.family import ModelFamily

BLOCK = re.compile(r"^```toml file=(\S+)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
SIZE = re.compile(r"\s--[wh] \d+")


class RunFileTests(Conformance):
    """Subclass it with the page of a family: each ```toml file=NAME block on it trains two steps of a tiny checkpoint.

    kind: the family. page: a page in Markdown. smaller: further settings, as ``st train --set`` takes them, that make
    runs of the family fit on any machine.
    """

    kind: ClassVar[type[ModelFamily[Any]]]
    page: ClassVar[Path]
    smaller: ClassVar[tuple[str, ...]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each run file."""
        if "text" in metafunc.fixturenames:
            files = _run_files(self.page)
            metafunc.parametrize("text", files.values(), ids=files.keys())

    def tiny(self, flavour: str, folder: Path) -> ModelFamily[Any]:
        """The family on a tiny checkpoint of a flavour; overridden where flavours differ in code."""
        return self.kind.tiny(folder)

    def test_every_flavour_has_a_run_file(self) -> None:
        options: Any = self.kind.Options
        flavours = set(get_args(options.model_fields["flavour"].annotation))
        default = options.model_fields["flavour"].default

        shown = {
            tomllib.loads(text).get("model", {}).get("flavour", default) for text in _run_files(self.page).values()
        }

        assert shown == flavours

    def test_a_run_file_trains_and_shows_pictures(self, text: str, tmp_path: Path) -> None:
        from st.testing.runs import TinyRun, call_cli

        settings = tomllib.loads(text)
        file = tmp_path / "run.toml"
        file.write_text(text, encoding="utf-8")
        words = [word for change in self._changes(settings, tmp_path) for word in ("--set", change)]

        result = call_cli("train", file, *words)

        assert result.code == 0, result.err + result.out
        done = TinyRun(tmp_path / "out", result)
        assert done.outcome == "finished"
        assert {"validation": bool(list(done.directory.rglob("samples/**/*.png")))} == {
            "validation": "validation" in settings
        }

    def _changes(self, settings: Mapping[str, Any], folder: Path) -> list[str]:
        """What makes a run file small, as ``--set`` takes it."""
        from st.testing.runs import write_photos

        photos = write_photos(folder / "photos")
        family = self.tiny(settings.get("model", {}).get("flavour", ""), folder / "tiny")
        options = family.options.model_dump(mode="json", exclude_defaults=True)
        changes = ["steps=2", "device='cpu'", f"output={str(folder / 'out')!r}"]
        changes += [f"model.{name}={json.dumps(value)}" for name, value in options.items()]
        for number, dataset in enumerate(settings.get("dataset", ())):
            changes += [f"dataset.{number}.url={str(photos)!r}"]
            changes += [f"dataset.{number}.{name}={value}" for name, value in _SMALL.items() if name in dataset]
            if "role" not in dataset:
                changes.append(f"dataset.{number}.align=16")
        if "validation" in settings:
            prompts = [_prompt(one, photos / "0.png") for one in settings["validation"].get("prompts", ())]
            changes += ["validation.every=2", "validation.steps=2", "validation.resolutions=['64']"]
            changes.append(f"validation.prompts=[{', '.join(prompts)}]")
        if "quantizer" in settings:
            # Layers of tiny checkpoints are smaller than any that is worth quantizing.
            changes.append("quantizer.smallest=64")
        return [*changes, *self.smaller]


_SMALL = {"resolution": 64}


def _run_files(page: Path) -> dict[str, str]:
    return dict(BLOCK.findall(page.read_text(encoding="utf-8")))


def _prompt(one: str | Mapping[str, Any], picture: Path) -> str:
    """A prompt of a run file at the small size, with a picture that is there, in TOML."""
    if isinstance(one, str):
        return json.dumps(SIZE.sub("", one))
    kept = {name: value for name, value in one.items() if name not in ("width", "height")}
    if "references" in kept:
        kept["references"] = [str(picture)] * len(kept["references"])
    if "control" in kept:
        kept["control"] = str(picture)
    return "{" + ", ".join(f"{name} = {json.dumps(value)}" for name, value in kept.items()) + "}"
