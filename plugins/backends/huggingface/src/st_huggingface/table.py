"""HubTable: what the library ``datasets`` reads, as a data set: pictures and captions in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

import st

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pyarrow as pa

    from st.data.source.index import Listing
    from st_huggingface.rows import Rows


class HubTableOptions(st.Options):
    """Which rows and columns are samples. A token comes from where `hf auth login` puts it, or HF_TOKEN."""

    config: str = ""
    """Configuration of the data set, where it has several. Empty is its default one."""
    split: str = "train"
    """Split, or a part of one: `train[:1000]`."""
    revision: str = ""
    """Branch, tag or commit. Empty is `main`."""
    image_column: str = "image"
    """Column of pictures: of the type Image, or bytes of picture files."""
    caption_column: str = "text"
    """Column of captions: a text, or a list of which one is drawn per visit. `json.caption` is a field of a struct."""
    fallback_caption_column: str = ""
    """Column of captions for rows without one in caption_column."""
    width_column: str = ""
    """Column of widths in pixels. With height_column, pictures are not opened to learn their sizes."""
    height_column: str = ""
    """Column of heights in pixels."""
    mask_column: str = ""
    """Column of masks: white is trained on."""
    reference_column: str = ""
    """Column of reference pictures, for families that condition on one."""
    filters: tuple[str, ...] = Field(())
    """Rows are used where all of these hold: `["score >= 5.5", "collection in ['photos', 'film']"]`."""

    @field_validator("filters")
    @classmethod
    def _are_conditions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from st_huggingface.conditions import Condition

        for text in value:
            Condition.parse(text)
        return value


class HubTable(st.DataBackend):
    """Read pictures and captions from columns: ``url = "hf-datasets:OWNER/NAME"``, or a folder that was saved to disk.

    Keys are row numbers of the split, whatever filters leave out. A branch is looked up once, when a run starts.
    """

    Options: ClassVar[type[HubTableOptions]] = HubTableOptions
    options: HubTableOptions

    def __init__(self, url: str, options: HubTableOptions) -> None:
        super().__init__(url, options)
        self._opened: Rows | None = None

    @property
    def rows(self) -> Rows:
        """The split, opened when it is first asked for. Raises DataUnusable or StoreUnreachable."""
        from st_huggingface.rows import Rows

        if self._opened is None:
            self._opened = Rows.open(self.url.partition(":")[2].removeprefix("//"), self.options)
        return self._opened

    def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[st.Sample]:
        from st.data.source.index import Index

        return Index.from_table(self.table(None, unreadable).table).samples()

    def table(self, known: pa.Table | None, unreadable: Callable[[str, str], None]) -> Listing:
        """Every sample, sorted by key; rows that ``known`` has of the same commit are not read again."""
        from st.data.source.index import Listing

        return Listing(self.rows.listing(known, unreadable))

    def read(self, key: str) -> bytes:
        return self.rows.read(key)

    def facts(self) -> Mapping[str, str]:
        return self.rows.facts
