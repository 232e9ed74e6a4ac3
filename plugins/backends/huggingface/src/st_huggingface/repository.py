"""Repository: one commit of a repository on the hub, as a filesystem that is only read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

from fsspec import AbstractFileSystem
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of its HTTP library
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff  # type: ignore[attr-defined]

from st.data.store.store import Store
from st.errors import DataUnusable, StError, StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st_huggingface.folder import HubFolderOptions

_KINDS = {"datasets": "dataset", "spaces": "space", "models": "model"}
_REFUSED = (401, 403)
_PART, _BEYOND_THE_END = 206, 416


class Place(NamedTuple):
    """What a url names. kind: "dataset", "model" or "space". revision: '' where the url has none."""

    kind: str
    name: str
    revision: str
    folder: str

    @classmethod
    def of(cls, url: str) -> Place:
        """``hf://datasets/OWNER/NAME@revision/folder``. Raises DataUnusable for another form."""
        parts = url.partition(":")[2].strip("/").split("/")
        kind = _KINDS[parts.pop(0)] if parts[0] in _KINDS else "model"
        if len(parts) < 2 or not all(parts[:2]):
            raise DataUnusable(f"{url!r} names no repository.", fix="Write hf://datasets/OWNER/NAME/folder.")
        name, _, revision = parts[1].partition("@")
        return cls(kind, f"{parts[0]}/{name}", unquote(revision), "/".join(parts[2:]))

    @property
    def repository(self) -> str:
        """``datasets/OWNER/NAME``, as it stands in urls."""
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"


def open_store(url: str, options: HubFolderOptions, opened: dict[str, Repository]) -> Store:
    """The store at a url, at the commit that its revision is now.

    opened: the repositories of this data set, by name and by revision where there is one; extended here.
    """
    place = Place.of(url)
    revision = place.revision or options.revision
    name = f"{place.repository}@{revision}" if revision else place.repository
    if name not in opened:
        commit = commit_of(place.kind, place.name, revision, options.endpoint)
        opened[name] = Repository(place.kind, place.name, commit, options.endpoint)
    repository = opened[name]
    return Store(repository, f"{place.repository}@{repository.commit}/{place.folder}", transient=(HTTPError,))


def commit_of(kind: str, name: str, revision: str, endpoint: str = "") -> str:
    """The commit that a branch or tag is at now. Raises StError saying what to do."""
    address = f"{endpoint or constants.ENDPOINT}/api/{kind}s/{name}/revision/{quote(revision or 'main', safe='')}"
    try:
        response = http_backoff("GET", address, headers=build_hf_headers(), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        hf_raise_for_status(response)
        return str(response.json()["sha"])
    except (OSError, HTTPError) as error:
        raise refusal(error, kind, name) or StoreUnreachable(
            f"the {kind} {name!r} cannot be looked up on the hub.", why=str(error).partition("\n")[0]
        ) from error


def refusal(error: Exception, kind: str, name: str) -> StError | None:
    """The error to stop with; None for one that may pass or is about one file. Never shows a token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    if isinstance(error, OfflineModeIsEnabled):
        download = f"hf download {name} --repo-type {kind} --local-dir photos"
        fix = f'Unset it; or, once online: {download}, and then url = "file:photos".'
        return StoreUnreachable(f"the {kind} {name!r} is on the hub, and HF_HUB_OFFLINE is set.", fix=fix)
    if isinstance(error, GatedRepoError):
        return StoreUnreachable(
            f"the {kind} {name!r} is gated.", fix="Accept its terms on its page, then: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return DataUnusable(f"the {kind} {name!r} has no such revision.", fix="Correct revision.")
    if isinstance(error, RepositoryNotFoundError):
        return StoreUnreachable(
            f"there is no {kind} {name!r} on the hub that you can see.", fix="If it is private: hf auth login"
        )
    if status in _REFUSED:
        return StoreUnreachable(
            f"the hub refuses the token for the {kind} {name!r} ({status}).", fix="Log in again: hf auth login"
        )
    return None


class Repository(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Paths are ``datasets/OWNER/NAME@commit/file``.

    Not the hub's own HfFileSystem: that one reads five megabytes for the header of a picture, and asks twice for what a
    commit cannot change. Raises StoreUnreachable where no request can succeed.
    """

    protocol = "hf"
    cachable = False

    def __init__(self, kind: str, name: str, commit: str, endpoint: str = "") -> None:
        super().__init__()
        self.kind, self.name, self.commit = kind, name, commit
        self.endpoint = endpoint or constants.ENDPOINT
        self._headers: Mapping[str, str] = build_hf_headers()

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any) -> dict[str, Any]:
        """Every file below a folder, by path; there is nothing below one that does not exist."""
        prefix, _, folder = path.partition(f"@{self.commit}")
        below = f"/{quote(folder.strip('/'))}" if folder.strip("/") else ""
        url = f"{self.endpoint}/api/{self.kind}s/{self.name}/tree/{self.commit}{below}?recursive=true"
        found: dict[str, Any] = {}
        try:
            while url:
                response = self._get(url, self._headers)
                for entry in response.json():
                    if entry["type"] == "file":
                        # A commit has no times. What identifies the bytes takes their place: it changes when they do,
                        # and files that two commits share are not read again.
                        stamp = float(int(entry["oid"][:12], 16))
                        found[f"{prefix}@{self.commit}/{entry['path']}"] = {"size": entry["size"], "mtime": stamp}
                url = response.links.get("next", {}).get("url", "")
        except FileNotFoundError:
            return {}
        return found

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """All bytes of a file, or those from ``start`` to before ``end``."""
        headers = dict(self._headers)
        if start is not None and end is not None:
            if end <= start:
                return b""
            headers["Range"] = f"bytes={start}-{end - 1}"
        file = path.partition(f"@{self.commit}/")[2]
        url = hf_hub_url(self.name, file, repo_type=self.kind, revision=self.commit, endpoint=self.endpoint)
        response = self._get(url, headers)
        if response.status_code == _BEYOND_THE_END:
            return b""
        data: bytes = response.content
        # A server that does not know ranges sends all of it.
        return data[start:end] if response.status_code != _PART else data

    def _get(self, url: str, headers: Mapping[str, str]) -> Any:
        """An answer of the hub; requests that fail in passing are sent again. Raises FileNotFoundError too."""
        try:
            response = http_backoff("GET", url, headers=dict(headers), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            if response.status_code != _BEYOND_THE_END:
                hf_raise_for_status(response)
        except EntryNotFoundError as error:
            raise FileNotFoundError(url) from error
        except OSError as error:
            if stop := refusal(error, self.kind, self.name):
                raise stop from error
            raise
        return response

    def exists(self, path: str, **options: Any) -> bool:
        """Whether there is such a file."""
        try:
            self.cat_file(path, 0, 1)
        except FileNotFoundError:
            return False
        return True
