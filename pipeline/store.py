"""Where work lives that outs must not hold: finished cache shards, file hashes, half-done training states.

The store is `$PIPELINE_STORE`, or `.store/` in the DVC project (`$DVC_ROOT`, which is the main repository also in
`dvc exp run --temp` and in queue tasks; without DVC the folder above this code). Deleting it costs time and nothing
else.

A file is either whole or absent: `atomic` writes under a temporary name, syncs and renames. Files that DVC has linked
are shared between the store, DVC's cache and the workspace, so they are replaced and never written in place."""

import contextlib
import ctypes
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

_FICLONE = 0x40049409
_TEMPORARY = ".tmp-"


class Busy(OSError):
    """Another process holds the lock."""


def root() -> Path:
    """The store's folder, created when absent."""
    chosen = os.environ.get("PIPELINE_STORE")
    project = os.environ.get("DVC_ROOT") or Path(__file__).resolve().parent.parent
    folder = Path(chosen) if chosen else Path(project) / ".store"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the store's lock `name`, or raise Busy at once. The kernel frees it when the process ends, however it
    ends."""
    path = root() / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 64, 0).decode(errors="replace").strip() or "unknown"
            raise Busy(
                f"another process (PID {owner}) works on the same {name}; wait for it or end it, then run again"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def held(name: str) -> bool:
    """Whether some process holds the lock `name` now."""
    path = root() / "locks" / name
    if not path.exists():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; make it `path` when the block ends without an
    error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        if path.is_dir():  # rename cannot replace a folder that is not empty
            shutil.rmtree(path)
        os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def out(path: str | Path) -> Iterator[Path]:
    """`atomic` for an out of a stage, which no two processes make at once: what killed runs left of it goes first."""
    path = Path(path)
    sweep(path.parent, f"*-{path.name}", seconds=0)
    with atomic(path) as temporary:
        yield temporary


def sweep(folder: str | Path, pattern: str = "*", seconds: float = 3600) -> int:
    """Remove the temporary files and folders that killed processes left in `folder`, untouched for `seconds`. Returns
    how many bytes they held."""
    freed = 0
    for path in Path(folder).glob(f"{_TEMPORARY}{pattern}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime < seconds:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                freed += path.stat().st_size
                path.unlink()
    return freed


def sync(path: Path) -> None:
    """fsync a file, or a folder and all that is in it."""
    if path.is_dir():
        for inner in path.rglob("*"):
            _fsync(inner)
    _fsync(path)


def link(source: str | Path, target: str | Path) -> None:
    """Make `target` (absent) hold the bytes of `source`: a reflink, else a hard link, else a copy."""
    if not _reflink(source, target):
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def _reflink(source: str | Path, target: str | Path) -> bool:
    with open(source, "rb") as read, open(target, "xb") as write:
        if ctypes.CDLL(None).ioctl(write.fileno(), _FICLONE, read.fileno()) == 0:
            return True
    os.unlink(target)
    return False


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
