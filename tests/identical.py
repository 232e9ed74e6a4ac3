"""Twenty steps of each tiny family against stored losses: a refactor may not move a digit.

    python tests/identical.py            compares, and ends with 1 where a loss has moved
    python tests/identical.py --write    stores the losses of this tree, for a change that is meant to move them

Losses are compared to five digits: another processor may add in another order, a mistake shows in the first three.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from st.plugins.catalogue import Catalogue
from st.plugins.loading import is_local, load, load_local
from st.report.log.events import read_events
from st.testing.media import tone, write_sound
from st.testing.runs import TINY, call_cli, write_photos

STORED = Path(__file__).with_name("identical.json")
STEPS = 20
TOLERANCE = 1e-5
KINDS = ("lora", "full")

RUN_FILE = """
plugins = [{family}]
output = {output}
steps = {steps}
batch = 2
precision = "fp32"
device = "cpu"
[model]
{model}
[adapter]
kind = {kind}
[optimizer]
lr = 1e-3
[report]
every = 1
[[dataset]]
url = {data}
{sizes}
"""


def losses(family: str, kind: str, folder: Path) -> list[float]:
    """Losses of the steps of a tiny checkpoint, trained on made-up pictures, or on sounds where it reads those."""
    made, output = _tiny(family, folder / "tiny"), folder / kind
    changed = made.options.model_dump(mode="json", exclude_defaults=True)
    options = {"checkpoint": str(folder / "tiny")} | {name: changed[name] for name in ("flavour",) if name in changed}
    if "audio" in made.codec().reads:
        data, sizes = _write_sounds(folder / "data"), 'media = "audio"'
    else:
        data, sizes = write_photos(folder / "photos"), "resolution = 64\nalign = 16"
    texts = {name: json.dumps(str(text)) for name, text in (("family", family), ("output", output), ("data", data))}
    model = "\n".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
    file = folder / f"{kind}.toml"
    file.write_text(RUN_FILE.format(steps=STEPS, kind=json.dumps(kind), model=model, sizes=sizes, **texts))
    _run("train", file)
    metrics = (event.get("metrics") or {} for event in read_events(output / "events.jsonl"))
    return [entry["loss"] for entry in metrics if "loss" in entry]


def _tiny(family: str, folder: Path) -> Any:
    cls: Any = load_local(family)[1] if is_local(family) else load(Catalogue.scan().find(family, "models"))
    return cls.tiny(folder)


def _write_sounds(folder: Path) -> Path:
    for number in range(4):
        write_sound(folder / f"{number}.wav", tone(3, 48000), 48000)
        (folder / f"{number}.txt").write_text(f"tone {number}", encoding="utf-8")
    return folder


def _run(*arguments: object) -> None:
    result = call_cli(*arguments)
    if result.code:
        raise SystemExit(f"{arguments} ended with {result.code}:\n{result.err}")


def measured() -> dict[str, list[float]]:
    """Losses by family and what was trained of it."""
    families = {"tiny": f"{TINY}:TinyFamily"} | {name: name for name in Catalogue.scan().names("models")}
    found = {}
    for name, family in families.items():
        with tempfile.TemporaryDirectory() as folder:
            for kind in KINDS:
                found[f"{name}/{kind}"] = losses(family, kind, Path(folder))
    return found


def moved(stored: dict[str, list[float]], found: dict[str, list[float]]) -> list[str]:
    """A sentence for each run that is not the stored one."""
    sentences = [f"{name}: no losses are stored; --write stores them" for name in found.keys() - stored.keys()]
    for name, expected in stored.items():
        pairs = list(zip(expected, found.get(name, []), strict=False))
        first = next((step for step, (a, b) in enumerate(pairs) if not math.isclose(a, b, rel_tol=TOLERANCE)), None)
        if len(pairs) != STEPS:
            sentences.append(f"{name}: {len(pairs)} of {STEPS} losses were logged")
        elif first is not None:
            sentences.append(f"{name}: step {first + 1} was {pairs[first][0]:.8f} and is {pairs[first][1]:.8f}")
    return sorted(sentences)


def main(arguments: list[str]) -> int:
    """0 where every loss is the stored one."""
    found = measured()
    if arguments == ["--write"]:
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{STORED.name}: {len(found)} runs of {STEPS} steps")
        return 0
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    sentences = moved(stored, found)
    print(*(sentences or [f"{len(found)} runs of {STEPS} steps: every loss is the stored one"]), sep="\n")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
