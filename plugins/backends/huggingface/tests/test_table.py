"""What the library ``datasets`` reads, as a data set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pictures

from st.errors import DataUnusable, SampleUnreadable, StError
from st.testing import DataBackendTests
from st.testing.runs import TinyRunner
from st.testing.subjects.network import SpoilingProxy
from st_huggingface import HubTable
from st_huggingface.rows import Rows


def png(number: int, width: int = 96, height: int = 64) -> bytes:
    file = BytesIO()
    Pictures.new("RGB", (width, height), (number, 2 * number, 3 * number)).save(file, "PNG")
    return file.getvalue()


def rows(count: int = 6) -> dict[str, list[object]]:
    return {
        "image": [{"bytes": png(number, 64 + 8 * number), "path": None} for number in range(count)],
        "text": [f"caption {number}" for number in range(count)],
        "several": [[f"one {number}", "", f"two {number}"] if number else [] for number in range(count)],
        "json": [{"caption": f"inside {number}"} for number in range(count)],
        "score": [number / 10 if number else None for number in range(count)],
        "kind": [("photo", "film")[number % 2] for number in range(count)],
        "mask": [{"bytes": f"mask {number}".encode(), "path": None} if number else None for number in range(count)],
        "w": [64 + 8 * number for number in range(count)],
        "h": [64] * count,
    }


FEATURES = Features(
    {
        "image": Image(),
        "text": Value("string"),
        "several": List(Value("string")),
        "json": {"caption": Value("string")},
        "score": Value("float32"),
        "kind": Value("string"),
        "mask": Image(),
        "w": Value("int32"),
        "h": Value("int32"),
    }
)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A url of six rows that were saved to disk."""
    Dataset.from_dict(rows(), FEATURES).save_to_disk(tmp_path / "saved")
    return f"hf-datasets:{tmp_path}/saved"


def listed(backend: HubTable) -> dict[str, tuple[str, ...]]:
    return {sample.key[-1]: sample.captions for sample in backend.samples(lambda key, reason: pytest.fail(reason))}


class TestConformance(DataBackendTests):
    plugin = "hf-datasets"

    @pytest.fixture
    def backend(self, saved: str) -> HubTable:
        return HubTable(saved, HubTable.Options(mask_column="mask"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: ("caption 0",), 3: ("caption 3",)}),
        ({"caption_column": "several"}, {0: (), 3: ("one 3", "two 3")}),
        ({"caption_column": "several", "fallback_caption_column": "text"}, {0: ("caption 0",), 3: ("one 3", "two 3")}),
        ({"caption_column": "json.caption"}, {0: ("inside 0",), 3: ("inside 3",)}),
        ({"caption_column": ""}, {0: (), 3: ()}),
    ],
)
def test_captions_are_a_text_a_list_or_inside_a_struct(saved: str, options: dict, expected: dict) -> None:
    found = listed(HubTable(saved, HubTable.Options(**options)))

    assert {number: found[str(number)] for number in expected} == expected


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (["score >= 0.3"], "345"),
        (["score < 0.3"], "12"),
        (["kind == 'film'", "w != 88"], "15"),
        (["kind in ['photo', 'drawing']"], "024"),
        (["json.caption == 'inside 4'"], "4"),
    ],
)
def test_filters_keep_rows_and_their_keys(saved: str, filters: list[str], kept: str) -> None:
    assert "".join(listed(HubTable(saved, HubTable.Options(filters=filters)))) == kept


def test_sizes_may_come_from_columns(saved: str) -> None:
    opened, told = (HubTable(saved, HubTable.Options(**o)) for o in ({}, {"width_column": "w", "height_column": "h"}))

    assert list(opened.samples(lambda *_: None)) == list(told.samples(lambda *_: None))


def test_masks_are_read_by_their_own_keys(saved: str) -> None:
    backend = HubTable(saved, HubTable.Options(mask_column="mask"))
    samples = list(backend.samples(lambda *_: None))

    assert samples[0].extras == {}
    assert backend.read(samples[5].extras["mask"]) == b"mask 5"


@pytest.mark.parametrize("key", ["", "x", "00000006", "-1", "mask:00000001", ":00000001"])
def test_rows_that_do_not_exist_are_named(saved: str, key: str) -> None:
    with pytest.raises(SampleUnreadable, match="no such row"):
        HubTable(saved, HubTable.Options()).read(key)


def test_pictures_may_be_bytes_or_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    features = Features({"image": Image(), "text": Value("string")})
    paths = {"image": [str(tmp_path / "a.png"), str(tmp_path / "gone.png")], "text": ["", ""]}
    in_bytes = Rows(Dataset.from_dict({"image": [png(1), png(2)], "text": ["", ""]}), "1", {}, HubTable.Options())
    in_files = Rows(Dataset.from_dict(paths, features), "1", {}, HubTable.Options())
    named: list[str] = []

    table = in_files.listing(None, lambda key, reason: named.append(key))

    assert in_bytes.read("00000001") == png(2)
    assert table["width"].to_pylist() == [96] and in_files.read("00000000") == png(1)
    assert named == ["00000001"]


def test_rows_that_are_known_are_not_read_again(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = HubTable(saved, HubTable.Options()).table(None, lambda *_: None).table
    fewer = first.slice(1)
    monkeypatch.setattr("st_huggingface.rows.read_header", lambda key, data, complete: pytest.fail(key))

    assert HubTable(saved, HubTable.Options()).table(first, lambda *_: None).table.equals(first)
    with pytest.raises(BaseException, match="00000000"):
        HubTable(saved, HubTable.Options()).table(fewer, lambda *_: None)


def test_a_row_that_is_no_picture_is_named(tmp_path: Path) -> None:
    Dataset.from_dict({"image": [png(1), b"nothing", None], "text": [""] * 3}).save_to_disk(tmp_path / "saved")
    named: dict[str, str] = {}

    found = list(HubTable(f"hf-datasets:{tmp_path}/saved", HubTable.Options()).samples(named.__setitem__))

    assert [sample.key for sample in found] == ["00000000"]
    assert named.keys() == {"00000001", "00000002"}


def test_a_split_of_several_is_chosen(tmp_path: Path) -> None:
    splits = {name: Dataset.from_dict(rows(count), FEATURES) for name, count in (("train", 3), ("test", 2))}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    url = f"hf-datasets:{tmp_path}/saved"

    assert len(listed(HubTable(url, HubTable.Options(split="test")))) == 2
    with pytest.raises(DataUnusable, match="no split 'dev'") as raised:
        listed(HubTable(url, HubTable.Options(split="dev")))
    assert "train, test" in raised.value.fix


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"caption_column": "caption"}, "no column 'caption'"),
        ({"image_column": "text"}, "holds no pictures"),
        ({"filters": ["size > 3"]}, "no column 'size'"),
        ({"filters": ["score > 'a'"]}, "cannot be compared"),
        ({"filters": ["score > 9"]}, "none of 6 rows"),
        ({"width_column": "w"}, "go together"),
        ({"revision": "main"}, "is a folder"),
    ],
)
def test_what_cannot_be_is_one_clear_error(saved: str, options: dict, words: str) -> None:
    with pytest.raises(DataUnusable, match=words):
        listed(HubTable(saved, HubTable.Options(**options)))


@pytest.mark.parametrize("text", ["score", "score >= ", "score = 3", "kind in 'photo'", "score > [1]"])
def test_what_is_no_condition_is_refused_before_anything_is_loaded(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition"):
        HubTable.Options(filters=[text])


@pytest.mark.parametrize("url", ["hf-datasets:./absent", "hf-datasets:name", "hf-datasets:/no/such/folder"])
def test_a_folder_that_does_not_exist_is_named(url: str) -> None:
    with pytest.raises(StError, match="does not exist"):
        listed(HubTable(url, HubTable.Options()))


def test_a_run_names_its_data_in_the_manifest(saved: str, tiny_run: TinyRunner) -> None:
    class TableRunner(TinyRunner):
        def _photos(self) -> str:
            return saved

    run = TableRunner(tiny_run.root)(text="oversubscribe = true\n", steps=1)

    manifest = json.loads((run.directory / "manifest.json").read_text())
    (facts,) = manifest["data"].values()
    assert facts["samples"] == 6 and len(facts["fingerprint"]) >= 8


PROGRAM = """
import json, sys, time
time.sleep = lambda seconds: None
from st_huggingface import HubTable
from st_huggingface.rows import Rows
from st.errors import StError
backend = HubTable("hf-datasets:someone/pictures", HubTable.Options(**json.loads(sys.argv[1])))
try:
    samples = list(backend.samples(lambda key, reason: None))
    print(json.dumps([dict(backend.facts()), [sample.captions for sample in samples]]))
except StError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.alone
def test_data_sets_of_the_hub_are_pinned_and_may_be_used_offline(hub, proxy: SpoilingProxy, tmp_path: Path) -> None:
    def run(offline: bool, **options: str) -> list:
        environment = {
            **os.environ,
            "HF_ENDPOINT": proxy.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-c", PROGRAM, json.dumps(options)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = hub.push({"data/train-00000.parquet": parquet(tmp_path, 3)})
    assert run(offline=True)[0] == "StoreUnreachable"
    assert run(offline=False) == [{"revision": first}, [[f"caption {number}"] for number in range(3)]]
    second = hub.push({"data/train-00000.parquet": parquet(tmp_path, 2)})
    assert run(offline=True) == [{"revision": first}, [[f"caption {number}"] for number in range(3)]]
    proxy.kinds, proxy.share = ("500", "503", "slow", "reset", "cut"), 0.2
    assert (spoiled := run(offline=False))[0] == "StoreUnreachable" or spoiled[0] == {"revision": second}
    proxy.share = 0.0
    assert run(offline=False) == [{"revision": second}, [[f"caption {number}"] for number in range(2)]]
    assert run(offline=True, revision=second)[0] == {"revision": second}
    refused, message = run(offline=True, revision=first)
    assert refused == "StoreUnreachable" and f"at commit {second}, and not at '{first}'" in message


def parquet(folder: Path, count: int) -> bytes:
    Dataset.from_dict(rows(count), FEATURES).to_parquet(folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()
