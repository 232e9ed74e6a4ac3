import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from st.data.dataset import DatasetConfig, DatasetOptions
from st.data.inspect.sheet import page
from st.data.sets.prepare import PreparedSet, prepare_set
from st.data.shape.rule import GeometryRule
from st.data.source.folder import FolderBackend, FolderOptions
from st.report.report import Report


def prepared(root: Path, masks: str = "", **options: object) -> PreparedSet:
    backend = FolderBackend(str(root), FolderOptions(masks=masks, missing_companion="keep"))
    settings = DatasetOptions.model_validate({"url": str(root), "resolution": 64, "align": 16, **options})
    config = DatasetConfig(settings, backend.options, "file")
    return prepare_set(config, backend, GeometryRule(), seed=1, report=Report.silent())


def picture(path: Path, size: tuple[int, int], colour: str, caption: str = "a cat") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    path.with_suffix(".txt").write_text(caption)


def pictures(text: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", text)]


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (100, 64), "red")

    text = page([prepared(tmp_path)], per_bucket=5)

    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert text.count("<figure>") == 1


def test_the_crop_is_drawn_where_it_is_cut(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (128, 64), "red")

    text = page([prepared(tmp_path, crop=True, crop_style="center")], per_bucket=5)

    assert "left:25.00%;top:0.00%;width:50.00%;height:100.00%" in text
    assert [one.size for one in pictures(text)] == [(128, 64), (64, 64)]


def test_what_a_mask_leaves_out_is_tinted(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png", (64, 64), "white")
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (0, 0, 32, 64))
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "a.png")

    _, cropped = pictures(page([prepared(tmp_path / "data", str(tmp_path / "masks"))], per_bucket=5))

    pixels = np.asarray(cropped)
    assert (pixels[:, 40:] > 245).all()
    assert (pixels[:, :24, 1] < 120).all()


def test_captions_and_names_are_escaped(tmp_path: Path) -> None:
    picture(tmp_path / "a<b.png", (64, 64), "red", caption="<script>alert(1)</script>")

    text = page([prepared(tmp_path)], per_bucket=5)

    assert "<script>" not in text and "&lt;script&gt;" in text and "a&lt;b.png" in text


def test_each_bucket_shows_at_most_so_many(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.png", (64, 64), "red")
        picture(tmp_path / f"wide{number}.png", (200, 64), "red")

    text = page([prepared(tmp_path)], per_bucket=3)

    assert text.count("<figure>") == 6
    assert text.count("4 samples, 3 of them shown") == 2


def test_a_picture_that_cannot_be_decoded_says_so_in_its_place(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (64, 64), "red")
    picture(tmp_path / "b.png", (64, 64), "red")
    one = prepared(tmp_path)
    (tmp_path / "b.png").unlink()

    text = page([one], per_bucket=3)

    assert "<p class=bad>the file is gone</p>" in text
    assert len(pictures(text)) == 2
