"""Scanning a folder: from a listing of files to a table of samples, in columns from the first step.

A million files are a few arrow arrays here, and only the headers and captions of new or changed ones are read.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from st.data.media.media_reader import reader_of
from st.data.source import captions
from st.data.source.index import KINDS, SCHEMA, Listing
from st.errors import DataUnusable, SampleUnreadable, StoreUnreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from st.data.source.folder import FolderBackend, FolderOptions
    from st.data.store.store import Store

    Unreadable = Callable[[str, str], None]
    _Described = tuple[tuple[str, ...], Mapping[str, str]]

_STAMPED = SCHEMA.append(pa.field("stamp", pa.uint64()))
"""An index's columns, and in one number the sizes and times of all files that a row was read from."""

_SYSTEM = r"(^|/)(__MACOSX|@eaDir|lost\+found|\$RECYCLE\.BIN|System Volume Information|Thumbs\.db|desktop\.ini)(/|$)"
_EXTENSION = r"\.[^./]*$"
_FACT = "fact "
_PASSES = re.compile(r"^(\d+)_(.*)$")
_CHUNK = 8192
_READERS = 16


def scan(backend: FolderBackend, known: pa.Table | None, unreadable: Unreadable) -> Listing:
    """Every sample of a folder as a table sorted by key. Raises DataUnusable where there is none."""
    options = backend.options
    notes: list[str] = []
    files = _without_companions(backend, _listed(backend.store, notes))
    extensions = options.extensions or reader_of(options.media).extensions
    wanted = [f".{extension.lower().lstrip('.')}" for extension in extensions]
    pictures = files.filter(pc.is_in(files["extension"], value_set=pa.array(wanted, pa.large_string())))
    if options.frame_folders:
        pictures = _with_frame_folders(pictures, files, notes)
    if not len(pictures):
        raise _nothing(backend, files, wanted)
    stamps = [_stamp_columns(pictures)]
    for name, store in backend.companions.items():
        places = pc.index_in(pictures["stem"], value_set=(others := _listed(store, notes))["stem"])
        pictures = pictures.append_column(name, others["key"].take(places))
        stamps.append(_stamp_columns(others.take(places)))
        notes += _missing(pictures, name, store, options)
    for name, beside in _beside(options).items():
        found = _found_beside(pictures, files, beside)
        pictures = pictures.append_column(name, found["key"])
        stamps.append(_stamp_columns(found))
    if options.caption == "jsonl":
        texts = files.filter(pc.equal(files["key"], options.caption_file))
        stamps.append([np.broadcast_to(column, len(pictures)) for column in _stamp_columns(texts) if len(texts)])
    pictures = pictures.append_column("stamp", pa.array(_folded(stamps)))
    if options.missing_companion == "skip":
        for name in backend.companions:
            pictures = pictures.filter(pc.is_valid(pictures[name]))
    notes += _doubles(pictures, reader_of(options.media).noun)
    return _read_changed(backend, pictures, known, unreadable, notes)


def _listed(store: Store, notes: list[str]) -> pa.Table:
    """Files of a store, sorted by key: key, size_bytes, modified, extension in small letters, stem (key without it).

    Those whose names are no text are left out, and said in ``notes``.
    """
    schema = pa.schema({name: SCHEMA.field(name).type for name in ("key", "size_bytes", "modified")})
    batches, entries = [], iter(store.list())
    # A file that takes another's place with its size and time, as copying programs keep them, is another file.
    odd: list[str] = []
    named = (entry for entry in entries if _is_text(entry.key, odd))
    stamped = ((entry.key, entry.size_bytes, max(entry.modified, entry.changed)) for entry in named)
    while chunk := list(islice(stamped, _CHUNK)):
        columns = [pa.array(column, kind) for column, kind in zip(zip(*chunk, strict=True), schema.types, strict=True)]
        batches.append(pa.record_batch(columns, schema=schema))
    if odd:
        notes.append(f"files whose names are not UTF-8: {len(odd)}, such as {odd[0]}; they are left out")
    table = pa.Table.from_batches(batches, schema=schema).combine_chunks()
    table = table.filter(pc.invert(pc.match_substring_regex(table["key"], _SYSTEM)))
    table = table.take(pc.sort_indices(table["key"]))
    stem = pc.replace_substring_regex(table["key"], _EXTENSION, "")
    extension = pc.struct_field(pc.extract_regex(table["key"], r"(?P<extension>\.[^./]*)$"), "extension")
    table = table.append_column("stem", stem)
    return table.append_column("extension", pc.utf8_lower(extension.cast(pa.large_string())))


def _is_text(name: str, odd: list[str]) -> bool:
    """Whether a name can be encoded; one that cannot is added to ``odd``, in a form that can be shown."""
    try:
        name.encode()
    except UnicodeEncodeError:
        odd.append(ascii(name))
        return False
    return True


def _beside(options: FolderOptions) -> dict[str, str]:
    """Column -> ending of the files beside samples that it holds: captions, and facts in files of their own."""
    endings = {"textfile": options.caption_extension, "folder": options.caption_extension, "json": ".json"}
    found = {"caption": endings[options.caption]} if options.caption in endings else {}
    if options.caption not in ("json", "jsonl"):
        found |= {f"{_FACT}{name}": f".{name}{options.caption_extension}" for name in options.facts}
    return found


def _found_beside(samples: pa.Table, files: pa.Table, ending: str) -> pa.Table:
    """For each sample the file of its name with another ending; null where there is none."""
    extension = ending[ending.rindex(".") :].lower()
    files = files.filter(pc.equal(files["extension"], extension))
    inner = ending[: ending.rindex(".")]
    stems = _followed_by(samples["stem"], inner) if inner else samples["stem"]
    return files.take(pc.index_in(stems, value_set=files["stem"]))


def _followed_by(texts: Any, ending: str) -> Any:
    return pc.binary_join_element_wise(texts, *(pa.scalar(text, pa.large_string()) for text in (ending, "")))


def _with_frame_folders(clips: pa.Table, files: pa.Table, notes: list[str]) -> pa.Table:
    """``clips`` and a row for every folder that holds pictures itself: its key ends with a slash."""
    endings = pa.array([f".{extension}" for extension in reader_of("image").extensions], pa.large_string())
    frames = files.filter(pc.is_in(files["extension"], value_set=endings))
    inside = pc.match_substring(frames["key"], "/")
    if beside := len(frames) - int(pc.sum(inside).as_py() or 0):
        notes.append(f"pictures that are in no folder of frames: {beside}; they are left out")
    frames = frames.filter(inside)
    folder = pc.replace_substring_regex(frames["key"], r"/[^/]*$", "")
    clips = clips.filter(pc.invert(pc.is_in(clips["key"], value_set=frames["key"])))
    grouped = frames.append_column("folder", folder).group_by("folder")
    totals = grouped.aggregate([("size_bytes", "sum"), ("modified", "max")])
    columns = {
        "key": _followed_by(totals["folder"], "/"),
        "size_bytes": totals["size_bytes_sum"],
        "modified": totals["modified_max"],
        "stem": totals["folder"],
        "extension": pa.nulls(len(totals), pa.large_string()),
    }
    made = pa.table({field.name: columns[field.name].cast(field.type) for field in clips.schema})
    table = pa.concat_tables([clips, made]).combine_chunks()
    return table.take(pc.sort_indices(table["key"]))


def _without_companions(backend: FolderBackend, files: pa.Table) -> pa.Table:
    """Masks and references that lie inside the data set's own folder are no samples of it."""
    root = str(backend.store).rstrip("/") + "/"
    for store in backend.companions.values():
        if (inside := str(store).rstrip("/") + "/").startswith(root) and inside != root:
            files = files.filter(pc.invert(pc.starts_with(files["key"], inside[len(root) :])))
    return files


def _nothing(backend: FolderBackend, files: pa.Table, wanted: list[str]) -> DataUnusable:
    kinds = sorted(
        pc.value_counts(files["extension"]).to_pylist(), key=lambda kind: (-kind["counts"], kind["values"] or "~")
    )
    found = ", ".join(f"{kind['counts']} {kind['values'] or 'without extension'}" for kind in kinds[:8])
    folder = backend.store.local("")
    if folder is not None and folder.is_file():
        return DataUnusable(
            f"{backend.url!r} is a file; a data set is a folder of them.",
            fix="Name the folder that holds it as the data set's url.",
        )
    if folder is not None and not folder.is_dir():
        return DataUnusable(
            f"folder {backend.url!r} does not exist.",
            why=f"Looked for {str(folder)!r}.",
            fix="Correct the data set's url.",
        )
    noun = f"{reader_of(backend.options.media).noun}s"
    return DataUnusable(
        f"{backend.url!r} holds no {noun}.",
        why=f"Found {found}." if found else "The folder is empty.",
        fix=f"{noun.capitalize()} end in {' '.join(wanted)}: put some there, or set extensions"
        f"{_other_media(backend, files)}.",
    )


def _other_media(backend: FolderBackend, files: pa.Table) -> str:
    """What to set where the files are of another kind."""
    there = {str(extension).lstrip(".") for extension in pc.unique(files["extension"]).to_pylist()}
    kinds = [kind for kind in KINDS if kind != backend.options.media and there & set(reader_of(kind).extensions)]
    return "".join(f", or media = {kind!r}" for kind in kinds)


def _missing(pictures: pa.Table, name: str, store: Store, options: FolderOptions) -> list[str]:
    lacking = pictures.filter(pc.is_null(pictures[name]))["key"]
    if not len(lacking):
        return []
    first = ", ".join(map(repr, lacking[:10].to_pylist()))
    nouns = f"{reader_of(options.media).noun}s"
    what = f"{len(lacking)} of {len(pictures)} {nouns} have no {name}: {first}{' ...' if len(lacking) > 10 else ''}"
    if options.missing_companion == "error":
        raise DataUnusable(
            what,
            why=f"Each needs a file of the same path, with any extension, in {str(store)!r}.",
            fix="Add them, or set missing_companion to 'skip' or 'keep'.",
        )
    return [f"{what}; they are {'left out' if options.missing_companion == 'skip' else 'trained on without'}"]


def _doubles(pictures: pa.Table, noun: str) -> list[str]:
    counts = pc.value_counts(pictures["stem"])
    shared = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(shared):
        return []
    first = pictures.filter(pc.equal(pictures["stem"], shared[0]))["key"].to_pylist()
    return [
        f"names that several {noun}s share: {len(shared)}, such as {' and '.join(map(repr, first))}; each {noun} "
        "is a sample, and a caption file of that name is for all of them"
    ]


def _stamp_columns(files: pa.Table) -> list[NDArray[np.uint64]]:
    sizes = pc.fill_null(files["size_bytes"], -1).to_numpy().view(np.uint64)
    times = pc.fill_null(files["modified"], -1.0).to_numpy().view(np.uint64)
    return [sizes, times]


def _folded(stamps: Iterable[Iterable[NDArray[np.uint64]]]) -> NDArray[np.uint64]:
    """One number per row from all of its columns (FNV-1a on 64-bit words, with the high bits mixed back down)."""
    total: Any = np.uint64(0xCBF29CE484222325)
    for column in (column for columns in stamps for column in columns):
        total = (total ^ column) * np.uint64(0x100000001B3)
        total ^= total >> np.uint64(29)
    return np.asarray(total, np.uint64)


def _read_changed(
    backend: FolderBackend, pictures: pa.Table, known: pa.Table | None, unreadable: Unreadable, notes: list[str]
) -> Listing:
    """Rows that ``known`` has under the same key and stamp are taken from it; the others are read."""
    kept, table_keys = _STAMPED.empty_table(), pictures["key"]
    if known is not None and known.schema.equals(_STAMPED):
        places = pc.index_in(pictures["key"], value_set=known["key"])
        same = pc.equal(known["stamp"].take(places), pictures["stamp"])
        same = pc.and_(pc.fill_null(same, False), pc.greater(pictures["modified"], 0))
        kept = known.take(places.filter(same))
        pictures = pictures.filter(pc.invert(same))
    described = _listed_captions(backend, table_keys, notes) if len(pictures) else {}
    reader = _Reader(backend, backend.options, described)
    batches = [reader.batch(pictures.slice(start, _CHUNK), unreadable) for start in range(0, len(pictures), _CHUNK)]
    reader.close()
    table = pa.concat_tables([kept, pa.Table.from_batches(batches, schema=_STAMPED)]).combine_chunks()
    if len(kept) and batches:
        table = table.take(pc.sort_indices(table["key"]))
    if reader.mislabelled:
        number, first = len(reader.mislabelled), min(reader.mislabelled)
        notes.append(f"files of another format than their names say: {number}, such as {first!r}; used as they are")
    return Listing(table, tuple(notes))


def _listed_captions(backend: FolderBackend, keys: pa.ChunkedArray, notes: list[str]) -> Mapping[str, _Described]:
    """Captions and facts by key out of the data set's list; {} where they are elsewhere. Raises DataUnusable."""
    if backend.options.caption != "jsonl":
        return {}
    from st.data.source.caption_list import read_list

    return read_list(backend, set(keys.to_pylist()), notes)


class _Row(NamedTuple):
    kind: int
    width: int
    height: int
    frames: int
    fps: float
    seconds: float
    captions: tuple[str, ...]
    facts: list[tuple[str, str]] | None
    passes: int = 1


class _Reader:
    """Reads headers and captions: one file after the other on a disk, many at a time from elsewhere."""

    def __init__(
        self, backend: FolderBackend, options: FolderOptions, captions_by_key: Mapping[str, _Described]
    ) -> None:
        self.backend, self.reader = backend, reader_of(options.media)
        self.store, self.options, self.captions_by_key = backend.store, options, captions_by_key
        self.companions, self.beside = tuple(backend.companions), tuple(_beside(options))
        self.mislabelled: list[str] = []
        self._pool = None if self.store.is_local else ThreadPoolExecutor(_READERS)

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()

    def batch(self, pictures: pa.Table, unreadable: Unreadable) -> pa.RecordBatch:
        keys = pictures["key"].to_pylist()
        beside = [pictures[name].to_pylist() for name in self.beside]
        files = zip(*beside, strict=True) if beside else repeat((), len(keys))
        mapped: Iterator[_Row | SampleUnreadable] = (self._pool.map if self._pool else map)(self._row, keys, files)
        rows, kept = [], []
        for place, row in enumerate(mapped):
            if isinstance(row, SampleUnreadable):
                unreadable(row.key, row.reason)
            else:
                rows.append(row)
                kept.append(place)
        pictures = pictures.take(pa.array(kept, pa.int64()))
        given = {name: pictures[name].combine_chunks() for name in ("key", "size_bytes", "modified", "stamp")}
        read = {name: [getattr(row, name) for row in rows] for name in _Row._fields}
        columns = {**given, **read, "extras": self._extras(pictures)}
        return pa.record_batch([pa.array(columns[field.name], field.type) for field in _STAMPED], schema=_STAMPED)

    def _extras(self, pictures: pa.Table) -> list[list[tuple[str, str]] | None]:
        if not self.companions:
            return [None] * len(pictures)
        columns = [pictures[name].to_pylist() for name in self.companions]
        return [
            [(name, f"{name}:{key}") for name, key in zip(self.companions, keys, strict=True) if key is not None]
            for keys in zip(*columns, strict=True)
        ]

    def _row(self, key: str, beside: tuple[str | None, ...]) -> _Row | SampleUnreadable:
        try:
            header = self.reader.header(self.backend, key)
            files = dict(zip(self.beside, beside, strict=True))
            texts, passes, facts = self._words(key, files)
        except SampleUnreadable as error:
            return error
        except FileNotFoundError:
            return SampleUnreadable(key, "the file, or its caption, is gone or a link to nothing")
        except StoreUnreadable as error:
            return SampleUnreadable(key, error.why)
        if header.mislabelled:
            self.mislabelled.append(key)
        media = header.media
        size = (KINDS.index(media.kind), media.width, media.height, media.frames, media.fps, media.seconds)
        return _Row(*size, texts, facts, passes)

    def _words(
        self, key: str, files: Mapping[str, str | None]
    ) -> tuple[tuple[str, ...], int, list[tuple[str, str]] | None]:
        """Captions, passes and facts. files: those beside the sample, by column."""
        caption = files.get("caption")
        if self.options.caption == "json":
            (texts, known), passes = self._object(key, caption), 1
        elif self.options.caption == "jsonl":
            (texts, known), passes = self.captions_by_key.get(key, ((), {})), 1
        else:
            texts, passes = self._captions(key, caption)
            known = {
                name: captions.read(self.store.read(file), key).strip()
                for name in self.options.facts
                if (file := files.get(f"{_FACT}{name}"))
            }
        facts = [(name, known[name]) for name in self.options.facts if known.get(name)]
        return texts, passes, facts or None

    def _object(self, key: str, file: str | None) -> _Described:
        if file is None:
            return (), {}
        try:
            return captions.described(file, key, captions.parsed(captions.read(self.store.read(file), key)))
        except DataUnusable as error:
            raise SampleUnreadable(key, error.what) from error
        except ValueError as error:
            raise SampleUnreadable(key, f"{file!r} is not JSON: {error}") from error

    def _captions(self, key: str, caption: str | None) -> tuple[tuple[str, ...], int]:
        source, passes, from_folder = self.options.caption, 1, ""
        if source == "folder" and (match := _PASSES.match(key.rpartition("/")[0].rpartition("/")[2])):
            passes, from_folder = int(match[1]), match[2].strip()
        if caption is not None:
            text = captions.read(self.store.read(caption), key)
            if self.options.multiline:
                return ((text.strip(),) if text.strip() else ()), passes
            return captions.lines(text), passes
        if source == "filename":
            return (captions.from_filename(key),), passes
        return ((from_folder,) if from_folder else ()), passes
