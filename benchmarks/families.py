"""Training flux and SDXL with LoRA: ``st`` beside a bare loop and beside diffusers' own scripts, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from encoding import SIZE
from family_files import prepare
from family_settings import Files
from figure import Bar, Figure, median, quartiles, shown
from pictures import write_photos
from processes import Case, Course, once, taking_turns
from upstream import Upstream, find_upstream

GROUP = "families"
BELOW = Bar(1.0)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of training. steps: of a turn. turns: of each program. bar: of a step over the bare loop's.
    whole: starting and memory are told too."""

    family: str
    size: str
    resolution: int
    precision: str
    steps: int
    turns: int
    bar: float = 1.02
    whole: bool = False

    @property
    def plain(self) -> tuple[str, str, int]:
        return self.family, self.size, self.resolution

    @property
    def name(self) -> str:
        return f"{self.family} {self.size}, {self.precision}, {self.resolution} px"


def _kinds() -> Iterator[Kind]:
    for family in ("flux", "sdxl"):
        for precision in ("bf16", "fp32"):
            yield Kind(family, "tiny", 128, precision, 5, 16, 1.05, precision == "bf16")
        for precision in ("bf16", "fp32"):
            yield Kind(family, "small", 256, precision, 2, 9, 1.02, precision == "bf16")


KINDS = tuple(_kinds())
TOYS = (Kind("flux", "toy", 64, "fp32", 2, 1, whole=True),)
TREAD, TREAD_TOY = Kind("flux", "small", 512, "bf16", 1, 7), Kind("flux", "toy", 64, "fp32", 2, 1)
MANY = 96
"""Pictures that a cache is filled with; four times as many captions."""
ENCODED = tuple(Kind(family, "small", SIZE, "bf16", 8, 3, 1.2) for family in ("flux", "sdxl"))
ENCODED_TOYS = (Kind("sdxl", "toy", SIZE, "fp32", 1, 1, 1.2),)


def measure(scratch: Path, quick: bool, checkout: Path | None) -> Iterator[Figure]:
    kinds, encoded, routed = (TOYS, ENCODED_TOYS, TREAD_TOY) if quick else (KINDS, ENCODED, TREAD)
    upstream, log = find_upstream(checkout), scratch / "log.txt"
    made = prepare(scratch, [kind.plain for kind in (*kinds, *encoded, routed)], 128 if quick else 768)
    by_plain = {(one.family, one.size, one.resolution): one for one in made}
    for kind in kinds:
        yield from _of_kind(kind, by_plain[kind.plain], upstream, log)
    for kind in encoded:
        yield from _of_encoding(kind, by_plain[kind.plain], upstream, log)
    yield _of_tread(routed, by_plain[routed.plain], log)


def _of_kind(kind: Kind, files: Files, upstream: Upstream, log: Path) -> Iterator[Figure]:
    cases: dict[str, Case] = {"raw": raw_case(kind, files), "st": st_case(kind, files)}
    if not upstream.absent:
        cases["script"] = upstream.case(files, kind.precision, kind.steps)
    found = taking_turns(cases, kind.turns, log)
    yield from _steps(kind, found, upstream)
    if kind.whole:
        yield from _once(kind, "launch to first step with warm caches", "s", _firsts(found), upstream)
        yield from _once(kind, "peak memory", "MB", {name: one.peak for name, one in found.items()}, upstream)


def _firsts(found: dict[str, Course]) -> dict[str, float]:
    return {name: one.first for name, one in found.items()}


def raw_case(kind: Kind, files: Files) -> Case:
    """The bare loop, which reports every so many steps."""
    return (GROUP, "raw", [kind.family, str(files.cached), str(files.checkpoint), kind.precision, kind.steps])


def st_case(kind: Kind, files: Files, tread: bool = False) -> Case:
    """A run of ``st``, likewise."""
    return (GROUP, "st", [str(files.run_file(kind.precision, tread)), kind.steps])


def _steps(kind: Kind, found: dict[str, Course], upstream: Upstream) -> Iterator[Figure]:
    ours = found["st"].steps
    for name, bar, beside in (("raw", Bar(kind.bar), ""), ("script", BELOW, ", beside diffusers' script")):
        what = f"LoRA training of {kind.name}: a step{beside}"
        if name not in found:
            yield not_measured(what, bar, upstream.absent)
            continue
        theirs = found[name].steps
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        low, high = quartiles(ratios)
        detail = f"half of the {len(ratios)} turns of {kind.steps} steps lie between {low:.3f} and {high:.3f}"
        values = (f"{1e3 * median(theirs):.1f} ms", f"{1e3 * median(ours):.1f} ms")
        told = f"{detail}{_told(kind, upstream) if name == 'script' else ''}"
        yield Figure(GROUP, what, median(ratios), "x", bar, *values, told)


def _told(kind: Kind, upstream: Upstream) -> str:
    """What the script does in its steps, and on what it ran."""
    work = "its text encoders" if kind.family == "flux" else "its autoencoder and text encoders"
    return f"; {work} run in every step{f'; {upstream.note}' if upstream.note else ''}"


def _once(kind: Kind, quantity: str, unit: str, values: dict[str, float], upstream: Upstream) -> Iterator[Figure]:
    """What one process of each program was seen to take."""
    for name, bar, beside in (("raw", None, ""), ("script", BELOW, ", beside diffusers' script")):
        what = f"LoRA training of {kind.name}: {quantity}{beside}"
        if name not in values:
            yield not_measured(what, BELOW, upstream.absent)
            continue
        shows = (shown(values[name], unit), shown(values["st"], unit))
        detail = "one process of each, CPU seconds from the start of the interpreter" if unit == "s" else ""
        if name == "script" and unit == "s":
            detail += "; the script has no cache, and encodes before and in its steps"
        yield Figure(GROUP, what, values["st"] / values[name], "x", bar, *shows, detail)


def _of_tread(kind: Kind, files: Files, log: Path) -> Figure:
    """How much of a step is saved where the middle blocks see half of the picture's tokens."""
    found = taking_turns({"whole": st_case(kind, files), "routed": st_case(kind, files, True)}, kind.turns, log)
    whole, routed = found["whole"].steps, found["routed"].steps
    saved = [100 * (1 - one / other) for one, other in zip(routed, whole, strict=True)]
    low, high = quartiles(saved)
    return Figure(
        GROUP,
        f"LoRA training of {kind.name}, half of the tokens from block 2 to -2 (tread): shorter than without by",
        median(saved),
        "%",
        Bar(20.0, at_most=False),
        f"{1e3 * median(whole):.0f} ms",
        f"{1e3 * median(routed):.0f} ms",
        f"the floor: the same run with every token; {(kind.resolution // 16) ** 2} tokens of a picture, 512 of text, "
        f"which stay; half of the {kind.turns} turns of {kind.steps} steps lie between {low:.1f} and {high:.1f} %",
    )


def _of_encoding(kind: Kind, files: Files, upstream: Upstream, log: Path) -> Iterator[Figure]:
    """Filling the caches: per picture and per caption."""
    if not files.many.exists():
        write_photos(files.many, 16 if kind.size == "toy" else MANY, (3 * SIZE, 3 * SIZE))
    run_file = files.run_file(kind.precision, photos=files.many)
    inputs = [kind.family, kind.precision, str(run_file), str(files.checkpoint), str(files.many), kind.turns]
    pictures, captions = once(("family_encoding", "both", inputs), log)
    theirs = {} if upstream.absent else once(upstream.case(files, kind.precision, kind.steps, "encodes"), log)
    for answer, thing in ((pictures, "picture"), (captions, "caption")):
        floor, network, ours = (median([one[name] for one in answer]) for name in ("floor", "network", "ours"))
        what = f"fill the cache of {kind.family} {kind.size}, per {thing}"
        ratio, mine = median([one["ours"] / one["floor"] for one in answer]), f"{ours:.2f} ms"
        detail = f"the floor: load, read and encode in batches of 8; {network:.2f} ms of it in the networks"
        yield Figure(GROUP, what, ratio, "x", Bar(kind.bar), f"{floor:.2f} ms", mine, detail)
        if not theirs:
            yield not_measured(f"{what}, beside diffusers' script", BELOW, upstream.absent)
            continue
        beside = theirs[thing] + (floor - network if thing == "picture" else 0)
        told = "the script's networks alone, one by one" + ("; reading as the floor reads" * (thing == "picture"))
        whats = f"{what}, beside diffusers' script"
        yield Figure(GROUP, whats, ours / beside, "x", BELOW, f"{beside:.2f} ms", mine, told)


def not_measured(what: str, bar: Bar, why: str) -> Figure:
    """A row that says why it has no number."""
    return Figure(GROUP, what, None, "x", bar, detail=f"not measured: {why}")


def raw_turns(family: str, cached: str, checkpoint: str, precision: str, steps: int) -> None:
    """The bare loop, until its input ends."""
    from stepclock import report_turns

    report_turns(steps)
    from family_loops import Raw, train

    train(Raw(family, cached, checkpoint, precision), 10**9)


def st_turns(run_file: str, steps: int) -> None:
    """A run of ``st``, until its input ends."""
    from stepclock import report_turns

    report_turns(steps)
    from st.cli import run

    run(["train", run_file])


CASES: dict[str, Callable[..., None]] = {"raw": raw_turns, "st": st_turns}
