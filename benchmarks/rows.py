"""A table of 1,000,000 rows: index, buckets, shuffle and the first batch, over the bare interpreter."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from figure import Bar, Figure, median, shown
from processes import Case, rounds

if TYPE_CHECKING:
    from st.data.sample import Sample
    from st.data.source.index import Listing

Answer = dict[str, float]
GROUP = "rows"
FLOOR = (
    "over the bare interpreter, imports included; the floor: a columnar read, buckets in whole arrays, a sort by bucket"
)


def measure(scratch: Path, quick: bool) -> list[Figure]:
    count, turns = (20_000, 1) if quick else (1_000_000, 3)
    table = str(scratch / "table.parquet")
    cases: dict[str, Case] = {
        "bare": ("rows", "bare", []),
        "columns": ("rows", "columns", [table]),
        "whole": ("rows", "st", [table, False]),
        "crops": ("rows", "st", [table, True]),
    }
    _write(Path(table), count)
    found = rounds(cases, turns, scratch / "log.txt")

    def over_bare(name: str, unit: str) -> float:
        return median([one[unit] - bare[unit] for one, bare in zip(found[name], found["bare"], strict=True)])

    what = f"{count:,} rows of a table: index, bucket, shuffle, first batch"
    return [
        Figure(
            GROUP,
            f"{what}{said}: {kind}",
            over_bare(name, unit),
            unit,
            bar,
            shown(over_bare("columns", unit), unit),
            shown(over_bare(name, unit), unit),
            FLOOR,
        )
        for name, said in (("whole", ""), ("crops", ", a random crop of each"))
        for kind, unit, bar in (("time", "s", Bar(3.0)), ("memory", "MB", Bar(400.0)))
    ]


def _write(table: Path, count: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draws = np.random.default_rng(0)
    width, height = (16 * draws.integers(4, 120, count, dtype=np.int32) for _ in range(2))
    keys = pa.array([f"img_{number:07d}.jpg" for number in range(count)])
    captions = pa.array([f"a photo of thing number {number}" for number in range(count)])
    pq.write_table(pa.table({"key": keys, "width": width, "height": height, "caption": captions}), table)


def _spent() -> Answer:
    return {"s": process_time(), "MB": peak_megabytes()}


def peak_megabytes() -> float:
    """The most memory that this process held."""
    status = Path("/proc/self/status")
    if status.exists():
        # The resource usage of Linux begins with what the starting process held.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def bare() -> Answer:
    """An interpreter that does nothing."""
    return _spent()


def columns(table: str) -> Answer:
    """Read three columns, bucket them in whole arrays, sort by bucket."""
    import numpy as np
    import pyarrow.parquet as pq

    read = pq.read_table(table, columns=["key", "width", "height", "caption"])
    width, height = (read[name].to_numpy().astype("f8") for name in ("width", "height"))
    scale = 1024 / np.sqrt(width * height)
    bucket = np.rint(width * scale / 64).astype("i8") * 65536 + np.rint(height * scale / 64).astype("i8")
    order = np.argsort(bucket, kind="stable")
    first = read.take(order[:8])
    assert len(np.unique(bucket)) > 1 and len(first) == 8
    return _spent()


def index_and_shuffle(table: str, crop: bool) -> Answer:
    """The same through ``st``, with a backend that hands over the table, up to the samples of the first batch.

    crop: draw a square crop for each row.
    """
    import pyarrow.parquet as pq

    from st.data.backend import DataBackend
    from st.data.dataset import DatasetConfig, DatasetOptions
    from st.data.feed.plan import Plan
    from st.data.sets.prepare import prepare_set
    from st.data.shape.buckets import BatchShape
    from st.data.shape.rule import GeometryRule
    from st.data.source.index import Listing
    from st.options import Options
    from st.report.report import Report

    class TableBackend(DataBackend):
        def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[Sample]:
            raise NotImplementedError

        def read(self, key: str) -> bytes:
            raise NotImplementedError

        def table(self, known: object, unreadable: Callable[[str, str], None]) -> Listing:
            return Listing(pq.read_table(table))

    options = DatasetOptions.model_validate({"url": table, "resolution": 1024, "crop": crop})
    config = DatasetConfig(options, Options(), "table")
    one = prepare_set(config, TableBackend(table, Options()), GeometryRule(multiple=16), seed=1, report=Report.silent())
    plan = Plan([one], BatchShape(8), seed=1)
    units, _ = plan.next(plan.start)
    chosen = [int(row) for unit in units for row in unit.rows]
    batch = [(one.index.key(row), one.index.captions(row), one.index.fit(row)) for row in chosen]
    assert len(batch) == 8 and len({fit.geometry for _, _, fit in batch}) == 1
    return _spent()


CASES: dict[str, Callable[..., Answer]] = {"bare": bare, "columns": columns, "st": index_and_shuffle}
