"""What each kind of media is read with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from st.installing import install_command

CODE = """
import sys

sys.modules[{library!r}] = None
from st.data.media.media_reader import reader_of
from st.errors import StError

reader_of("image")
try:
    reader_of({kind!r})
except StError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kind", "library", "extra"), [("video", "av", "clips"), ("audio", "av", "sounds"), ("audio", "soxr", "sounds")]
)
def test_media_whose_library_is_missing_say_what_to_install(kind: str, library: str, extra: str) -> None:
    code = CODE.format(kind=kind, library=library)

    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert "which is not installed" in told
    assert install_command("st-core", extra=extra) in told
