from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from st.data.cache.cache import Cache, Origin
from st.data.store.store import Store


def origin(number: int, encoder: str = "vae") -> Origin:
    return Origin(encoder, "fingerprint", {"bytes": f"{number:032x}"}, f"{number}.png")


def tensors(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "latents": torch.randn(4, 8, 8, generator=generator).to(torch.bfloat16),
        "mask": torch.rand(3, generator=generator) > 0.5,
        "length": torch.tensor(number),
    }


def same(found: Any, expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


@pytest.fixture(params=["disk", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store.at(str(tmp_path / "cache"))
    return Store(MemoryFileSystem(), f"/{tmp_path.name}")


def filled(store: Store, numbers: range, shard_bytes: int = 1 << 20) -> Cache:
    cache = Cache(store, shard_bytes=shard_bytes)
    for number in numbers:
        cache.put(origin(number), tensors(number))
    cache.flush()
    return cache


def test_entries_come_back_as_they_were_put(any_store: Store) -> None:
    filled(any_store, range(20), shard_bytes=2000)

    cache = Cache(any_store)

    assert all(same(cache.get(origin(number).key), tensors(number)) for number in range(20))
    assert cache.get(origin(20).key) is None
    assert len(list(any_store.list("shards/"))) > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.float8_e4m3fn])
def test_dtypes_are_kept(store: Store, dtype: torch.dtype) -> None:
    cache = Cache(store)
    given = {"byte": torch.ones(3, dtype=torch.uint8), "x": torch.arange(5).to(dtype)}

    cache.put(origin(1), given)
    cache.flush()
    found = Cache(store).get(origin(1).key)

    assert found is not None
    assert found["x"].dtype == dtype
    assert torch.equal(found["x"].view(torch.uint8), given["x"].view(torch.uint8))


def test_shards_are_safetensors_files(store: Store) -> None:
    filled(store, range(3))

    plain = load_file(shard_file(store))

    assert torch.equal(plain[f"{origin(2).key}.latents"], tensors(2)["latents"])
    assert torch.equal(plain[f"{origin(1).key}.mask"], tensors(1)["mask"])


def test_an_entry_can_be_read_before_its_shard_is_written(store: Store) -> None:
    cache = Cache(store)

    cache.put(origin(1), tensors(1))

    assert same(cache.get(origin(1).key), tensors(1))
    assert origin(1).key in cache
    assert cache.shapes(origin(1).key) == {"latents": (4, 8, 8), "mask": (3,), "length": ()}
    assert origin(1).key not in Cache(store)


def test_a_row_of_a_batch_is_stored_without_the_batch(store: Store) -> None:
    cache, batch = Cache(store), torch.zeros(1000, 100)

    cache.put(origin(1), {"x": batch[3]})
    cache.flush()

    assert sum(entry.size_bytes for entry in store.list("shards/")) < 1000


def test_a_shard_is_written_when_it_is_old_enough(store: Store) -> None:
    now = [0.0]
    cache = Cache(store, shard_seconds=60, clock=lambda: now[0])

    cache.put(origin(1), tensors(1))
    now[0] = 61.0
    cache.put(origin(2), tensors(2))

    assert origin(1).key in Cache(store)


def test_lacking_agrees_with_looking_up_one_by_one(store: Store) -> None:
    cache = filled(store, range(0, 30, 2))
    cache.put(origin(101), tensors(1))
    keys = [origin(number).key for number in range(30)] + ["", origin(101).key]

    lacking = set(cache.lacking(keys).tolist())

    assert lacking == {place for place, key in enumerate(keys) if not key or key not in cache}
    assert len(lacking) == 16


def test_every_part_of_an_origin_changes_its_key() -> None:
    start = Origin("vae", "a", {"bytes": "1", "crop": "0,0"}, "x.png")

    others = [
        Origin("vae2", "a", start.reads),
        Origin("vae", "b", start.reads),
        Origin("vae", "a", {"bytes": "2", "crop": "0,0"}),
        Origin("vae", "a", {"bytes": "1", "crop": "0,1"}),
        Origin("vae", "a", {"bytes": "1"}),
    ]

    assert len({start.key, *(one.key for one in others)}) == 6
    assert Origin("vae", "a", start.reads, "moved.png").key == start.key


def test_a_caption_cannot_imitate_another_part() -> None:
    plain = Origin("t", "1", {"a": "x", "b": "y"})
    imitation = Origin("t", "1", {"a": "x\0b:1:y"})

    assert plain.key != imitation.key


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def shard_file(store: Store, folder: str = "shards") -> Path:
    (path,) = (Path(store.root) / folder).iterdir()
    return path


def test_a_flipped_bit_makes_one_entry_missing_and_is_told(store: Store) -> None:
    filled(store, range(10))
    flip(shard_file(store), -5)
    told: list[str] = []

    cache = Cache(store, note=told.append)
    found = [cache.get(origin(number).key) for number in range(10)]

    assert sum(one is None for one in found) == 1
    assert len(told) == 1
    assert "damaged" in told[0]
    assert all(one is None or same(one, tensors(number)) for number, one in enumerate(found))


def test_a_shard_cut_short_loses_only_what_was_cut_off(store: Store) -> None:
    filled(store, range(10))
    path = shard_file(store)
    path.write_bytes(path.read_bytes()[:-700])
    told: list[str] = []

    cache = Cache(store, note=told.append)
    lost = [number for number in range(10) if origin(number).key not in cache]

    assert 0 < len(lost) < 10
    assert "cut short" in told[0]
    assert all(same(cache.get(origin(n).key), tensors(n)) for n in range(10) if n not in lost)


def test_a_missing_shard_is_told_and_its_entries_are_missing(store: Store) -> None:
    filled(store, range(3))
    shard_file(store).unlink()
    told: list[str] = []

    cache = Cache(store, note=told.append)

    assert cache.get(origin(0).key) is None
    assert "3 entries" in told[0]


@pytest.mark.parametrize("offset", [0, 4, 200, -1, -20])
def test_a_damaged_index_is_told_and_its_entries_are_missing(store: Store, offset: int) -> None:
    filled(store, range(3))
    path = shard_file(store, "entries")
    flip(path, offset if offset >= 0 else path.stat().st_size + offset)
    told: list[str] = []

    cache = Cache(store, note=told.append)
    found = [cache.get(origin(number).key) for number in range(3)]

    assert all(one is None or same(one, tensors(number)) for number, one in enumerate(found))


def test_an_index_cut_short_is_told(store: Store) -> None:
    filled(store, range(3))
    path = shard_file(store, "entries")
    path.write_bytes(path.read_bytes()[:-10])
    told: list[str] = []

    cache = Cache(store, note=told.append)

    assert len(cache) == 0
    assert "damaged" in told[0]


def test_an_entry_put_again_stands_in_for_its_damaged_copy(store: Store) -> None:
    filled(store, range(10))
    flip(shard_file(store), -5)
    cache = Cache(store)
    (lost,) = (number for number in range(10) if cache.get(origin(number).key) is None)

    cache.put(origin(lost), tensors(lost))
    cache.flush()

    for reader in (cache, Cache(store)):
        assert same(reader.get(origin(lost).key), tensors(lost))
        assert not len(reader.lacking([origin(lost).key]))


def test_two_writers_fill_one_cache(store: Store) -> None:
    first, second = Cache(store, shard_bytes=3000), Cache(store, shard_bytes=3000)

    for number in range(40):
        (first if number % 2 else second).put(origin(number), tensors(number))
        if number % 5 == 0:
            first.put(origin(number), tensors(number))
    first.flush()
    second.flush()
    first.refresh()

    for reader in (first, Cache(store)):
        assert all(same(reader.get(origin(number).key), tensors(number)) for number in range(40))


KILLED = """
import sys, torch
from st.data.cache.cache import Cache, Origin
from st.data.store.store import Store

cache = Cache(Store.at(sys.argv[1]), shard_bytes=20_000)
for number in range(1_000_000):
    generator = torch.Generator().manual_seed(number)
    cache.put(Origin("vae", "1", {"bytes": str(number)}), {"x": torch.rand(1000, generator=generator)})
    if number == 20:
        print("writing", flush=True)
"""


def test_a_killed_writer_leaves_a_readable_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
    told: list[str] = []

    cache = Cache(Store.at(str(tmp_path)), note=told.append)
    found = [cache.get(Origin("vae", "1", {"bytes": str(number)}).key) for number in range(len(cache))]

    assert len(cache) >= 5
    assert told == []
    for number, one in enumerate(found):
        assert one is not None
        assert torch.equal(one["x"], torch.rand(1000, generator=torch.Generator().manual_seed(number)))


def test_a_shard_without_an_index_does_not_exist(store: Store) -> None:
    filled(store, range(3))
    shard_file(store, "entries").unlink()

    cache = Cache(store)

    assert len(cache) == 0


def test_verify_counts_what_is_damaged(store: Store) -> None:
    filled(store, range(10))
    flip(shard_file(store), -5)

    ((_, entries, damaged),) = Cache(store).verify()

    assert (entries, damaged) == (10, 1)


def test_a_cache_of_many_small_shards_is_searched_in_few_runs(store: Store) -> None:
    cache = Cache(store, shard_bytes=1)

    for number in range(64):
        cache.put(origin(number), tensors(number))
    cache.put(origin(5), tensors(99))

    assert len(cache.contents._runs) <= 7
    assert len(cache.contents.indexes) == 65
    assert same(cache.get(origin(5).key), tensors(99))
    assert all(same(cache.get(origin(number).key), tensors(number)) for number in range(64) if number != 5)
    assert cache.lacking([origin(number).key for number in range(70)]).tolist() == [64, 65, 66, 67, 68, 69]
    assert [index.name for index in cache.contents.indexes] == list(cache._known)
