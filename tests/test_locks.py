"""pipeline/locks.py"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipeline import locks, store

HOLD = """
import sys, time
from pipeline import locks
with locks.lock("k", "works on the same", job="j"):
    print("held", flush=True)
    sys.stdin.readline()
"""
WAIT = """
from pipeline import locks
locks._TELL_SECONDS = 0.5
with locks.lock("k", "works on the same"):
    print("held", flush=True)
"""


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))


def start(script: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def other():
    """Another process that holds the lock k."""
    process = start(HOLD)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def eventually(true) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_the_second_waits_and_says_for_whom_until_the_first_has_ended(other, end):
    second = start(WAIT)
    said = [second.stderr.readline() for _ in range(2)]
    assert said[0].startswith(f"waits for PID {other.pid} on ") and "which works on the same in " in said[0]
    assert os.getcwd() in said[0] and said[1].startswith("still waits (for 0 min) for PID ")
    if end == "kill":
        other.kill()
    else:
        other.communicate("\n")
    out, err = second.communicate(timeout=20)
    assert out == "held\n" and f"goes on: PID {other.pid} on " in err


@pytest.mark.parametrize("end", ["goes on", "is killed"])
def test_a_holder_that_is_stopped_is_said_to_be(other, end):
    os.kill(other.pid, signal.SIGSTOP)
    second = start(WAIT)
    said = [second.stderr.readline() for _ in range(2)]
    assert said[0].startswith(f"waits for PID {other.pid} on ")
    assert said[1].startswith(f"PID {other.pid} is stopped and does nothing: `kill -CONT {other.pid}` lets it go on, ")
    assert f"`kill -KILL {other.pid}` ends it" in said[1]
    if end == "goes on":
        os.kill(other.pid, signal.SIGCONT)
        other.communicate("\n")
    else:
        os.kill(other.pid, signal.SIGKILL)
    out, _ = second.communicate(timeout=20)
    assert out == "held\n"


def test_a_process_that_works_or_has_ended_or_is_elsewhere_is_not_stopped(other):
    by = locks.holder("k")
    assert not by.stopped
    os.kill(other.pid, signal.SIGSTOP)
    eventually(lambda: by.stopped)
    assert not dataclasses.replace(by, host="another").stopped
    other.kill()
    other.wait()
    assert not by.stopped


def test_other_locks_are_free(other):
    with locks.lock("another", "does"), locks.attempt("a third") as mine:
        assert mine


def test_an_attempt_does_not_wait(other):
    with locks.attempt("k") as mine:
        assert not mine
    other.communicate("\n")
    with locks.attempt("k") as mine:
        assert mine and locks.held("k")
    assert not locks.held("k")


def test_a_short_look_at_a_lock_tells_nobody_to_wait(caplog):
    handle = locks._take("k")
    waited = []

    def sleep(_):
        waited.append(1)
        os.close(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks.time, "sleep", sleep)
        with locks.lock("k", "does"):
            pass
    assert waited and not caplog.messages


@pytest.mark.parametrize("go", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("elsewhere"))])
def test_a_lock_is_put_back_when_the_store_goes(other, go):
    go(store.root())
    eventually(lambda: locks.held("k"))
    eventually(lambda: locks.holder("k") is not None)
    assert locks.holder("k").pid == other.pid and locks.holder("k").job == "j"
    other.kill()
    other.wait()
    assert not locks.held("k")


def test_two_may_work_when_the_store_went_and_both_end(other):
    handle = None
    while handle is None:  # until this process is quicker than the holder's thread
        shutil.rmtree(store.root())
        handle = locks._take("k")
    time.sleep(1)
    os.close(handle)
    assert other.poll() is None
    assert other.communicate("\n")[1] == ""


def test_a_job_waits_for_others_and_not_for_itself(other):
    locks.wait_for_others("k", "works on the same", job="j")
    locks.wait_for_others("another", "works on the same", job="i")
    waiting = start("from pipeline import locks; locks.wait_for_others('k', 'works on the same', job='i')")
    assert "waits for PID" in waiting.stderr.readline() and waiting.poll() is None
    other.kill()
    assert waiting.wait(20) == 0


def test_a_lock_that_was_taken_just_now_has_no_holder_yet(tmp_path):
    (tmp_path / "store/locks").mkdir(parents=True)
    for text in ("", "{", json.dumps({"pid": 1})):
        (tmp_path / "store/locks/k").write_text(text)
        assert locks.holder("k") is None


def test_files_of_locks_that_nobody_holds_are_dropped(other):
    with locks.lock("left", "does"):
        pass
    locks.drop_unused()
    assert [path.name for path in (store.root() / "locks").iterdir()] == ["k"]
