"""S3: a bucket as a data set and as a place for caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

import st
from st.data.source.remote import RemoteFolderBackend, RemoteFolderOptions

if TYPE_CHECKING:
    from st.data.store.store import Store


class S3StoreOptions(st.Options):
    """How a bucket is reached. Credentials are no options: they come from where every program for S3 finds them."""

    endpoint: str = ""
    """Address of a server other than AWS, such as `https://minio.example:9000`. Empty is what AWS_ENDPOINT_URL says."""
    region: str = ""
    """Region of the bucket; `auto` for R2. Empty is what AWS_REGION or the profile says."""
    path_style: bool = False
    """Put the bucket's name into the path, not into the host's name. Most servers of one's own need this."""
    profile: str = ""
    """Section of the AWS configuration files to take credentials from. Empty is what AWS_PROFILE says, or `default`."""
    anonymous: bool = False
    """Send no credentials, for public buckets."""
    attempts: int = Field(6, ge=1)
    """How often a request is sent before it counts as failed; pauses between attempts grow."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Time in seconds without an answer after which a request is sent again."""

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.username or parts.password:
            raise ValueError("holds credentials; put them into a profile or AWS_ACCESS_KEY_ID, and not into a run file")
        if value and (parts.scheme not in ("http", "https") or not parts.netloc):
            raise ValueError("must begin with https:// or http://")
        return value


class S3Options(RemoteFolderOptions, S3StoreOptions):
    """A data set in a bucket."""


class S3(RemoteFolderBackend):
    """Read data sets from S3, R2, Wasabi or MinIO, and keep caches there: ``url = "s3://bucket/prefix"``."""

    Options: ClassVar[type[S3Options]] = S3Options
    StoreOptions: ClassVar[type[st.Options] | None] = S3StoreOptions
    options: S3Options

    @classmethod
    def open_store(cls, url: str, options: st.Options) -> Store:
        from st_s3.filesystem import open_store

        assert isinstance(options, S3StoreOptions)
        return open_store(url, options)

    def version(self, store: Store, key: str) -> str:
        from st_s3.filesystem import etag

        return etag(store, key)
