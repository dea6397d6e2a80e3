"""One process at a time at one piece of work: locks in the store that wait, and say for whom.

A lock is an flock, which the kernel frees when its process ends, however it ends. Its file says who holds it. When the
store is deleted the file goes and the lock with it: a thread of the holder puts both back within a second."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import store

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_TELL_SECONDS = 60.0  # between two lines that say that this process still waits
_QUIET_SECONDS = 1.0  # whoever only looks whether a lock is held has it for less


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: what its file says."""

    pid: int
    host: str
    since: float  # seconds since 1970
    place: str  # its working folder
    job: str  # names the processes that work together under this lock

    def __str__(self) -> str:
        return f"PID {self.pid} on {self.host}"

    @property
    def stopped(self) -> bool:
        """Whether it is seen to be stopped, by Ctrl-Z, SIGSTOP or a debugger; of another computer nothing is seen."""
        if self.host != socket.gethostname():
            return False
        try:
            status = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:  # it has ended, or there is no /proc
            return False
        return status.rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])  # proc_pid_stat(5)


@contextlib.contextmanager
def lock(name: str, what: str, job: str = "") -> Iterator[None]:
    """Hold the lock `name`; wait while another process has it and say so. `what` says in a message what the holder
    does: "trains the same"."""
    for _ in _polls(name, what):
        if (handle := _take(name)) is not None:
            break
    with _Kept(name, handle, job):
        yield


@contextlib.contextmanager
def attempt(name: str) -> Iterator[bool]:
    """Hold the lock `name` if nobody else does. Gives whether it is held."""
    handle = _take(name)
    if handle is None:
        yield False
        return
    with _Kept(name, handle, ""):
        yield True


def wait_for_others(name: str, what: str, job: str) -> None:
    """Return when nobody holds the lock `name`, or a process of the same `job` does."""
    for _ in _polls(name, what):
        if not held(name) or (by := holder(name)) is not None and by.job == job:
            return


def held(name: str) -> bool:
    """Whether some process holds the lock `name` now."""
    try:
        handle = os.open(_path(name), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def holder(name: str) -> Holder | None:
    """Who holds the lock `name`, or held it last."""
    try:
        return Holder(**json.loads(_path(name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # a lock that was taken just now says nothing yet
        return None


def drop_unused() -> None:
    """Remove the files of locks that nobody holds."""
    for path in store.found(store.root() / "locks", "*"):
        if not held(path.name):
            path.unlink(missing_ok=True)  # who opened it just now sees that it is gone, and opens it anew


class _Kept:
    """A lock that was taken, put back when its file is deleted."""

    def __init__(self, name: str, handle: int, job: str):
        self._name, self._handle = name, handle
        self._holder = Holder(os.getpid(), socket.gethostname(), time.time(), os.getcwd(), job)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"lock {name}", daemon=True)

    def __enter__(self) -> "_Kept":
        self._sign()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._handle)

    def _sign(self) -> None:
        text = json.dumps(asdict(self._holder)).encode()
        os.ftruncate(self._handle, os.pwrite(self._handle, text, 0))

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            with contextlib.suppress(OSError):  # tried again at the next turn
                if store.same(self._handle, _path(self._name)) or (handle := _take(self._name)) is None:
                    continue  # None: another process was quicker; both do the same work, which costs time only
                os.close(self._handle)
                self._handle = handle
                self._sign()


def _polls(name: str, what: str) -> Iterator[None]:
    """One item each time that a waiting process shall look again. It tells for whom it waits, now and then."""
    started, told, last = time.monotonic(), None, None
    try:
        while True:
            yield
            waited = time.monotonic() - started
            if waited > _QUIET_SECONDS and (told is None or time.monotonic() - told > _TELL_SECONDS):
                if (by := holder(name) or last) is not None:
                    since = time.strftime("%H:%M:%S", time.localtime(by.since))
                    still = "waits" if told is None else f"still waits (for {waited / 60:.0f} min)"
                    log.warning("%s for %s, which %s in %s since %s", still, by, what, by.place, since)
                    if by.stopped:
                        advice = (
                            "PID %d is stopped and does nothing: `kill -CONT %d` lets it go on, `kill -KILL %d` ends it"
                        )
                        log.warning(advice, by.pid, by.pid, by.pid)
                    told, last = time.monotonic(), by
            time.sleep(_POLL_SECONDS)
    except GeneratorExit:  # the caller needs to wait no longer
        if last is not None:
            log.warning("goes on: %s has ended", last)
        raise


def _path(name: str) -> Path:
    return store.root() / "locks" / name


def _take(name: str) -> int | None:
    """A handle that has the lock, or None."""
    while True:
        path = _path(name)
        store.make(path.parent)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the store is being deleted
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if store.same(handle, path):
            return handle
        os.close(handle)
