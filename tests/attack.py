"""Hand ``st`` malformed files, signals, closed streams, full disks, secrets and flipped bits, and count what it does.

    python tests/attack.py [--sample] [--seed 0] [--only WORD ...] [--into DIR]

Each attack ends as "ok" (what is trained is what it would have been, or the run said what it left out), as "one error"
(at most five lines that name what is wrong), or in a class that must stay empty: TRACEBACK, SILENT (trained on damaged
input without a word), HUNG, RAN CODE, LOST (a checkpoint or a result that was there), UNCLEAR (an error that names
nothing). Prints what went wrong, a table, and one line of JSON; the exit status is 1 where a class is not empty.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import attack_media
import attack_process
import attack_saved
import attack_texts
from attack_bench import BAD, ERROR, OK, Attack, Bench, Verdict, chosen

SAMPLE = 24
"""Attacks of a sample."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help="a few of each kind, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="attacks whose names hold one of these words")
    parser.add_argument("--into", type=Path, help="folder that keeps what was attacked where something went wrong")
    arguments = parser.parse_args()
    _import_everything()
    rng, started = random.Random(arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments.into or Path(scratch))
        modules = (attack_media, attack_saved, attack_texts, attack_process)
        attacks = chosen([attack for module in modules for attack in module.attacks(bench.base, rng)], arguments.only)
        if arguments.sample:
            attacks = _sample(attacks, rng)
        verdicts = [_told(bench.perform(attack)) for attack in attacks]
    return _summary(verdicts, round(time.monotonic() - started))


def _import_everything() -> None:
    """Once, for all processes that are forked from this one."""
    import av  # noqa: F401
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    import st.cli
    import st.cli.train
    import st.train.run  # noqa: F401


def _sample(attacks: list[Attack], rng: random.Random) -> list[Attack]:
    """As many of each kind, of those that start no shell."""
    quick = [attack for attack in attacks if not attack.shell]
    kinds: dict[str, list[Attack]] = {}
    for attack in rng.sample(quick, len(quick)):
        kinds.setdefault(attack.name.partition("/")[0], []).append(attack)
    each = max(1, SAMPLE // len(kinds))
    return [attack for kind in kinds.values() for attack in kind[:each]]


def _told(verdict: Verdict) -> Verdict:
    if verdict.kind in BAD:
        print(f"{verdict.kind}: {verdict.attack}\n    {verdict.why.strip()}".replace("\n", "\n    "), flush=True)
    return verdict


def _summary(verdicts: list[Verdict], seconds: int) -> int:
    classes = (OK, ERROR, *BAD)
    kinds = list(dict.fromkeys(verdict.attack.partition("/")[0] for verdict in verdicts))
    counts = {kind: Counter(v.kind for v in verdicts if v.attack.partition("/")[0] == kind) for kind in kinds}
    total = Counter(verdict.kind for verdict in verdicts)
    print(f"{'':14}{'attacks':>9}" + "".join(f"{name:>11}" for name in classes))
    for kind, count in [*counts.items(), ("together", total)]:
        print(f"{kind:14}{sum(count.values()):9}" + "".join(f"{count[name]:11}" for name in classes))
    failed = {verdict.attack: verdict.kind for verdict in verdicts if verdict.kind in BAD}
    slow = max(verdicts, key=lambda verdict: verdict.seconds)
    told = {"attacks": len(verdicts), "counts": dict(total), "failed": failed, "seconds": seconds}
    print(json.dumps({**told, "slowest": [slow.attack, slow.seconds]}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
