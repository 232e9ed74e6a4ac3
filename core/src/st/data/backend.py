"""DataBackend: where samples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar

from st.options import Options
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import BinaryIO

    import st
    from st.data.sample import Sample
    from st.data.store.store import Store


BACKEND: StrategyKind[Callable[..., DataBackend]] = StrategyKind("backend")
"""A data backend; its name is the scheme of the urls that it reads."""


class DataBackend(ABC):
    """Where samples come from. Knows nothing of models or training.

    A backend is chosen by the scheme of a data set's ``url``. It is built with that url and with the keys of the data
    set's table that its ``Options`` declares.
    """

    Options: ClassVar[type[Options]] = Options
    StoreOptions: ClassVar[type[st.Options] | None] = None
    """What ``open_store`` needs to know; None where this kind of place cannot be written to. ``[cache]`` takes these
    keys beside its own where its url has the backend's scheme."""

    def __init__(self, url: str, options: st.Options) -> None:
        self.url, self.options = url, options

    @abstractmethod
    def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[Sample]:
        """Every sample, in a stable order with stable keys; reads headers, decodes nothing.

        A file that cannot be used is passed to ``unreadable(key, reason)`` and left out.
        """

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The bytes behind a sample's key or one of its extras.

        Raises SampleUnreadable(key, reason), and another StError where nothing can be read any more.
        """

    def open(self, key: str) -> BinaryIO:
        """The same bytes as a file to read and seek in, to be closed: of a long clip only a part is read.

        Raises as ``read`` does, also while it is read.
        """
        return BytesIO(self.read(key))

    def facts(self) -> Mapping[str, str]:
        """What the run's manifest is to say of where the samples came from, such as a pinned revision. No secrets."""
        return {}

    @classmethod
    def open_store(cls, url: str, options: st.Options) -> Store:
        """The store behind a url of this scheme, for a cache. options: an instance of ``StoreOptions``."""
        raise NotImplementedError(f"{cls.__name__} has no StoreOptions")
