"""Validation prompts in every form they are written in."""

from pathlib import Path

import pytest

from st.errors import StError
from st.report.rendering.asked import ValidationOptions, prompts_to_encode
from st.report.rendering.prompts import parse_line, parse_size, read_library


def test_a_line_with_flags_is_read_as_other_trainers_write_it() -> None:
    prompt = parse_line("a cat, sitting --w 512 --h 768 --s 20 --d 7 --g 4.5 --n blurry, cropped")

    assert prompt.prompt == "a cat, sitting"
    assert (prompt.width, prompt.height, prompt.steps, prompt.seed) == (512, 768, 20, 7)
    assert (prompt.guidance, prompt.negative) == (4.5, "blurry, cropped")


def test_a_dash_inside_a_prompt_is_no_flag() -> None:
    assert parse_line("a well-known cat -- and a dog--house").prompt == "a well-known cat -- and a dog--house"


@pytest.mark.parametrize(
    ("line", "what"), [("a cat --x 3", "--x"), ("a cat --w wide", "wide"), ("a cat --w 0", "width")]
)
def test_a_bad_flag_is_an_error_that_names_it(line: str, what: str) -> None:
    with pytest.raises(StError, match=what):
        parse_line(line)


def test_a_text_library_has_a_prompt_per_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# two of them\na cat --d 1\n\n  a dog\n")

    assert [(p.prompt, p.seed) for p in read_library(file)] == [("a cat", 1), ("a dog", None)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.toml", 'cat = "a cat"\n[dog]\nprompt = "a dog"\nseed = 3\n'),
        ("p.json", '{"cat": "a cat", "dog": {"caption": "a dog", "seed": 3}}'),
        ("p.json", '[{"name": "cat", "prompt": "a cat"}, {"name": "dog", "prompt": "a dog", "seed": 3}]'),
    ],
)
def test_a_library_names_its_prompts(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    found = read_library(tmp_path / name)

    assert [(p.name, p.prompt, p.seed) for p in found] == [("cat", "a cat", None), ("dog", "a dog", 3)]


@pytest.mark.parametrize(
    ("name", "text"), [("p.json", "{"), ("p.json", '{"cat": 3}'), ("p.toml", '[cat]\nprompt = "a"\nsed = 1')]
)
def test_a_library_that_cannot_be_used_is_an_error_with_its_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(StError, match=name):
        read_library(tmp_path / name)


def test_a_missing_library_is_an_error_with_its_name() -> None:
    with pytest.raises(StError, match="nowhere"):
        read_library(Path("nowhere.txt"))


def test_sizes_are_width_by_height() -> None:
    assert parse_size("1024") == (1024, 1024)
    assert parse_size("512x768") == (768, 512)
    with pytest.raises(ValueError, match="big"):
        parse_size("big")


def test_every_prompt_is_rendered_at_every_size_but_for_its_own() -> None:
    options = ValidationOptions(
        every=10, prompts=("a cat", "a dog --w 64 --h 32"), resolutions=("128", "64x128"), seed=5, guidance=1.0
    )

    found = options.wanted()

    assert [(prompt.name, prompt.size) for prompt in found] == [
        ("a-cat", (128, 128)),
        ("a-cat", (128, 64)),
        ("a-dog", (32, 64)),
    ]
    assert {prompt.seed for prompt in found} == {5}


def test_equal_prompts_get_names_of_their_own() -> None:
    names = [prompt.name for prompt in ValidationOptions(prompts=("a cat", "a cat", "A cat!")).wanted()]

    assert names == ["a-cat", "a-cat-2", "a-cat-3"]


def test_negatives_are_encoded_only_where_guidance_asks_for_them() -> None:
    with_guidance = ValidationOptions(every=1, prompts=("a cat", "a dog --n bad"), negative="ugly", guidance=4.0)
    without = ValidationOptions(every=1, prompts=("a cat",), negative="ugly", guidance=1.0)

    assert [words.caption for words in prompts_to_encode(with_guidance)] == ["a cat", "ugly", "a dog", "bad"]
    assert [words.caption for words in prompts_to_encode(without)] == ["a cat"]
    assert prompts_to_encode(ValidationOptions(prompts=("a cat",))) == []
