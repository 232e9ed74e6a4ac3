"""``st tiny`` writes what the family loads."""

from collections.abc import Callable
from pathlib import Path

import torch

from st.testing import CliResult, TinyFamily
from st.testing.runs import TINY

NO_FAMILY = '''
import st


class Mine:
    """Does nothing."""

    Options = st.Options

    def __init__(self, options):
        pass
'''


def test_the_checkpoint_loads(tmp_path: Path, st_cli: Callable[..., CliResult]) -> None:
    result = st_cli("tiny", f"{TINY}:TinyFamily", tmp_path / "made")
    family = TinyFamily(TinyFamily.Options(checkpoint=str(tmp_path / "made")))

    assert result.code == 0
    assert sum(p.numel() for p in family.load_denoiser(torch.device("cpu"), torch.float32).parameters()) > 0


def test_an_unknown_family_is_one_clear_error(tmp_path: Path, st_cli: Callable[..., CliResult]) -> None:
    result = st_cli("tiny", "nothing-of-the-kind", tmp_path / "made")

    assert result.code == 2
    assert result.err.startswith("Error: no plugin is named 'nothing-of-the-kind'.")


def test_a_class_of_another_kind_is_refused(tmp_path: Path, st_cli: Callable[..., CliResult]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(NO_FAMILY)

    result = st_cli("tiny", f"{file}:Mine", tmp_path / "made")

    assert result.code == 1
    assert "is not a model family" in result.err


def test_nothing_is_overwritten(tmp_path: Path, st_cli: Callable[..., CliResult]) -> None:
    result = st_cli("tiny", f"{TINY}:TinyFamily", tmp_path)
    again = st_cli("tiny", f"{TINY}:TinyFamily", tmp_path)

    assert (result.code, again.code) == (0, 1)
    assert "exists already" in again.err
