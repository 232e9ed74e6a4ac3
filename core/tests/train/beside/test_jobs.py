"""Work beside the loop is done in order, tried again, waited for, and never in the way."""

from __future__ import annotations

import threading
import time

from st.train.beside.jobs import CAPACITY, Jobs


def test_jobs_of_a_lane_keep_their_order_and_the_end_waits_for_them() -> None:
    done: list[int] = []
    jobs = Jobs(done.append)  # type: ignore[arg-type]

    for number in range(5):
        jobs.submit(f"job {number}", lambda number=number: done.append(number), lane="one")  # type: ignore[misc]
    jobs.drain()

    assert done == [0, 1, 2, 3, 4]


def test_a_job_that_fails_is_tried_again_and_each_failure_is_said() -> None:
    said: list[str] = []
    calls: list[int] = []

    def upload() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("no route")

    jobs = Jobs(said.append, retry_seconds=0.01)
    jobs.submit("upload of step 5", upload)
    jobs.drain()

    assert len(calls) == 3
    assert said == [
        "upload of step 5 failed: ConnectionError: no route; tried again in 0.01 s",
        "upload of step 5 failed: ConnectionError: no route; tried again in 0.02 s",
    ]


def test_a_job_that_fails_for_good_is_named_and_the_next_one_is_done() -> None:
    said: list[str] = []
    done = threading.Event()

    def leave() -> None:
        raise SystemExit(3)

    jobs = Jobs(said.append, retry_seconds=0.01)
    jobs.submit("upload", leave, attempts=2)
    jobs.submit("note", done.set)
    jobs.drain()

    assert said[-1] == "upload failed: SystemExit: 3; given up after 2 attempts"
    assert done.is_set()


def test_a_job_that_hangs_is_left_behind_alone_and_says_nothing_later() -> None:
    said: list[str] = []
    go, done = threading.Event(), threading.Event()

    def hang() -> None:
        go.wait()
        raise ConnectionError("too late")

    jobs = Jobs(said.append)
    jobs.submit("upload", hang, drain_seconds=0.05, lane="slow")
    jobs.submit("note", done.set, lane="quick")
    started = time.monotonic()
    jobs.drain()
    seconds = time.monotonic() - started
    threads = [thread for thread in threading.enumerate() if thread.name == "jobs slow"]
    go.set()
    for thread in threads:
        thread.join(10)

    assert done.is_set() and seconds < 5
    assert len(threads) == 1
    assert said == ["upload was not done 0.05 seconds after the run; left behind"]


def test_a_lane_that_is_full_says_which_job_was_not_begun() -> None:
    said: list[str] = []
    go = threading.Event()
    jobs = Jobs(said.append)

    for number in range(CAPACITY + 1):
        jobs.submit(f"job {number}", go.wait)
    go.set()
    jobs.drain()

    assert said == [f"job {CAPACITY} was not begun: {CAPACITY} others wait for the one before them"]
