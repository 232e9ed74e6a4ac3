"""What combines with what: families, adapters, techniques and quantizers, each tried on a tiny checkpoint.

    python tests/combinations.py [--families NAME ...] [--only WORD ...] [--write]

``--write`` keeps what was found in tests/combinations.json, family by family, and makes docs/combinations.md of it;
without ``--families`` it tries all that train on pictures.

A combination works where three steps train; a run that was stopped after two and resumed writes the same checkpoint
and the same files, byte for byte; the saved run opens again; and, for LoRA and full without a quantizer, the file
that was written makes a fresh denoiser answer as the trained one does. Where a run is refused with a message, the
message is the table's. Anything else is a failure, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from combinations_axes import Axes, Cell, Verdict
from combinations_page import PAGE, keep, kept, page

from st.errors import StError
from st.plugins.catalogue import Catalogue
from st.plugins.loading import load
from st.report.log.events import read_events
from st.testing.media import tone, write_sound
from st.testing.runs import call_cli, write_photos

BUILT_IN = {"lora", "full"}
TOLERANCE = 1e-4
"""Of the largest answer: PiSSA and OLoRA give up a part of the base and take it back, in float32."""

RUN_FILE = """
plugins = {plugins}
output = "{output}"
steps = {steps}
batch = 2
precision = "fp32"
device = "cpu"
[model]
{model}
[optimizer]
lr = 1e-2
[report]
every = 1
[metadata]
keep = "anonymous"
[cache]
url = "{cache}"
[[dataset]]
name = "photos"
url = "{media}"
{size}
{dataset}
{text}
"""


@cache
def subject(name: str, folder: Path) -> Any:
    """The family of this name on a tiny checkpoint in a folder, written where it is not there yet."""
    loaded: Any = load(Catalogue.scan().find(name, "models"))
    return loaded.tiny(folder / name)


def families() -> list[str]:
    """Every installed family."""
    return Catalogue.scan().names("models")


def hears(family: Any) -> bool:
    """Whether a family trains on sounds; the others train on pictures, or on clips of one frame."""
    return "audio" in family.codec().reads


@dataclass
class Bench:
    """A folder with a tiny checkpoint of each family, pictures and a cache for all."""

    folder: Path
    count: int = 0

    def verdict(self, cell: Cell) -> Verdict:
        """Train, resume, save and reload one combination."""
        self.count += 1
        here = self.folder / f"cell-{self.count}"
        here.mkdir()
        whole = self._train(cell, here / "whole", 3)
        if whole.code:
            return self._why(whole.err, here / "whole")
        half = self._train(cell, here / "half", 2)
        resumed = self._train(cell, here / "half", 3, resume=True)
        if half.code or resumed.code:
            return Verdict("fails", f"resumed: {_sentence(half.err + resumed.err)}")
        if changed := _differing(here / "whole", here / "half"):
            return Verdict("fails", f"a resumed run ends with another {changed[0]}")
        try:
            with redirect_stderr(io.StringIO()):
                apart = self._apart(cell, here / "whole")
        except StError as error:
            return Verdict("fails", f"reloaded: {_sentence(str(error))}")
        if apart > TOLERANCE:
            return Verdict("fails", f"the file that was written gives answers that are {apart:.1e} off")
        return Verdict("works")

    def _train(self, cell: Cell, output: Path, steps: int, *, resume: bool = False) -> Any:
        media, size = self._media(cell.family)
        plugins = dict.fromkeys([cell.family, *(name for row in cell.rows for name in row.plugins)])
        file = output.with_suffix(".toml")
        text = RUN_FILE.format(
            plugins=json.dumps(list(plugins)),
            output=output,
            steps=steps,
            model=self._model(cell.family),
            cache=self.folder / "cache" / cell.family,
            media=media,
            size=size,
            dataset="\n".join(row.dataset for row in cell.rows),
            text="\n".join(row.text.replace("{photos}", str(media)) for row in cell.rows).replace(
                "{dino}", str(self._vision_encoder())
            ),
        )
        file.write_text(text, encoding="utf-8")
        return call_cli("train", file, *(["--resume"] if resume else []))

    def _media(self, family: str) -> tuple[Path, str]:
        """What it trains on, and the lines that make that small."""
        one = subject(family, self.folder)
        if not hears(one):
            return write_photos(self.folder / "photos"), "resolution = 64\nalign = 16"
        folder: Path = self.folder / f"sounds-{family}"
        if not folder.exists():
            codec = one.codec()
            folder.mkdir()
            for number, seconds in enumerate((1.3, 2.2, 1.4, 2.1)):
                sound = tone(seconds, codec.sample_rate, 200.0 + 90 * number, codec.channels)
                write_sound(folder / f"{number}.wav", sound, codec.sample_rate)
                (folder / f"{number}.txt").write_text(f"sound number {number}", encoding="utf-8")
        return folder, 'media = "audio"\nduration_interval = 1.0'

    def _model(self, family: str) -> str:
        """What a run file says of the tiny checkpoint."""
        options = subject(family, self.folder).options.model_dump(mode="json", exclude_defaults=True)
        return "\n".join(f"{name} = {json.dumps(value)}" for name, value in options.items())

    def _vision_encoder(self) -> Path:
        """A DINOv2 of random weights."""
        from transformers import Dinov2Config, Dinov2Model

        folder = self.folder / "dino"
        if not folder.exists():
            config = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
            Dinov2Model(Dinov2Config(**config, image_size=28, patch_size=14)).save_pretrained(folder)
        return folder

    def _why(self, error: str, output: Path) -> Verdict:
        """A message before the first step is a refusal; anything else should not have happened."""
        events = output / "events.jsonl"
        steps = (
            [event for event in read_events(events) if "loss" in (event.get("metrics") or {})]
            if events.exists()
            else []
        )
        refused = not steps and "Traceback" not in error
        return Verdict("refused" if refused else "fails", _sentence(error))

    def _apart(self, cell: Cell, output: Path) -> float:
        """How far answers of a fresh denoiser with the written file are from those of the run that wrote it."""
        import torch

        from st.data.geometry import Geometry
        from st.testing import example_batch, example_noised
        from st.train.reopening import open_run

        run, _ = open_run(output, trust=True)
        if cell.quantizer is not None or cell.adapter.kind not in ("", *BUILT_IN):
            return 0.0
        family: Any = run.family
        batch = example_batch(family, Geometry(frames=0, seconds=1.0) if hears(family) else Geometry(64, 64))
        noised = example_noised(family, batch)
        fresh = _reloaded(family, output)
        with torch.no_grad():
            expected, found = (family.predict(one, noised, batch) for one in (run.denoiser, fresh))
        return float((found - expected).abs().max() / expected.abs().max())


def _reloaded(family: Any, output: Path) -> Any:
    """A denoiser from the files that a run wrote for others."""
    import torch

    from st.model.adapters.lora import LoraAdapter, LoraOptions

    cpu = torch.device("cpu")
    if (output / "model").is_dir():
        options = family.options.model_copy(update={"checkpoint": str(output / "model")})
        return type(family)(options).load_denoiser(cpu, torch.float32)
    fresh = family.load_denoiser(cpu, torch.float32)
    adapter = LoraAdapter(LoraOptions(start=str(output / "adapter.safetensors")))
    adapter.attach(fresh, family.adapter_targets(), family.adapter_formats())
    return fresh.eval()


def _differing(one: Path, other: Path) -> list[str]:
    """Names of files of the last checkpoint and of what was exported that are not the same, byte for byte."""
    digests = [dict(_digests(folder)) for folder in (one, other)]
    names = sorted(digests[0].keys() | digests[1].keys())
    return [name for name in names if digests[0].get(name) != digests[1].get(name)] or ([] if names else ["nothing"])


def _digests(output: Path) -> Iterator[tuple[str, str]]:
    newest = max((output / "checkpoints").glob("step-*"))
    kept = [*newest.rglob("*.safetensors"), *output.glob("*.safetensors"), *(output / "model").rglob("*")]
    for file in kept:
        if file.is_file():
            # The index of a modular pipeline says in which folder it lies.
            said = file.read_bytes().replace(str(output).encode(), b"")
            yield str(file.relative_to(output)), hashlib.sha256(said).hexdigest()


def _sentence(error: str) -> str:
    """The first message of a command that failed, in one line and without folders of this machine."""
    lines = [line for line in error.splitlines() if line.strip()]
    first = next((place for place, line in enumerate(lines) if line.startswith("Error: ")), len(lines) - 1)
    text = " ".join(line.strip() for line in lines[first : first + 2]).removeprefix("Error: ")
    return text.replace(tempfile.gettempdir(), "")[:240]


def main(arguments: Sequence[str]) -> int:
    """0 where no combination failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="combinations whose name holds all of these words")
    parser.add_argument("--alone", action="store_true", help="adapters by themselves, nothing else")
    parser.add_argument(
        "--write", action="store_true", help="keep what is found, and write the page of all that is kept"
    )
    parser.add_argument("--families", nargs="+", help="these only")
    given = parser.parse_args(arguments)
    axes = Axes.discover()
    verdicts: dict[Cell, Verdict] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for cell in axes.cells(given.families or families()):
            if all(word in cell.name for word in given.only) and not (given.alone and len(cell.rows) > 1):
                verdicts[cell] = bench.verdict(cell)
                print(f"{cell.name}: {verdicts[cell].status} {verdicts[cell].reason}".rstrip(), flush=True)
    if given.write:
        keep(verdicts)
        PAGE.write_text(page(kept(axes), axes.absent), encoding="utf-8")
    failed = sum(verdict.status == "fails" for verdict in verdicts.values())
    print(f"{len(verdicts)} combinations, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
