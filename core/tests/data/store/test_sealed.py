from __future__ import annotations

import pyarrow as pa
import pytest

from st.data.store.sealed import seal, unseal

TABLE = pa.table({"key": ["a.png", "b.png"], "caption": ["a cat", "a dog"]}).replace_schema_metadata({"format": "2"})


def test_a_table_comes_back_as_it_was_sealed() -> None:
    assert unseal(seal(TABLE)).equals(TABLE, check_metadata=True)
    assert unseal(seal(TABLE), ["caption"]).column_names == ["caption"]


def test_no_flipped_bit_gets_through() -> None:
    data = seal(TABLE)

    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"not those that were written|no sealed table"):
            unseal(bytes(flipped))


@pytest.mark.parametrize("length", [0, 5, 20, 100])
def test_a_table_that_is_cut_short_does_not_get_through(length: int) -> None:
    with pytest.raises(ValueError, match=r"not those that were written|no sealed table"):
        unseal(seal(TABLE)[:length])
