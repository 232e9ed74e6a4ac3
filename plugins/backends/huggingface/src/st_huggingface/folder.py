"""HubFolder: files of a repository on the hub as a data set, at one commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

import st
from st.data.source.remote import RemoteFolderBackend, RemoteFolderOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st.data.store.store import Store
    from st_huggingface.repository import Repository


class HubFolderOptions(RemoteFolderOptions):
    """A data set made of the files of a repository. A token comes from where `hf auth login` puts it, or HF_TOKEN."""

    revision: str = ""
    """Branch, tag or commit. Empty is `main`, or what stands behind an `@` in the url."""
    endpoint: str = Field("", pattern=r"^(https?://[^@/]+.*)?$")
    """Address of a hub other than huggingface.co. Empty is what HF_ENDPOINT says."""


class HubFolder(RemoteFolderBackend):
    """Read the files of a repository on the Hugging Face hub: ``url = "hf://datasets/OWNER/NAME/folder"``.

    A branch is looked up once, when a run starts; from then on every byte comes from that commit, which the run's
    manifest names.
    """

    StoreOptions: ClassVar[type[st.Options] | None] = None
    Options: ClassVar[type[HubFolderOptions]] = HubFolderOptions
    options: HubFolderOptions

    def __init__(self, url: str, options: HubFolderOptions) -> None:
        self.repositories: dict[str, Repository] = {}
        super().__init__(url, options)

    def remote_store(self, url: str) -> Store:
        from st_huggingface.repository import open_store

        store = open_store(url, self.options, self.repositories)
        return store

    def version(self, store: Store, key: str) -> str:
        # A commit never changes, and the store's own name holds it.
        return "pinned"

    def facts(self) -> Mapping[str, str]:
        return {f"revision of {name}": repository.commit for name, repository in self.repositories.items()}
