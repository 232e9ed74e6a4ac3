import subprocess
import sys

import pytest

from st.errors import OutputUnwritable, ProblemsFound
from st.train.saving.output import OutputFolder

SETTINGS = {"steps": 10, "seed": 1, "optimizer": {"kind": "adamw", "lr": 1e-4}, "validation": {"every": 5}}


@pytest.fixture
def folder(tmp_path):
    folder = OutputFolder(tmp_path / "run")
    folder.claim()
    yield folder
    folder.release()


def test_a_second_run_in_one_folder_is_refused(folder):
    program = "import sys; from pathlib import Path; from st.train.saving.output import OutputFolder\n"
    program += "OutputFolder(Path(sys.argv[1])).claim()"

    second = subprocess.run(
        [sys.executable, "-c", program, str(folder.directory)], capture_output=True, text=True, check=False
    )

    assert second.returncode == 1
    assert "another run is writing there" in second.stderr


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputUnwritable, match="cannot be written"):
        OutputFolder(tmp_path / "file" / "run").claim()


def test_a_saved_run_is_not_overwritten(folder):
    folder.open(SETTINGS, resume=False, accepted=())
    folder.vault.write(7, lambda directory: None, {})

    with pytest.raises(OutputUnwritable, match="saved at step 7") as refused:
        folder.open(SETTINGS, resume=False, accepted=())

    assert "--resume" in refused.value.fix


def test_settings_that_alter_nothing_may_change_at_a_resume(folder):
    folder.open(SETTINGS, resume=False, accepted=())
    folder.vault.write(7, lambda directory: None, {})

    lines = folder.open({**SETTINGS, "steps": 20, "validation": {"every": 1}}, resume=True, accepted=())

    assert lines == [
        "steps changed from 10 to 20 at this resume",
        "validation.every changed from 5 to 1 at this resume",
    ]


def test_other_settings_are_refused_by_name_until_accepted(folder):
    changed = {**SETTINGS, "seed": 2, "optimizer": {"kind": "adamw", "lr": 3e-4}}
    folder.open(SETTINGS, resume=False, accepted=())
    folder.vault.write(7, lambda directory: None, {})

    with pytest.raises(ProblemsFound) as refused:
        folder.open(changed, resume=True, accepted=["seed"])
    folder.open(changed, resume=True, accepted=["seed", "optimizer.lr"])

    assert [problem.where for problem in refused.value.problems] == ["optimizer.lr"]
    assert "--accept optimizer.lr" in str(refused.value)


def test_accepted_settings_are_on_record_only_once_the_run_goes_on_with_them(folder):
    changed = {**SETTINGS, "seed": 2}
    folder.open(SETTINGS, resume=False, accepted=())

    folder.open(changed, resume=True, accepted=["seed"])
    before = folder.settings()
    folder.record(changed)

    assert before == SETTINGS
    assert folder.settings() == changed


def test_what_a_killed_process_left_half_written_is_gone(tmp_path):
    directory = tmp_path / "run"
    leftovers = [".run.json.partial", ".report.html.part", "checkpoints/.best.json.partial", ".model.partial/a.bin"]
    for name in leftovers:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("half")
    (directory / "run.json").write_text("{}")

    folder = OutputFolder(directory)
    folder.claim()
    folder.release()

    left = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    assert left == [".lock", "run.json"]
