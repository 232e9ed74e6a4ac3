"""A bucket keeps the promises of a store, also where the network and the server do not keep theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from st.data.store.store import Store
from st.errors import DataUnusable, StoreUnreachable, StoreUnreadable
from st.testing.subjects.network import SpoilingProxy
from st_s3 import S3
from st_s3.backend import S3StoreOptions
from st_s3.filesystem import Filesystem, etag


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b.bin", b"0123456789")

    assert store.read("a/b.bin") == b"0123456789"
    assert store.read_range("a/b.bin", 2, 3) == b"234"
    assert store.read_range("a/b.bin", 8, 100) == b"89"
    assert store.exists("a/b.bin") and not store.exists("a/c.bin")


def test_there_is_nothing_beyond_the_end(store: Store) -> None:
    store.write("empty", b"")
    store.write("a", b"123")

    assert store.read("empty") == store.read_range("empty", 0, 10) == b""
    assert store.read_range("a", 3, 10) == store.read_range("a", 1, 0) == b""


def test_what_others_wrote_is_listed_at_once(store: Store, bucket: str, server: int) -> None:
    other = S3.open_store(f"s3://{bucket}/some/folder", S3StoreOptions(endpoint=f"http://127.0.0.1:{server}"))
    assert list(store.list()) == []

    other.write("x/a", b"123")

    assert [(entry.key, entry.size_bytes, entry.modified > 0) for entry in store.list("x")] == [("x/a", 3, True)]
    assert store.exists("x/a")


def test_listings_of_many_pages_are_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.filesystem, "s3_additional_kwargs", {"MaxKeys": 4})
    for number in range(10):
        store.write(f"{number}", b"")
    store.filesystem.call_s3("put_object", Bucket=store.root.partition("/")[0], Key="some/folder/sub/", Body=b"")

    assert sorted(entry.key for entry in store.list()) == [f"{number}" for number in range(10)]


def test_creating_what_is_there_is_refused(store: Store) -> None:
    store.create("a", b"first")

    with pytest.raises(FileExistsError):
        store.create("a", b"second")

    assert store.read("a") == b"first"


def test_a_creation_whose_answer_was_lost_has_happened(store: Store, proxy: SpoilingProxy) -> None:
    proxy.kinds, proxy.share, proxy.methods = ("lost",), 0.5, ("PUT",)

    for number in range(3):
        store.create(f"{number}", b"first")

    assert proxy.spoiled["lost"] > 0
    assert [store.read(f"{number}") for number in range(3)] == [b"first"] * 3


def test_absent_objects_are_not_found(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("absent")

    store.delete("absent")
    assert etag(store, "absent") == ""


def test_every_byte_arrives_although_a_fifth_of_all_requests_fails(store: Store, proxy: SpoilingProxy) -> None:
    proxy.kinds, proxy.share = ("500", "503", "slow", "reset", "cut", "lost"), 0.2
    bodies = {f"{number}": bytes([number]) * (1000 * number + 1) for number in range(24)}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.write, bodies, bodies.values()))
        read = dict(zip(bodies, pool.map(store.read, bodies), strict=True))

    assert read == bodies
    assert sorted(entry.key for entry in store.list()) == sorted(bodies)
    assert set(proxy.spoiled) == set(proxy.kinds)


def test_a_server_that_never_answers_is_one_clear_stop(bucket: str) -> None:
    store = S3.open_store(f"s3://{bucket}/x", S3StoreOptions(endpoint="http://127.0.0.1:9", attempts=1))

    with pytest.raises(StoreUnreachable, match="'a' cannot be read from s3://") as raised:
        store.read("a")

    assert "127.0.0.1:9" in raised.value.why and "--resume" in raised.value.fix


@pytest.mark.parametrize(("kind", "words"), [("expired", "have expired"), ("wrong", "refuses the credentials")])
def test_refused_credentials_are_one_clear_stop(store: Store, proxy: SpoilingProxy, kind: str, words: str) -> None:
    store.write("a", b"1")
    proxy.kinds, proxy.share = (kind,), 1.0
    actions: list[Callable[[], object]] = [
        lambda: store.read("a"),
        lambda: store.write("a", b"2"),
        lambda: store.create("b", b"2"),
        lambda: list(store.list()),
        lambda: store.read_range("a", 0, 1),
        lambda: store.exists("a"),
    ]

    for action in actions:
        before = len(proxy.lines)
        with pytest.raises(StoreUnreachable, match=words) as raised:
            action()
        assert raised.value.fix
        assert len(proxy.lines) - before <= 4


def test_credentials_that_were_renewed_elsewhere_are_used(
    store: Store, proxy: SpoilingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a", b"1")
    proxy.kinds, proxy.share = ("expired",), 1.0
    real = Filesystem.set_session

    async def renewed(self, refresh=False, **keywords):
        if refresh:
            proxy.kinds = ()
        return await real(self, refresh=refresh, **keywords)

    monkeypatch.setattr(Filesystem, "set_session", renewed)

    assert store.read("a") == b"1"


def test_missing_credentials_are_one_clear_stop(
    bucket: str, proxy: SpoilingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)

    store = S3.open_store(f"s3://{bucket}", S3StoreOptions(endpoint=proxy.endpoint, region="elsewhere"))
    with pytest.raises(StoreUnreachable, match="no credentials") as raised:
        store.read("a")
    assert "profile" in raised.value.fix

    store = S3.open_store(f"s3://{bucket}", S3StoreOptions(endpoint=proxy.endpoint, profile="absent"))
    with pytest.raises(StoreUnreachable, match="no credentials") as raised:
        store.read("a")
    assert "absent" in raised.value.why


def test_keys_of_a_profile_are_used(
    bucket: str, proxy: SpoilingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / "aws-credentials").write_text("[lab]\naws_access_key_id = AKIALAB\naws_secret_access_key = x\n")

    store = S3.open_store(f"s3://{bucket}", S3StoreOptions(endpoint=proxy.endpoint, profile="lab"))
    store.write("a", b"1")

    assert store.filesystem.s3._request_signer._credentials.access_key == "AKIALAB"


def test_public_buckets_need_no_credentials(bucket: str, proxy: SpoilingProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    store = S3.open_store(f"s3://{bucket}", S3StoreOptions(endpoint=proxy.endpoint, anonymous=True))

    assert list(store.list()) == []


def test_a_bucket_that_does_not_exist_is_named(proxy: SpoilingProxy) -> None:
    store = S3.open_store("s3://no-such-bucket/x", S3StoreOptions(endpoint=proxy.endpoint))

    with pytest.raises(StoreUnreachable, match=r"bucket 'no-such-bucket' at http.* does not exist"):
        list(store.list())


def test_a_bucket_that_there_can_not_be_is_one_error(proxy: SpoilingProxy) -> None:
    store = S3.open_store("s3://no bucket!/x", S3StoreOptions(endpoint=proxy.endpoint))

    with pytest.raises(StoreUnreachable, match="names no bucket that there can be"):
        list(store.list())


def test_an_object_that_is_refused_is_no_outage(store: Store, proxy: SpoilingProxy) -> None:
    proxy.kinds, proxy.share = ("denied",), 1.0

    with pytest.raises(StoreUnreadable, match="'a' cannot be read"):
        store.read("a")

    assert len(proxy.lines) == 1


def test_the_bucket_is_in_the_path_where_asked(bucket: str, proxy: SpoilingProxy) -> None:
    S3.open_store(
        f"s3://{bucket}/x", S3StoreOptions(endpoint=proxy.endpoint.replace("127.0.0.1", "localhost"), path_style=True)
    ).write("a", b"1")

    assert proxy.lines == [f"PUT /{bucket}/x/a HTTP/1.1"]


def test_a_url_with_keys_is_refused_and_not_repeated() -> None:
    with pytest.raises(DataUnusable) as raised:
        S3.open_store("s3://AKIAX:topsecret@bucket/x", S3StoreOptions())

    assert "topsecret" not in str(raised.value) and "AKIAX" not in str(raised.value)


def test_an_endpoint_with_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="holds credentials"):
        S3StoreOptions(endpoint="https://me:topsecret@minio.example")


def test_filesystems_are_shared_by_data_sets_and_caches(bucket: str, proxy: SpoilingProxy) -> None:
    options = {"endpoint": proxy.endpoint, "region": "auto"}
    one = S3(f"s3://{bucket}/photos", S3.Options(**options)).store
    other = S3.open_store(f"s3://{bucket}/cache", S3StoreOptions(**options))

    assert one.filesystem is other.filesystem
    assert json.loads(one.filesystem.to_json(include_password=True))["client_kwargs"] == {"region_name": "auto"}
