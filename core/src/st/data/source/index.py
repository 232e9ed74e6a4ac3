"""Index: what a data set holds, in columns: a million samples are a few arrays, not a million objects."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from st.data.media.media_reader import WINDOWED
from st.data.sample import Media, Sample
from st.data.shape.fitting import Sizes
from st.data.source.captions import CaptionRecipe
from st.data.source.tally import most_frequent, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from st.data.geometry import Fit
    from st.data.sample import Kind
    from st.data.shape.fitting import Fits

TEXTS = pa.list_(pa.large_string())
EXTRAS = pa.map_(pa.string(), pa.string())
FACTS = pa.map_(pa.string(), pa.large_string())
SCHEMA = pa.schema(
    {
        "key": pa.large_string(),
        "kind": pa.int8(),
        "width": pa.int32(),
        "height": pa.int32(),
        "frames": pa.int32(),
        "fps": pa.float32(),
        "seconds": pa.float32(),
        "size_bytes": pa.int64(),
        "modified": pa.float64(),
        "passes": pa.int32(),
        "captions": TEXTS,
        "extras": EXTRAS,
        "facts": FACTS,
    }
)
"""Columns of an index. kind: a place in KINDS. passes: how often the sample is seen in one pass over the data set."""

KINDS: tuple[Kind, ...] = ("image", "video", "audio")
_DEFAULTS = {"frames": 1, "passes": 1}
_CHUNK = 16384


class Listing(NamedTuple):
    """A data set as one table (columns of SCHEMA and the backend's own), and what is worth telling about it."""

    table: pa.Table
    notes: tuple[str, ...] = ()


@runtime_checkable
class Columnar(Protocol):
    """A backend that hands over its whole data set as one table, sparing a million Sample objects."""

    def table(self, known: pa.Table | None, unreadable: Callable[[str, str], None]) -> Listing:
        """Every sample, sorted by key; what has not changed since ``known``, an earlier run's table, is not read."""


class Index:
    """The samples of a data set, in a fixed order, with what training needs to know about each.

    Rows are counted from 0. ``fits`` is there once the data set is prepared. Reading is thread-safe.
    """

    def __init__(self, table: pa.Table, recipe: CaptionRecipe | None = None, fits: Fits | None = None) -> None:
        self.table, self.recipe, self.fits = table, recipe or CaptionRecipe(), fits
        self._keys, self._captions, self._extras = (_whole(table[name]) for name in ("key", "captions", "extras"))
        self._facts, self._kinds = _whole(table["facts"]), _numbers(table["kind"])
        self._heights, self._widths = (_numbers(_whole(table[name])) for name in ("height", "width"))
        self._digests = np.zeros((len(table), 16), np.uint8)
        self._digested = np.zeros(len(table), np.bool_)

    @classmethod
    def from_table(cls, table: pa.Table) -> Index:
        """An index of a table with at least key, width and height; a text column ``caption`` is taken as ``captions``.

        Columns that are missing have no captions, no extras, one frame, one pass, zero for the rest.
        """
        return cls(_conformed(table))

    @classmethod
    def from_samples(cls, samples: Iterable[Sample]) -> Index:
        """An index of samples, in their order, built a chunk at a time."""
        source = iter(samples)
        batches: list[pa.RecordBatch] = []
        while chunk := list(islice(source, _CHUNK)):
            batches.append(_batch(chunk))
        return cls(_conformed(pa.Table.from_batches(batches, schema=SCHEMA)))

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> str:
        return cast("str", self._keys[row].as_py())

    def file_sizes(self, rows: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Heights and widths in pixels that these samples have in their files."""
        return self._heights[rows], self._widths[rows]

    def keys(self, rows: slice) -> list[str]:
        """The keys of consecutive rows."""
        return cast("list[str]", self._keys[rows].to_pylist())

    def captions(self, row: int) -> tuple[str, ...]:
        """Every caption that this sample is trained on, after prefix, suffix and shuffling; () for none."""
        return self.recipe.apply(self._captions[row].as_py() or ())

    def extras(self, row: int) -> Mapping[str, str]:
        """Name -> key of what belongs to the sample (``mask``), readable from the same backend."""
        return dict(self._extras[row].as_py() or ())

    def facts(self, row: int) -> Mapping[str, str]:
        """Name -> what is known of the sample in words beside its captions (``lyrics``); ``seconds`` of any sound."""
        facts = dict(self._facts[row].as_py() or ())
        if self.fits is not None and self.fits.seconds[row]:
            facts["seconds"] = f"{self.fits.seconds[row]:g}"
        return facts

    @property
    def has_facts(self) -> bool:
        """Whether any sample has facts."""
        sounds = self.fits is not None and bool(self.fits.seconds.any())
        return sounds or bool(self._facts.null_count < len(self))

    def kind(self, row: int) -> Kind:
        """What the sample is."""
        return KINDS[int(self._kinds[row])]

    def fit(self, row: int) -> Fit:
        """What the sample is resized and cropped to."""
        assert self.fits is not None, "an index has fits once its data set is prepared"
        return self.fits.at(row)

    def sample(self, row: int) -> Sample:
        """One row as the object that backends and plugins exchange; captions as they were read."""
        return next(_samples(self.table.slice(row, 1)))

    def samples(self) -> Iterator[Sample]:
        """Every row as an object, one at a time."""
        for start in range(0, len(self), _CHUNK):
            yield from _samples(self.table.slice(start, _CHUNK))

    def distinct_captions(self) -> Iterator[str]:
        """Every caption that any sample is trained on, once."""
        if self.recipe.instance_prompts:
            yield from self.recipe.apply(()) if len(self) else ()
            return
        if not (self.recipe.shuffle or self.recipe.empty_if_missing):
            prefix, suffix = self.recipe.prefix, self.recipe.suffix
            for text in pc.unique(self._captions.flatten()):
                yield f"{prefix}{text.as_py()}{suffix}"
            return
        seen: set[str] = set()
        for row in range(len(self)):
            for text in self.captions(row):
                if text not in seen:
                    seen.add(text)
                    yield text

    def caption_parts(self, separator: str, most: int) -> dict[str, int]:
        """How often the ``most`` frequent parts of the captions that are trained on are there, most frequent first.

        White space around a part and empty parts do not count; of equal counts, those first in the alphabet.
        """
        return most_frequent((parts(texts, separator) for texts in self._trained_captions()), most)

    def _trained_captions(self) -> Iterator[pa.Array]:
        """The captions that are trained on, a chunk of rows at a time."""
        for start in range(0, len(self), _CHUNK):
            if self.recipe.is_plain:
                yield pc.list_flatten(self._captions[start : start + _CHUNK])
            else:
                rows = range(start, min(start + _CHUNK, len(self)))
                yield pa.array([text for row in rows for text in self.captions(row)], pa.large_string())

    def sizes(self) -> Sizes:
        """The columns that decide which size each sample gets."""
        columns = (_numbers(self.table[name]) for name in ("width", "height", "frames", "seconds", "fps"))
        return Sizes(*columns)

    def passes(self) -> NDArray[np.int32]:
        """How often each sample is seen in one pass over the data set, (N,)."""
        return cast("NDArray[np.int32]", _numbers(self.table["passes"]))

    def has_caption(self) -> NDArray[np.bool_]:
        """Which rows have a caption that is not only white space, before the recipe is applied, (N,)."""
        texts = self._captions.flatten()
        filled = pc.match_substring_regex(texts, r"\S")
        parents = _numbers(pc.list_parent_indices(self._captions))[np.asarray(filled, np.bool_)]
        answer = np.zeros(len(self), np.bool_)
        answer[parents] = True
        return answer

    def take(self, rows: NDArray[Any]) -> Index:
        """The index of these rows, in this order, with what is known about them."""
        fits = self.fits.take(rows) if self.fits else None
        if len(rows) == len(self) and (np.diff(rows) == 1).all() and (not len(rows) or rows[0] == 0):
            taken = Index(self.table, self.recipe, fits)
        else:
            taken = Index(self.table.take(pa.array(rows)), self.recipe, fits)
        taken._digests, taken._digested = self._digests[rows], self._digested[rows]
        return taken

    def with_fits(self, fits: Fits, recipe: CaptionRecipe) -> Index:
        """The same samples, with the size that each of them gets and the captions it is trained on."""
        made = Index(self.table, recipe, fits)
        made._digests, made._digested = self._digests, self._digested
        return made

    def edited(self, other: Index) -> Index:
        """These samples with the captions, extras, facts and media of ``other``, by row; passes and digests stay."""
        assert len(self) == len(other)
        table = other.table.set_column(SCHEMA.get_field_index("passes"), SCHEMA.field("passes"), self.table["passes"])
        made = Index(table, self.recipe, self.fits)
        made._digests, made._digested = self._digests, self._digested
        return made

    def digest(self, row: int) -> str | None:
        """The digest of the sample's bytes as 32 hexadecimal digits, where it is known for this size and time."""
        return self._digests[row].tobytes().hex() if self._digested[row] else None

    def remember(self, row: int, digest: str) -> None:
        """Note the digest of the sample's bytes."""
        for place in self._windows(row):
            self._digests[place] = np.frombuffer(bytes.fromhex(digest), np.uint8)
            self._digested[place] = True

    def forget(self) -> None:
        """Know no digest any more, so that every file is read again."""
        self._digested[:] = False

    def _windows(self, row: int) -> range:
        """The rows of the same file: several, next to each other, where a clip or sound gives several windows."""
        first, last = row, row
        if self.kind(row) in WINDOWED:
            while first and self._keys[first - 1] == self._keys[row]:
                first -= 1
            while last + 1 < len(self) and self._keys[last + 1] == self._keys[row]:
                last += 1
        return range(first, last + 1)

    def digest_table(self) -> pa.Table:
        """What is known of digests, with the size and time they hold for: what ``recall`` takes."""
        rows = pa.array(np.flatnonzero(self._digested))
        known = self.table.select(["key", "size_bytes", "modified"]).take(rows)
        flat = pa.py_buffer(self._digests[self._digested].tobytes())
        digests = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(rows), [None, flat])
        return known.append_column("digest", digests)

    def recall(self, known: pa.Table) -> None:
        """Take over the digests of an earlier run, for files whose size and time have not changed."""
        places = pc.index_in(self._keys, value_set=_whole(known["key"]))
        rows = np.flatnonzero(np.asarray(places.is_valid()))
        places = np.asarray(places.drop_null())
        same = np.ones(len(rows), np.bool_)
        for name in ("size_bytes", "modified"):
            same &= _numbers(self.table[name])[rows] == _numbers(known[name])[places]
        digests = _whole(known["digest"])
        flat = np.frombuffer(digests.buffers()[1], np.uint8).reshape(-1, 16)[digests.offset :]
        self._digests[rows[same]] = flat[places[same]]
        self._digested[rows[same]] = True


def _samples(table: pa.Table) -> Iterator[Sample]:
    names = (
        "key",
        "kind",
        "height",
        "width",
        "frames",
        "fps",
        "seconds",
        "captions",
        "extras",
        "size_bytes",
        "modified",
        "facts",
    )
    for key, kind, *size, texts, extras, size_bytes, modified, facts in zip(
        *(table[n].to_pylist() for n in names), strict=True
    ):
        media = Media(KINDS[kind], *size)
        yield Sample(key, media, tuple(texts or ()), dict(extras or ()), size_bytes, modified, dict(facts or ()))


def _whole(column: pa.ChunkedArray) -> Any:
    """A column as one array, which is read by row ten times faster than one in chunks."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(column: Any) -> Any:
    return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)


def _conformed(table: pa.Table) -> pa.Table:
    """``table`` with exactly the columns of SCHEMA and no null in a number."""
    if "captions" not in table.column_names and "caption" in table.column_names:
        table = table.append_column("captions", _lists(_whole(table["caption"])))
    columns = [_column(table, field.name, field.type) for field in SCHEMA]
    return pa.table(columns, schema=SCHEMA)


def _column(table: pa.Table, name: str, kind: pa.DataType) -> Any:
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    default = _DEFAULTS.get(name, 0)
    if name not in table.column_names:
        return pa.repeat(pa.scalar(default, kind), len(table)) if numeric else pa.nulls(len(table), kind)
    column = _whole(table[name])
    column = column if column.type == kind else column.cast(kind)
    return pc.fill_null(column, pa.scalar(default, kind)) if numeric and column.null_count else column


def _lists(texts: Any) -> Any:
    """One list per text, empty where there is none; the texts themselves are not copied."""
    texts = texts.cast(pa.large_string())
    present = np.asarray(texts.is_valid())
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(present, out=offsets[1:])
    values = texts if present.all() else texts.drop_null()
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _batch(samples: list[Sample]) -> pa.RecordBatch:
    media = [sample.media for sample in samples]
    columns = {
        "key": [sample.key for sample in samples],
        "kind": [KINDS.index(item.kind) for item in media],
        "width": [item.width for item in media],
        "height": [item.height for item in media],
        "frames": [item.frames for item in media],
        "fps": [item.fps for item in media],
        "seconds": [item.seconds for item in media],
        "size_bytes": [sample.size_bytes for sample in samples],
        "modified": [sample.modified for sample in samples],
        "passes": [1] * len(samples),
        "captions": [sample.captions for sample in samples],
        "extras": [list(sample.extras.items()) or None for sample in samples],
        "facts": [list(sample.facts.items()) or None for sample in samples],
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)
