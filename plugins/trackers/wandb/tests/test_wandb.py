"""What a run leaves behind is what wandb would send, and nothing that happens to wandb happens to the run."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import sleep
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

import st
from st.report.files.picture_files import save_picture
from st.report.log.events import FILE, EventLog
from st.testing import TinyRunner, TrackerTests
from st.testing.runs import CliResult, TinyRun, write_photos
from st_wandb import WandB
from st_wandb.memory import FILE as MEMORY
from st_wandb.memory import Memory
from st_wandb.processes import WandbFailed, Worker

SABOTEUR = f"{Path(__file__).with_name('saboteur.py')}:Saboteur"
OFFLINE = '[wandb]\nmode = "offline"\n'
KEY = "0123456789abcdef0123456789abcdef01234567"


class TestConformance(TrackerTests):
    plugin = "wandb"
    settings = OFFLINE

    @pytest.fixture
    def tracker(self) -> WandB:
        return WandB(WandB.Options(mode="offline"))


def begun(directory: Path, step: int) -> None:
    """Training begins after a step, as the run's event log says it."""
    log = EventLog(directory / FILE)
    log.write("train", step=step, total=9, trackers=["wandb"])
    log.close()


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def holding(secret: str, directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TinyRunner:
    return TinyRunner(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def undisturbed(trained: TinyRunner) -> dict[str, bytes]:
    """The weights of four steps without a tracker."""
    return trained(steps=4).weights()


@pytest.fixture(scope="module")
def resumed(trained: TinyRunner) -> TinyRun:
    """Two steps, of which the second is lost with its checkpoint, and then four; somebody is logged in."""
    validation = 'every = 2\nsteps = 2\nprompts = [{name = "square", prompt = "a square"}]\nresolutions = ["64"]\n'
    about = 'project = "shapes"\nentity = "us"\ngroup = "flat"\ntags = ["a", "b"]\nnotes = "a try"\n'
    text = f"[checkpoint]\nevery = 1\n[validation]\n{validation}{OFFLINE}{about}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        first = trained(plugins=["wandb"], text=text, steps=2)
        shutil.rmtree(first.directory / "checkpoints" / "step-00000002")
        return trained(plugins=["wandb"], text=text, steps=4, resume=first)


def test_a_run_is_kept_with_its_settings(resumed: TinyRun, stored: Callable[[Path], Any]) -> None:
    kept = stored(resumed.directory)

    about = kept.runs()[-1]
    assert (about.project, about.entity, about.run_group, about.notes) == ("shapes", "us", "flat", "a try")
    assert (about.display_name, list(about.tags)) == (resumed.directory.name, ["a", "b"])
    assert (kept.config()["steps"], kept.config()["adapter"]["rank"]) == (4, 4)


def test_a_resumed_run_goes_on_in_the_same_run(resumed: TinyRun, stored: Callable[[Path], Any]) -> None:
    kept = stored(resumed.directory)

    assert [about.run_id for about in kept.runs()] == [json.loads((resumed.directory / MEMORY).read_text())["id"]] * 2
    assert kept.exit_codes() == [0, 0]


def test_steps_that_are_done_again_are_logged_once(resumed: TinyRun, stored: Callable[[Path], Any]) -> None:
    history, logged = stored(resumed.directory).history(), resumed.metrics()

    assert {"loss", "lr", "grad_norm", "seconds/step"} <= set(logged)
    for name, (one, two, _, three, four) in logged.items():
        assert history[name] == [(1, one), (2, two), (3, three), (4, four)]


def test_pictures_are_shown_with_their_prompts(resumed: TinyRun, stored: Callable[[Path], Any]) -> None:
    kept = stored(resumed.directory)

    shown = kept.history()["samples/square 64x64"]
    assert [step for step, _ in shown] == [2, 4]
    assert [step for step, _ in kept.history()["samples/square 64x64 base"]] == [0]
    last = shown[-1][1]
    written = resumed.directory / "samples" / "step-00000004" / "square-64x64.png"
    assert (last["_type"], last["caption"], kept.file(last)) == ("image-file", "a square", written.read_bytes())


def test_the_weights_are_those_of_a_run_without_it(resumed: TinyRun, undisturbed: dict[str, bytes]) -> None:
    assert resumed.weights() == undisturbed


def test_the_key_is_in_no_file(resumed: TinyRun) -> None:
    assert holding(KEY, resumed.directory) == []


def test_a_run_that_is_begun_anew_in_its_folder_is_another_one(tmp_path: Path) -> None:
    Memory("first", step=7).write(tmp_path)

    for step, goes_on in ((0, False), (5, True), (0, False)):
        begun(tmp_path, step)
        assert (Memory.of(tmp_path) is not None) == goes_on


def test_clips_sounds_and_numbers_that_are_none_go_in_as_they_are(
    tmp_path: Path, stored: Callable[[Path], Any]
) -> None:
    film = save_picture(torch.rand(3, 3, 6, 8), tmp_path / "film", {}, frames_per_second=10)
    with wave.open(str(tmp_path / "chord.wav"), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(range(40)))
    Image.new("RGB", (8, 6), "teal").save(tmp_path / "still.webp")
    tracker = WandB(WandB.Options(mode="offline", name="media"))
    tracker.start(st.RunInfo(name="run", directory=tmp_path, config={}))

    tracker.show(
        7,
        [
            st.Picture(film, "a film", "film 8x6", 3, 10.0),
            st.Picture(tmp_path / "chord.wav", "a chord", "chord"),
            st.Picture(tmp_path / "still.webp", "a still", "still"),
        ],
    )
    tracker.log(8, {"loss": math.nan})
    tracker.finish(st.Outcome.INTERRUPTED)

    kept = stored(tmp_path)
    assert (kept.runs()[0].display_name, kept.exit_codes()) == ("media", [255])
    assert [(step, math.isnan(loss)) for step, loss in kept.history()["loss"]] == [(8, True)]
    shown = {name: values for name, values in kept.history().items() if name.startswith("samples/")}
    assert {name: (step, medium["_type"], medium["caption"]) for name, [(step, medium)] in shown.items()} == {
        "samples/film 8x6": (7, "video-file", "a film"),
        "samples/chord": (7, "audio-file", "a chord"),
        "samples/still": (7, "image-file", "a still"),
    }
    for name, path in (("film 8x6", film), ("chord", tmp_path / "chord.wav"), ("still", tmp_path / "still.webp")):
        assert kept.file(shown[f"samples/{name}"][0][1]) == path.read_bytes()


def test_a_service_that_is_killed_changes_neither_weights_nor_outcome(
    trained: TinyRunner, undisturbed: dict[str, bytes]
) -> None:
    harmed = trained(plugins=["wandb", SABOTEUR], text=OFFLINE, steps=4)

    assert harmed.outcome == "finished"
    assert len(harmed.warnings("tracker 'wandb' is off from here: WandbFailed: ConnectionResetError: ")) == 1
    assert harmed.weights() == undisturbed
    pids = json.loads((harmed.directory / "harmed.json").read_text())
    assert pids and not any(map(is_alive, pids))


@pytest.mark.alone
def test_a_service_that_is_stopped_keeps_neither_the_run_nor_its_process(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    text = OFFLINE + '[saboteur]\nsignal = "SIGSTOP"\n'
    code = (
        "from pathlib import Path\n"
        "from st.testing import TinyRunner\n"
        f"run = TinyRunner(Path({str(tmp_path / 'harmed')!r}))\n"
        f"run(plugins=['wandb', {SABOTEUR!r}], text={text!r}, steps=4)\n"
    )

    environment = os.environ | {"ST_REPORT__TRACKER_SECONDS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stderr) == (0, "")
    harmed = TinyRun(tmp_path / "harmed" / "run-1", CliResult(0, done.stdout, done.stderr))
    assert harmed.outcome == "finished"
    assert len(harmed.warnings("tracker 'wandb' was not done 1 seconds after the run; left behind")) == 1
    assert harmed.weights() == undisturbed
    pids = json.loads((harmed.directory / "harmed.json").read_text())
    assert pids and not any(map(is_alive, pids))


@pytest.mark.parametrize(
    ("harm", "patience", "told"),
    [
        (signal.SIGSTOP, 0.2, r"^no answer for 0\.2 seconds \(wandb\.patience_seconds\)$"),
        (signal.SIGKILL, 60.0, r"^its process ended; '.*worker\.log' says more$"),
    ],
)
def test_a_process_that_does_not_answer_is_given_up_and_ended(
    harm: signal.Signals, patience: float, told: str, tmp_path: Path
) -> None:
    before = psutil.Process().children()
    worker = Worker(tmp_path, patience)
    [process] = [child for child in psutil.Process().children() if child not in before]
    process.send_signal(harm)

    with pytest.raises(WandbFailed, match=told):
        worker.ask("log", step=1, metrics={})

    assert not is_alive(process.pid)


def test_wandb_lives_in_a_process_of_its_own_that_ends_with_the_run(
    tmp_path: Path, stored: Callable[[Path], Any]
) -> None:
    code = (
        "import os, signal, sys, st, st_wandb, psutil\n"
        "from pathlib import Path\n"
        "tracker = st_wandb.WandB(st_wandb.WandB.Options(mode='offline'))\n"
        f"tracker.start(st.RunInfo('run', Path({str(tmp_path)!r}), {{}}))\n"
        "tracker.log(1, {'loss': 0.5})\n"
        "assert 'wandb' not in sys.modules\n"
        "print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 2, done.stderr
    for _ in range(600):
        if not any(map(is_alive, pids)):
            break
        sleep(0.1)
    assert not any(map(is_alive, pids))
    assert stored(tmp_path).history()["loss"] == [(1, 0.5)]
    assert stored(tmp_path).exit_codes() == [1]


class Refusing(BaseHTTPRequestHandler):
    """A server that knows nobody."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_login_that_is_refused_is_told_once_and_without_the_key(
    trained: TinyRunner, undisturbed: dict[str, bytes], refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", refusing)

    run = trained(plugins=["wandb"], steps=4)

    assert run.outcome == "finished"
    [told] = run.warnings("tracker 'wandb' is off from here: WandbFailed: ")
    assert told.endswith(f"{str(run.directory / 'wandb' / 'worker.log')!r} says more")
    assert KEY not in told + run.result.out + run.result.err
    assert holding(KEY, run.directory) == []
    assert run.weights() == undisturbed


@pytest.fixture
def planned(
    st_cli: Callable[..., CliResult], run_file: Callable[[str], Path], tmp_path: Path
) -> Callable[[str], CliResult]:
    """``st train --dry-run`` with settings of wandb."""

    def plan(settings: str) -> CliResult:
        tiny = Path(st.__file__).parent / "testing" / "subjects" / "tiny.py"
        text = f'plugins = ["{tiny}:TinyFamily", "wandb"]\noutput = "out"\nsteps = 1\n[model]\ncheckpoint = "x"\n'
        photos = write_photos(tmp_path / "photos", count=2)
        file = run_file(f'{text}[[dataset]]\nurl = "{photos}"\nresolution = 64\n[wandb]\n{settings}\n')
        return st_cli("train", file, "--dry-run")

    return plan


def test_a_missing_login_is_told_before_training(planned: Callable[[str], CliResult]) -> None:
    refused = planned("")

    assert refused.code == 2
    assert refused.err == (
        "Error: wandb.mode = 'online': there is no login for 'api.wandb.ai'.\n"
        "  Type wandb login, set WANDB_API_KEY, or set wandb.mode to 'offline'.\n"
    )


def test_no_login_is_needed_offline(planned: Callable[[str], CliResult]) -> None:
    assert planned('mode = "offline"').code == 0


@pytest.mark.parametrize("place", ["environment", "token", "netrc", "netrc of a server", "settings"])
def test_a_login_is_found_where_wandb_keeps_it(
    place: str, planned: Callable[[str], CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    settings, netrc = tmp_path / "config" / "settings", tmp_path / "netrc"
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    elif place == "token":
        monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "token.jwt")
    elif place == "netrc":
        netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    elif place == "netrc of a server":
        settings.write_text("[default]\nbase_url = https://wandb.our.lab:8080\n")
        netrc.write_text(f"machine wandb.our.lab:8080\n  login user\n  password {KEY}\n")
    else:
        settings.write_text(f"[default]\napi_key = {KEY}\n")

    assert planned("").code == 0


def test_a_login_for_another_server_is_none(
    planned: Callable[[str], CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://me:secret@wandb.our.lab")

    refused = planned("")

    assert "there is no login for 'wandb.our.lab'." in refused.err
    assert "secret" not in refused.err


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ('project = "a/b"', "wandb.project"),
        ('mode = "disabled"', "wandb.mode"),
        ('tags = [""]', "wandb.tags"),
        ("patience_seconds = 0", "wandb.patience_seconds"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before_training(
    settings: str, named: str, planned: Callable[[str], CliResult]
) -> None:
    refused = planned(f'{settings}\nmode = "offline"' if "mode" not in settings else settings)

    assert refused.code == 2
    assert named in refused.err or named.replace("wandb.", "[wandb] ") in refused.err
