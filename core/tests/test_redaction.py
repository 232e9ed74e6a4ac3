"""What the environment or an address holds in secret is not written down."""

import pytest

from st.redaction import Redaction, holds_credentials, without_credentials

HIDDEN = Redaction.of({"KEY": "canary-1", "LONGER": "canary-123", "SHORT": "cat"})


def test_values_become_the_names_of_their_variables_wherever_they_stand():
    data = {"a": ["see canary-1!", {"canary-1": 3}], "b": ("x", 1.5, None, True)}

    assert HIDDEN.data(data) == {"a": ["see {env:KEY}!", {"{env:KEY}": 3}], "b": ["x", 1.5, None, True]}


def test_a_value_that_begins_another_does_not_tear_it():
    assert HIDDEN.text("canary-123") == "{env:LONGER}"


def test_words_are_no_secrets():
    assert HIDDEN.text("a cat") == "a cat"


def test_places_of_files_stay_readable_for_programs():
    assert HIDDEN.data({"path": "/canary-1/x.png"}) == {"path": "/canary-1/x.png"}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://AKIA:se/cr+et@bucket/x", "s3://***@bucket/x"),
        ("hf://hf_abcdefgh@owner/name", "hf://***@owner/name"),
        ("https://host/x?token=abc&b=1", "https://host/x?token=***&b=1"),
        ("https://host/x?X-Amz-Signature=abc", "https://host/x?X-Amz-Signature=***"),
        ("see 's3://a:b@c' and s3://d", "see 's3://***@c' and s3://d"),
    ],
)
def test_credentials_of_addresses_are_starred(address, shown):
    assert holds_credentials(address)
    assert without_credentials(address) == shown


@pytest.mark.parametrize(
    "address", ["hf://owner/name@main", "s3://bucket/a:b", "photos/cat@home", "https://host/x?page=1"]
)
def test_addresses_without_credentials_are_left_alone(address):
    assert not holds_credentials(address)
