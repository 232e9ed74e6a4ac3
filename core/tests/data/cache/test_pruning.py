from __future__ import annotations

import os
from pathlib import Path

import torch

from st.data.cache.cache import Cache, Origin
from st.data.cache.pruning import prune, usage
from st.data.store.store import Store


def origin(number: int) -> Origin:
    return Origin("vae", "1", {"bytes": str(number)}, f"{number}.png")


def filled(store: Store, numbers: range) -> None:
    cache = Cache(store)
    for number in numbers:
        cache.put(origin(number), {"x": torch.full((10,), float(number))})
    cache.flush()


def shards(store: Store) -> list[Path]:
    return sorted((Path(store.root) / "shards").iterdir())


def test_entries_stored_twice_are_kept_once(store: Store) -> None:
    filled(store, range(6))
    filled(store, range(4, 10))

    pruned = prune(Cache(store), None, now=0.0)

    after = Cache(store)
    found = [after.get(origin(number).key) for number in range(10)]
    assert pruned.entries == {"stored twice": 2}
    assert pruned.size_bytes == 80
    assert len(after) == 10
    assert [one and one["x"][0].item() for one in found] == [float(number) for number in range(10)]
    assert usage(after) == {("vae", "1"): (10, 400)}


def test_a_dry_run_changes_nothing(store: Store) -> None:
    filled(store, range(6))
    filled(store, range(6))
    before = shards(store)

    pruned = prune(Cache(store), None, now=0.0, dry_run=True)

    assert pruned.entries == {"stored twice": 6}
    assert shards(store) == before


def test_only_what_is_wanted_stays(store: Store) -> None:
    filled(store, range(6))

    pruned = prune(Cache(store), {origin(1).key, origin(2).key}.__contains__, now=0.0)

    after = Cache(store)
    assert pruned.entries == {"not used by this run file": 4}
    assert [number for number in range(6) if origin(number).key in after] == [1, 2]
    assert len(shards(store)) == 1


def test_an_old_shard_without_an_index_goes_and_a_young_one_stays(store: Store) -> None:
    filled(store, range(3))
    for name, age in (("old", 10_000.0), ("young", 100.0)):
        store.write(f"shards/{name}.safetensors", b"x" * 50)
        os.utime(Path(store.root) / f"shards/{name}.safetensors", (1e6 - age, 1e6 - age))

    pruned = prune(Cache(store), None, now=1e6)

    assert pruned.entries == {"in a shard without an index": 1}
    assert not (Path(store.root) / "shards/old.safetensors").exists()
    assert (Path(store.root) / "shards/young.safetensors").exists()
