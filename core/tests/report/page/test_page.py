"""The page of a run: whole, in one file, and without steps that were taken again."""

import math
import random
import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from st.report.log.events import EventLog, read_events
from st.report.page.columns import Columns
from st.report.page.curves import Series, chart, smooth, thin
from st.report.page.page import RunPage
from st.report.page.page_samples import Thumbnails
from st.report.page.story import Following, tell

VOID = {"meta", "img", "br", "input", "circle", "line", "polyline"}


class Balanced(HTMLParser):
    """Fails where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def log_steps(log: EventLog, first: int, last: int, loss: float = 0.5) -> None:
    metrics = {"loss": loss, "lr": 1e-4, "seconds/step": 1.0, "seconds/data": 0.25, "seconds/compute": 0.5}
    steps = last - first + 1
    log.write("step", step=last, steps=steps, metrics=metrics, losses=[loss] * steps, paused={"save": 2.0})


def a_run(directory: Path) -> None:
    """Trains to step 30, stops, goes on from 20, fails at 40."""
    log = EventLog(directory / "events.jsonl", clock=lambda: 1000.0)
    config = {"plugins": ["tiny"], "adapter": {"kind": "lora", "rank": 4}, "dataset": [{"url": "file:a<b"}]}
    log.write("open", name="my <run>", directory=str(directory), config=config, versions={"torch": "2.13"})
    log.write("note", kind="dataset", dataset="photos", samples=7, buckets={"64x64": 5, "64x32": 2}, text="")
    log.write("dropped", dataset="photos", key="small.png", reason="too small: 3x3")
    log.write("dropped_total", dataset="photos", reason="too small", count=4)
    log.write("note", kind="caption", dataset="photos", key="a.png", caption="long words", tokens=99, read=77, text="")
    log.write("train", step=0, total=40)
    for first in (1, 11, 21):
        log_steps(log, first, first + 9, loss=9.0 if first == 21 else 0.5)
    log.write("metrics", step=20, metrics={"eval/held": 0.4, **{f"eval/held/q{n}": n / 10 for n in range(1, 5)}})
    log.write("metrics", step=30, metrics={"eval/held": 7.0})
    log.write("train", step=20, total=40)
    log_steps(log, 21, 30, loss=0.25)
    log.write("note", kind="warning", text="something to look at", step=25)
    picture = directory / "samples" / "step-00000020" / "cat-8x8.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(picture)
    log.write("pictures", step=20, pictures=[{"path": str(picture), "prompt": "a cat", "label": "cat 8x8"}])
    log.write("pictures", step=20, pictures=[{"path": str(picture), "prompt": "a cat", "label": "cat 8x8 base"}])
    log.write("finish", step=30, outcome="failed", why="the loss of step 31 is nan")
    log.close()


def test_the_page_shows_all_that_it_must(tmp_path: Path) -> None:
    a_run(tmp_path)

    text = RunPage(tmp_path).write().read_text()

    wanted = (
        "my &lt;run&gt;", "failed", "the loss of step 31 is nan", "Learning rate", "Held-out loss", "most noise",
        "base model", "step 20", "data:image/jpeg;base64,", "forward and backward", "64x32", "too small", "small.png",
        "and 3 more", "long words", "something to look at", "rank", "torch", "2.13", "file:a&lt;b",
    )  # fmt: skip
    assert [what for what in wanted if what not in text] == []


def test_the_page_is_well_formed_and_needs_no_network(tmp_path: Path) -> None:
    a_run(tmp_path)

    text = RunPage(tmp_path).write().read_text()

    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"(?!data:)", text)


def test_the_page_of_a_run_that_has_just_begun_can_be_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("open", name="new", directory="", config={}, versions={})
    log.close()

    assert "running" in RunPage(tmp_path).write().read_text()


def test_steps_that_were_taken_again_count_once(tmp_path: Path) -> None:
    a_run(tmp_path)

    story = tell(read_events(tmp_path / "events.jsonl"))

    assert story.losses.curve("loss").tolist() == [[step, 0.5 if step <= 20 else 0.25] for step in range(1, 31)]
    assert story.metrics["eval/held"] == [(20, 0.4)]
    assert story.resumes == [20]


def test_a_resume_that_was_not_logged_is_seen_in_the_steps(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for first, last in ((1, 10), (11, 20), (6, 15)):
        log_steps(log, first, last, loss=float(first))
    log.close()

    story = tell(read_events(log.path))

    assert story.reads.curve("loss").tolist() == [[15, 6.0]]
    assert [step for step, _ in story.losses.curve("loss").tolist()] == [*range(1, 6), *range(6, 16)]


def test_time_between_a_stop_and_a_resume_does_not_count(tmp_path: Path) -> None:
    now = [0.0]
    log = EventLog(tmp_path / "events.jsonl", clock=lambda: now[0])
    for begin in (100.0, 5000.0):
        now[0] = begin
        log.write("open", name="x")
        now[0] = begin + 10
        log.write("note", text="working")
    log.close()

    assert tell(read_events(log.path)).seconds == 20.0


def test_a_page_that_is_written_again_is_the_page_of_the_whole_log(tmp_path: Path) -> None:
    a_run(tmp_path)
    log = tmp_path / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"")
    page = RunPage(tmp_path)

    for line in lines:
        for part in (line[:9], line[9:]):
            with log.open("ab") as file:
                file.write(part)
            written = page.write().read_text()

    assert written == RunPage(tmp_path).write().read_text()


def test_what_was_read_of_a_log_is_not_read_again(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    following = Following(log.path)
    log_steps(log, 1, 10)
    assert len(following.so_far().losses) == 10
    whole = log.path.read_bytes()
    log.path.write_bytes(b"x" * (len(whole) - 1) + b"\n")

    log_steps(log, 11, 20)
    log.close()

    assert following.so_far().losses.curve("loss")[:, 0].tolist() == list(range(1, 21))


def test_a_log_in_the_place_of_another_is_told_from_its_beginning(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    following = Following(log.path)
    log_steps(log, 1, 10)
    following.so_far()
    other = EventLog(tmp_path / "other.jsonl")
    log_steps(other, 1, 30)

    log.close()
    other.close()
    other.path.replace(log.path)

    assert len(following.so_far().losses) == 30


def test_a_metric_that_comes_and_goes_is_drawn_where_it_is_known() -> None:
    columns = Columns()
    for step, values in enumerate(({"a": 1.0}, {"b": 2.0}, {"a": None, "b": 3.0}, {"a": 4.0}), start=1):
        columns.add(step, values)

    assert columns.curve("a").tolist() == [[1, 1.0], [4, 4.0]] and columns.curve("b").tolist() == [[2, 2.0], [3, 3.0]]
    assert (columns.last("a"), columns.last("b"), columns.last("c")) == (4.0, None, None)
    columns.cut(1)
    assert (columns.names(), columns.last_step, columns.last("a")) == (["a"], 1, 1.0)


def test_thinning_keeps_the_highest_and_the_lowest_value() -> None:
    points = [(float(x), 1.0) for x in range(10_000)]
    points[5_003] = (5_003.0, 99.0)
    points[7_001] = (7_001.0, -99.0)

    thinned = thin(points)

    assert len(thinned) <= 720
    assert {max(thinned, key=lambda p: p[1]), min(thinned, key=lambda p: p[1])} == {(5_003.0, 99.0), (7_001.0, -99.0)}


def test_smoothing_a_constant_gives_that_constant_from_the_first_step_on() -> None:
    smoothed = smooth([(float(x), 3.0) for x in range(50)], 10)

    assert [y for _, y in smoothed] == pytest.approx([3.0] * 50)  # sums of powers of a half round


def test_smoothing_over_gaps_is_the_plain_recurrence() -> None:
    draws = random.Random(0)
    steps = sorted(draws.sample(range(9000), 300))
    points = [(float(step), draws.random()) for step in steps]
    weight = total = before = 0.0
    expected = []
    for x, y in points:
        keep = 0.5 ** ((x - before) / 5)
        weight, total, before = weight * keep + 1, total * keep + y, x
        expected.append(total / weight)

    # Over 9,000 steps the weights fall by a power of two of 1,800, which no number holds at once.
    assert smooth(points, 5)[:, 1] == pytest.approx(expected, rel=1e-12)


def test_values_that_are_not_finite_are_left_out_of_a_curve() -> None:
    drawing = chart([Series("loss", [(1, 1.0), (2, math.nan), (3, 2.0)])], width=300, height=100)

    assert "nan" not in drawing
    assert chart([Series("loss", [(1, math.nan)])], width=300, height=100).startswith("<p")


def test_a_curve_with_a_zero_has_no_logarithmic_drawing() -> None:
    assert chart([Series("a", [(1, 0.0), (2, 1.0)])], width=300, height=100, log=True).count("<svg") == 1
    assert chart([Series("a", [(1, 0.5), (2, 1.0)])], width=300, height=100, log=True).count("<svg") == 2


def test_a_clip_plays_where_it_lies_and_shows_its_first_frame_until_then(tmp_path: Path) -> None:
    import torch

    from st.report.files.picture_files import save_picture
    from st.report.page.page_samples import samples_section
    from st.report.page.story import Shown, Story

    folder = tmp_path / "samples" / "step-00000002"
    clip = torch.stack([torch.full((3, 16, 32), shade) for shade in (1.0, 0.0, 0.0)], dim=1)
    path = save_picture(clip, folder / "cat", {}, frames_per_second=8)
    (folder / "gone.mp4").write_bytes(b"not a film")
    story = Story(pictures=[Shown(2, str(path), "a cat", "cat"), Shown(2, str(folder / "none.mp4"), "a dog", "dog")])
    thumbnails = Thumbnails()

    section = samples_section(story, tmp_path, thumbnails)

    assert section.count("<video autoplay loop muted") == 1
    assert 'src="samples/step-00000002/cat.mp4"' in section and "file is gone" in section
    data = thumbnails.of(path, 16).partition(",")[2]
    with Image.open(BytesIO(b64decode(data))) as poster:
        assert poster.size == (16, 8) and min(poster.convert("L").getextrema()) > 240
    assert thumbnails.of(folder / "gone.mp4", 16) == ""


def test_a_thumbnail_is_made_once_and_gone_files_have_none(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    thumbnails = Thumbnails()

    assert thumbnails.of(tmp_path / "a.png", 16) is thumbnails.of(tmp_path / "a.png", 16)
    assert thumbnails.of(tmp_path / "b.png", 16) == thumbnails.of(tmp_path / "c.png", 16) == ""
