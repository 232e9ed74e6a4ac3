"""Filesystem: s3fs with what a long run needs: no stale listings, creations that are repeatable, errors to act on."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import ClientError as ConnectionFailed
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem  # type: ignore[import-untyped]

from st.data.store.store import Store
from st.errors import DataUnusable
from st_s3.refusals import code_of, is_expired, refusal

if TYPE_CHECKING:
    from st_s3.backend import S3StoreOptions

CONNECTIONS = 32
"""Requests at a time: readers of a scan and of a loader together."""

_PARTS = 8
"""Parts of a large object that are written at a time."""

_TAKEN = ("PreconditionFailed", "412")
_BEYOND_THE_END = ("InvalidRange", "416")
_NO_REASON = ("400", "403")
_WRITER = "st-writer"


def open_store(url: str, options: S3StoreOptions) -> Store:
    """The store at ``s3://bucket/prefix``. Raises DataUnusable for a url without a bucket."""
    path = url.partition(":")[2].strip("/")
    bucket = path.partition("/")[0]
    if not bucket or "@" in bucket or ":" in bucket:
        # A url is never repeated here: some tools put keys before an '@'.
        raise DataUnusable("a url of s3 names no bucket.", fix="Write s3://bucket/prefix; credentials go elsewhere.")
    return Store(_filesystem(options), path, transient=(ConnectionFailed, BotoCoreError, ClientError))


def _filesystem(options: S3StoreOptions) -> Filesystem:
    # Equal arguments give the same instance: data sets and caches share one pool of connections.
    config: dict[str, Any] = {
        "connect_timeout": min(options.timeout_seconds, 10),
        "read_timeout": options.timeout_seconds,
        "max_pool_connections": CONNECTIONS,
        "retries": {"mode": "standard", "total_max_attempts": options.attempts},
        "s3": {"addressing_style": "path" if options.path_style else "auto"},
    }
    if options.endpoint:
        # Servers other than AWS refuse, or leave out, the checksums that its client sends and expects by default.
        config["request_checksum_calculation"] = config["response_checksum_validation"] = "when_required"
    return Filesystem(
        anon=options.anonymous,
        endpoint_url=options.endpoint or None,
        client_kwargs={"region_name": options.region} if options.region else {},
        config_kwargs=config,
        use_listings_cache=False,
        # With more parts of one object at a time, s3fs asks for the size before it reads.
        max_concurrency=1,
        **({"profile": options.profile} if options.profile else {}),
    )


def etag(store: Store, key: str) -> str:
    """What changes when an object does; '' where the store does not say, so that reading it tells why."""
    try:
        return str(store.filesystem.info(f"{store.root}/{key}").get("ETag", ""))
    except OSError:
        return ""


class Filesystem(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """s3fs as a Store needs it.

    Raises StoreUnreachable where no request can succeed: credentials that are missing, wrong or expired, a bucket that
    does not exist. Expired credentials are looked up once more before, since other programs renew them.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._writer = uuid4().hex

    async def _call_s3(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        session = self._s3
        try:
            return await super()._call_s3(method, *arguments, **keywords)
        except (OSError, BotoCoreError) as error:
            self._refuse(error, keywords)
            if method == "head_object" and code_of(error) in _NO_REASON:
                # An answer to HEAD has no body that would say why.
                await self._call_s3("list_objects_v2", Bucket=keywords["Bucket"], MaxKeys=1)
            if not is_expired(error):
                raise
        try:
            if self._s3 is session:
                await self.set_session(refresh=True)
            return await super()._call_s3(method, *arguments, **keywords)
        except (OSError, BotoCoreError) as error:
            self._refuse(error, keywords, expired=True)
            raise

    def _refuse(self, error: Exception, keywords: dict[str, Any], *, expired: bool = False) -> None:
        """Raise StoreUnreachable where no request can succeed; for expired credentials only if ``expired`` says so."""
        stop = refusal(error, self.endpoint_url, keywords.get("Bucket", ""))
        if stop is not None and (expired or not is_expired(error)):
            raise stop from error

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **keywords: Any) -> bytes:
        if start is not None and end is not None and end <= start:
            return b""
        try:
            found: bytes = await super()._cat_file(path, start=start, end=end, **keywords)
        except OSError as error:
            if code_of(error) in _BEYOND_THE_END:
                return b""
            raise
        return found

    async def _pipe_file(self, path: str, data: bytes, mode: str = "overwrite", **keywords: Any) -> None:
        if mode != "create":
            await super()._pipe_file(path, data, mode=mode, max_concurrency=_PARTS, **keywords)
            return
        # An answer may be lost after the object was made, and the request is sent again: the object says who made it.
        writer = f"{self._writer}-{blake2b(data, digest_size=8).hexdigest()}"
        try:
            await super()._pipe_file(
                path, data, mode=mode, max_concurrency=_PARTS, Metadata={_WRITER: writer}, **keywords
            )
        except OSError as error:
            if not isinstance(error, FileExistsError) and code_of(error) not in _TAKEN:
                raise
            if await self._writer_of(path) != writer:
                raise FileExistsError(path) from error

    async def _writer_of(self, path: str) -> str:
        bucket, key, _ = self.split_path(path)
        head = await self._call_s3("head_object", Bucket=bucket, Key=key)
        return str(head["Metadata"].get(_WRITER, ""))

    async def _find(self, path: str, **options: Any) -> Any:
        if options != {"detail": True}:
            return await super()._find(path, **options)
        # Only what a Store asks for: of a million objects, s3fs's own answer takes gigabytes.
        bucket, key, _ = self.split_path(self._strip_protocol(path))
        found: dict[str, dict[str, Any]] = {}
        page: dict[str, Any] = {"NextContinuationToken": None}
        while "NextContinuationToken" in page:
            token = page["NextContinuationToken"]
            more = {"ContinuationToken": token} if token else {}
            prefix = f"{key}/" if key else ""
            page = await self._call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    modified = entry["LastModified"].timestamp()
                    found[f"{bucket}/{entry['Key']}"] = {"size": entry["Size"], "mtime": modified}
        return found

    # s3fs binds its own method to this name; the others are bound to an instance's.
    find = sync_wrapper(_find)
