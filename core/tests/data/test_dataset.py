import pytest
from pydantic import ValidationError

from st.data.dataset import DatasetOptions


@pytest.mark.parametrize(
    ("url", "name"),
    [("file:photos", "photos"), ("/data/photos/", "photos"), ("s3://bucket/a/b", "b"), ("photos", "photos")],
)
def test_a_data_set_is_named_after_the_last_part_of_its_url(url: str, name: str) -> None:
    assert DatasetOptions(url=url).label == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution_type": "area", "resolution": 1024}, "resolution = 1024 is in megapixels here"),
        ({"resolution_type": "area", "resolution": 1, "minimum_size": 512}, "minimum_size = 512 is in megapixels here"),
        ({"resolution": 1}, "resolution = 1 is in pixels here"),
        ({"resolution": 512.5}, "must be a whole number of pixels"),
        ({"maximum_size": 2048}, "maximum_size and downsample_to go together"),
        ({"crop": True, "maximum_size": 2048, "downsample_to": 512}, "downsample_to = 512 is smaller than resolution"),
        ({"maximum_size": 2048, "downsample_to": 1536}, "has no effect without crop"),
        ({"crop": True, "crop_aspect": "closest"}, "needs crop_aspects"),
        ({"crop_aspects": [1.0]}, "crop_aspects has no effect"),
        ({"min_aspect": 2, "max_aspect": 1}, "max_aspect = 1 is below min_aspect = 2"),
    ],
)
def test_sizes_that_contradict_their_unit_or_each_other_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetOptions.model_validate({"url": "x", **settings})


def test_a_boolean_written_as_text_is_read_as_a_boolean() -> None:
    assert DatasetOptions.model_validate({"url": "x", "crop": "False"}).crop is False


def test_one_instance_prompt_may_be_written_without_a_list() -> None:
    assert DatasetOptions(url="x", instance_prompt="a cat").instance_prompts == ("a cat",)
    assert DatasetOptions(url="x", instance_prompt=("a cat", "a dog")).instance_prompts == ("a cat", "a dog")
    assert DatasetOptions(url="x").instance_prompts == ()
