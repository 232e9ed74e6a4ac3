from typing import Any

import pytest

from st.data.dataset import DatasetOptions, ShuffleOptions
from st.data.source import captions
from st.data.source.captions import CaptionRecipe, lines, parsed, read, shuffled, split
from st.errors import SampleUnreadable


def recipe(**options: object) -> CaptionRecipe:
    return CaptionRecipe.of(DatasetOptions.model_validate({"url": "x", **options}), seed=7)


def test_a_byte_order_mark_is_no_part_of_a_caption() -> None:
    assert captions.read(b"\xef\xbb\xbfa cat", "a.jpg") == "a cat"


def test_a_caption_that_is_not_utf8_is_named_with_its_byte() -> None:
    with pytest.raises(SampleUnreadable) as caught:
        captions.read("a caf\xe9".encode("latin-1"), "a.jpg")

    assert str(caught.value) == "'a.jpg' cannot be used: its caption is not UTF-8 (byte 0xe9 at position 5)"


def test_each_line_that_is_not_empty_is_a_caption() -> None:
    assert captions.lines(" a cat \n\n\r\na dog\n") == ("a cat", "a dog")


def test_a_file_name_spells_a_caption() -> None:
    assert captions.from_filename("folder.x/a_red_cat.v2.jpg") == "a red cat.v2"


def test_captions_are_trained_on_as_they_are_read_by_default() -> None:
    assert recipe().is_plain
    assert recipe().apply(("b", "a")) == ("b", "a")
    assert recipe().apply(()) == ()


def test_prefix_and_suffix_are_added_as_written() -> None:
    assert recipe(caption_prefix="sks, ", caption_suffix=".").apply(("a cat",)) == ("sks, a cat.",)


def test_instance_prompts_replace_captions() -> None:
    assert recipe(instance_prompt=["a sks cat", "sks"]).apply(("something",)) == ("a sks cat", "sks")


def test_a_missing_caption_is_empty_where_asked() -> None:
    assert recipe(missing_caption="empty").apply(()) == ("",)


def test_shuffled_variants_keep_the_first_parts_and_every_part() -> None:
    options = ShuffleOptions(count=20, keep=1)

    variants = captions.shuffled("sks, a, b, c", options, seed=1)

    assert variants[0] == "sks, a, b, c"
    assert len(set(variants)) == len(variants) == 6
    assert all(sorted(variant.split(", ")) == ["a", "b", "c", "sks"] for variant in variants)
    assert all(variant.startswith("sks, ") for variant in variants)


def test_shuffled_variants_depend_on_seed_and_caption_alone() -> None:
    options = ShuffleOptions(count=3, include_original=False, split_on="space")

    first = captions.shuffled("a b c d e f g", options, seed=1)

    assert first == captions.shuffled("a b c d e f g", options, seed=1)
    assert first != captions.shuffled("a b c d e f g", options, seed=2)
    assert "a b c d e f g" not in first


def test_a_caption_with_one_part_that_can_move_is_left_alone() -> None:
    assert captions.shuffled("sks,  a cat", ShuffleOptions(count=4, keep=1), seed=1) == ("sks,  a cat",)


def test_the_prefix_is_added_after_shuffling() -> None:
    made = recipe(caption_prefix="sks, ", shuffle={"count": 5}).apply(("a, b, c",))

    assert all(caption.startswith("sks, ") for caption in made)
    assert len(made) > 1


def test_a_data_set_s_own_shuffle_seed_takes_precedence() -> None:
    assert recipe(shuffle={"seed": 3}).seed == 3
    assert recipe(shuffle={}).seed == 7


@pytest.mark.parametrize(
    ("caption", "split_on", "parts"),
    [
        ("1,000 cats, a dog,2 birds", "comma", {"1,000 cats", "a dog", "2 birds"}),
        ("a cat, (long fur, grey:1.2), a dog", "comma", {"a cat", "(long fur, grey:1.2)", "a dog"}),
        ("a (b, c", "comma", {"a (b", "c"}),
        ("It is 1.5 m long. It sleeps.", "period", {"It is 1.5 m long", "It sleeps"}),
        ("a (very long) cat", "space", {"a", "(very long)", "cat"}),
    ],
)
def test_parts_are_not_torn(caption: str, split_on: Any, parts: set[str]) -> None:
    assert {part.strip() for part in split(caption, split_on) if part.strip()} == parts


def test_a_final_stop_stays_final() -> None:
    options = ShuffleOptions.model_validate({"count": 5, "split_on": "period", "include_original": False})

    made = shuffled("It sits. It is 1.5 m long. It sleeps.", options, 0)

    assert all(text.endswith(".") and text.count(".") == 4 for text in made)


def test_lines_end_where_lines_end() -> None:
    assert lines("one\u2028still one\x0c\r\ntwo\rthree\n\n") == ("one\u2028still one", "two", "three")


@pytest.mark.parametrize("data", ["a cat".encode("utf-16-le"), b"a\0cat"])
def test_a_caption_with_zeros_is_no_text(data: bytes) -> None:
    with pytest.raises(SampleUnreadable, match="is it UTF-16"):
        read(data, "a.png")


@pytest.mark.parametrize("text", ['{"text": "\\ud800"}', "[" * 100_000, '{"text": ' + "9" * 5000 + "}", "{"])
def test_json_that_nobody_can_use_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parsed(text)
