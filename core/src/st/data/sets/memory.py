"""Memory: what is kept of a data set between runs, so that the next start only looks at sizes and times."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from st.data.digest import digest_of
from st.data.store.sealed import ENDING, seal, unseal
from st.errors import StoreUnreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from st.data.dataset import DatasetConfig
    from st.data.store.store import Store

FOLDER = "index/"
VERSION = 2
"""Of what is read out of headers and captions: a table of another version is made again."""


def _silent(text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept of one data set between runs, next to the cache: its table and the digests of its files.

    note: told of what is there and damaged.
    """

    store: Store
    name: str
    note: Callable[[str], None] = field(default=_silent, compare=False)

    @classmethod
    def of(cls, store: Store, config: DatasetConfig, note: Callable[[str], None] = _silent) -> Memory:
        """Named by what the table depends on, so that a changed url or option never finds another one's table."""
        identity = json.dumps(
            [VERSION, config.options.url, config.scheme, config.backend.model_dump(mode="json")], sort_keys=True
        )
        safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in config.name)
        return cls(store, f"{safe}-{digest_of(identity.encode())[:12]}", note)

    def load(self, what: str) -> pa.Table | None:
        """What was saved under a name; None where there is nothing, or nothing whole."""
        try:
            return unseal(self.store.read(self._key(what)))
        except FileNotFoundError:
            return None
        except (ValueError, StoreUnreadable) as error:
            self.note(f"cache: {self._key(what)!r} is damaged ({error}); it is made again from the files themselves")
            return None

    def save(self, what: str, table: pa.Table) -> None:
        self.store.write(self._key(what), seal(table))

    def _key(self, what: str) -> str:
        return f"{FOLDER}{self.name}.{what}{ENDING}"


def damaged_tables(store: Store) -> Iterator[tuple[str, bool]]:
    """Every table that is kept of data sets, by key, and whether its bytes are other than those that were written."""
    for entry in store.list(FOLDER):
        try:
            unseal(store.read(entry.key), columns=())
        except (ValueError, StoreUnreadable):
            yield entry.key, True
        else:
            yield entry.key, False
