"""What is said of samples whose sizes and rates are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from st.data.dataset import DatasetConfig, DatasetOptions
from st.data.sets.prepare import prepare_set
from st.data.sets.remarks import report_rates
from st.data.shape.rule import GeometryRule
from st.data.source.folder import FolderBackend, FolderOptions
from st.report.report import Report
from st.testing.media import write_clip

RULE = GeometryRule(multiple=16, frames_modulus=4, frames_remainder=1)


def said(folder: Path, studio: Any, **options: float) -> list[str]:
    """Of a folder of clips, by a model that knows 16 frames per second."""
    backend = FolderBackend(str(folder), FolderOptions.model_validate({"media": "video", "caption": "none"}))
    given = {
        "url": str(folder),
        "name": "x",
        "resolution": 64,
        "align": 16,
        "missing_caption": "empty",
        "num_frames": 5,
    }
    config = DatasetConfig(DatasetOptions.model_validate(given | options), backend.options, "file")
    one = prepare_set(config, backend, RULE, seed=0, report=Report.silent())
    report, codec = studio.Told(), studio.PoolingCodec(studio.Diary())
    codec.frames_per_second = 16.0
    report_rates([one], codec, report)
    notes: list[str] = report.notes
    return notes


def test_clips_of_another_rate_than_the_models_are_named_where_none_is_asked_for(tmp_path: Path, studio: Any) -> None:
    write_clip(tmp_path / "a.mp4", 25, size=(64, 64), rate=10)
    write_clip(tmp_path / "b.mp4", 25, size=(64, 64), rate=16)

    (sentence,) = said(tmp_path, studio)

    assert sentence.startswith("data set 'x': 1 clips have another rate than the 16 frames per second of the model, ")
    assert "'a.mp4' 10: " in sentence and "set fps = 16" in sentence
    assert said(tmp_path, studio, fps=16) == []
