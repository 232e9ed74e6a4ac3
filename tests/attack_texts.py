"""Attacks on what is written by hand or by other programs: run files, plugin files, configurations of models."""

from __future__ import annotations

import json
import random
from pathlib import Path

from attack_bench import Attack, Place

RUNNING = "import os\nos.system('touch ran-by-a-file')\n"


def attacks(base: Path, _rng: random.Random) -> list[Attack]:
    """Every attack on texts. base: the folder that is spoilt."""
    return [*_run_files(base), *_values(), *_plugins(), *_models(base)]


def _run_files(base: Path) -> list[Attack]:
    good = (base / "run.toml").read_bytes()
    contents = {
        "empty": b"",
        "not UTF-8": good + b"# caf\xe9\n",
        "UTF-16": good.decode().encode("utf-16"),
        "a mark of UTF-8": b"\xef\xbb\xbf" + good,
        "a NUL": good + b'name = "a\0b"\n',
        "not TOML": b"{]",
        "a table twice": good + b'[adapter]\nkind = "lora"\n',
        "deep nesting": b"a = " + b"[" * 20_000 + b"]" * 20_000 + b"\n" + good,
        "5,000 digits": b"seed = " + b"9" * 5000 + b"\n" + good,
        "a dotted key of thousands": b".".join([b"a"] * 20_000) + b" = 1\n" + good,
        "escapes": good + b'"\\u001b]0;owned\\u0007" = 1\n',
        "a surrogate": good + b'name = "\\ud800"\n',
        "binary": bytes(range(256)) * 10,
        "an environment that is not there": b'name = "{env:NO_SUCH}"\n' + good,
        "an environment of nothing": b'name = "{env:}"\n' + good,
    }
    found = [
        Attack(
            f"run files/{name}",
            lambda place, c=content: (place.anew(), (place.root / "run.toml").write_bytes(c)),
            names=("run.toml",),
            harmless=name.startswith("a mark"),
        )
        for name, content in contents.items()
    ]
    jsons = {
        "deep": b"[" * 100_000,
        "digits": b'{"steps": ' + b"9" * 5000 + b"}",
        "list": b"[1]",
        "surrogate": b'{"name": "\\ud800"}',
    }
    for name, content in jsons.items():
        found.append(
            Attack(
                f"run files/JSON: {name}",
                lambda place, c=content: (place.root / "run.json").write_bytes(c),
                ("train", "run.json"),
                ("run.json",),
            )
        )
    found.append(
        Attack("run files/a folder", lambda place: (place.root / "x.toml").mkdir(), ("train", "x.toml"), ("x.toml",))
    )
    return found


def _values() -> list[Attack]:
    settings = (
        "steps=-1",
        "steps=1e30",
        "steps=nan",
        "steps=true",
        "batch=0",
        "batch=1000000000",
        "seed=-1",
        f"seed={10**30}",
        "optimizer.lr=nan",
        "optimizer.lr=inf",
        "optimizer.lr=-1",
        "optimizer.lr=1e400",
        "adapter.rank=0",
        "adapter.rank=1000000000",
        'adapter.targets=["["]',
        'adapter.targets=["(a+)+$"]',
        "adapter.targets=[]",
        'device="cuda:99"',
        'device="nonsense"',
        'precision="fp7"',
        'output=""',
        'output="/dev/null"',
        'output="/proc/x"',
        'output="a\\u0000b"',
        'cache.url="/dev/null"',
        'cache.url="s3://"',
        'cache.url="nonsense://x"',
        "checkpoint.every=-5",
        "checkpoint.keep=-1",
        "dataset=5",
        "dataset.0.resolution=nan",
        "dataset.0.resolution=inf",
        "dataset.0.resolution=1e9",
        "dataset.0.align=1000000007",
        "dataset.0.caption_dropout=2",
        "dataset.0.weight=inf",
        "dataset.0.weight=1e-320",
        "model.checkpoint=5",
        'model.checkpoint="/dev/zero"',
        'name="../../x"',
        'name="\\u001b[2J"',
        "a.b.c.d=1",
        "=",
        "steps",
        "evaluation.samples=100000000",
        "report.every=0",
        "accumulate=100000000000",
        "ranks.processes=100000",
    )
    found = []
    for setting in settings:
        key = setting.partition("=")[0].split(".")[0] or "="
        told = (key, setting.partition("=")[0].rpartition(".")[2], "memory", "resized to")
        command = ("train", "run.toml", "--set", setting)
        found.append(
            Attack(f"settings/{setting[:40]!r}", lambda place: place.anew(), command, told, harmless=True, limit=20)
        )
    return found


def _plugins() -> list[Attack]:
    contents = {
        "does not compile": "def (",
        "raises": "raise RuntimeError('no')",
        "exits": "import sys\nsys.exit(0)",
        "no class": "x = 1",
        "not UTF-8": b"# caf\xe9\n",
        "a class of nothing": "class Mine: pass",
        "raises when made": (
            "import st\nclass Mine:\n    class Options(st.Options):\n        pass\n"
            "    def __init__(self, options):\n        raise ValueError('no')\n"
        ),
    }
    found: list[Attack] = []
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else content.encode()
        spoil = lambda place, d=data: (place.root / "mine.py").write_bytes(d)  # noqa: E731
        train = ("train", "run.toml", "--plugins", "./mine.py:Mine", "--output", "new")
        # `st plugins check` shows a plugin's own traceback on purpose, and is no subject here.
        found.append(Attack(f"plugins/{name}", spoil, train, ("mine.py", "Mine", "'mine'")))

    def foreign(place: Place) -> None:
        (place.root / "tiny.py").write_text(RUNNING, encoding="utf-8")

    sample = ("sample", "run", "--prompt", "a cat", "--size", "64", "--steps", "1")
    found.append(Attack("plugins/of a run that is sampled", foreign, sample, ("--trust",)))
    for module in ("typer", "torch", "numpy", "json", "st"):
        shell = "st train run.toml --dry-run; python -m st.cli plugins > out"
        spoil = lambda place, m=module: (place.root / f"{m}.py").write_text(RUNNING, encoding="utf-8")  # noqa: E731
        found.append(Attack(f"plugins/{module}.py beside the run file", spoil, shell=shell.split(";")[0]))
    return found


def _models(base: Path) -> list[Attack]:
    """Configurations of a published layout, which say absurd things or ask for code to be run."""
    from st.testing.runs import call_cli

    made = base.parent / "flux"
    result = call_cli("tiny", "flux", made)
    if result.code:
        return []
    found: list[Attack] = []
    run = ("train", "flux.toml")
    for config in sorted(made.rglob("*config*.json")) + sorted(made.rglob("model_index.json")):
        name = str(config.relative_to(made))
        record = json.loads(config.read_text(encoding="utf-8"))
        numbers = [key for key, value in record.items() if isinstance(value, int) and not isinstance(value, bool)]
        changes: dict[str, object] = {"a list": [], "nothing": {}, "deep": None}
        changes |= {f"{key} = {value}": {**record, key: value} for key in numbers[:4] for value in (10**7, -1)}
        code = {"auto_map": {"AutoTokenizer": ["mine.Mine", None], "AutoModel": "mine.Mine", "AutoConfig": "mine.Mine"}}
        changes["code to be run"] = {**record, **code, "tokenizer_class": "Mine", "architectures": ["Mine"]}
        changes["an unknown class"] = {**record, "_class_name": "os.system", "model_type": "mine"}
        for kind, changed in changes.items():
            text = "[" * 100_000 if kind == "deep" else json.dumps(changed)

            def spoil(place: Place, name: str = name, text: str = text) -> None:
                import shutil

                shutil.copytree(made, place.root / "flux")
                (place.root / "flux" / name).write_text(text, encoding="utf-8")
                for folder in {(place.root / "flux" / name).parent, place.root / "flux"}:
                    (folder / "mine.py").write_text(RUNNING, encoding="utf-8")
                place.write_run_file()
                run_file = (place.root / "run.toml").read_text(encoding="utf-8")
                run_file = run_file.replace("tiny.py:TinyFamily", "flux").replace(
                    'checkpoint = "tiny"', 'checkpoint = "flux"'
                )
                run_file = run_file.replace('output = "run"', 'output = "new"').replace("align = 8", "align = 16")
                (place.root / "flux.toml").write_text(run_file, encoding="utf-8")

            words = (name, name.partition("/")[0], *numbers)
            found.append(Attack(f"models/{name}: {kind}", spoil, run, words, harmless=True, limit=60))
    return found
