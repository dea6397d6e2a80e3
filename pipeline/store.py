"""Where work lives that outs must not hold: finished cache shards, file hashes, trainings half-done and done.

The store is `$PIPELINE_STORE`, or `.store/` in the DVC project (`$DVC_ROOT`, which is the main repository also in
`dvc exp run --temp` and in queue tasks; without DVC the folder above this code). Deleting it costs time and nothing
else, at every moment: so what is put into it is made again when its folder went meanwhile (`keep`), what is read from
it may be gone, and scratch files have no name there (`scratch`).

A file is either whole or absent: `atomic` writes under a temporary name, syncs and renames. Files that DVC has linked
are shared between the store, DVC's cache and the workspace, so they are replaced and never written in place."""

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

FICLONE = 0x40049409
_TEMPORARY = ".tmp-"
_ATTEMPTS = 5  # at one write, when the store is deleted again and again


def root() -> Path:
    """The store's folder, created when absent."""
    chosen = os.environ.get("PIPELINE_STORE")
    project = os.environ.get("DVC_ROOT") or Path(__file__).resolve().parent.parent
    folder = Path(chosen).expanduser() if chosen else Path(project) / ".store"
    try:
        return make(folder)
    except OSError as error:
        where = "PIPELINE_STORE" if chosen else "the project"
        raise OSError(f"the store {folder} cannot be made: {error.strerror}; {where} says where it is") from None


def make(folder: Path) -> Path:
    """Create a folder of the store with those above it; they may be going at the same time."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            break
        except (FileNotFoundError, FileExistsError):
            if attempt == _ATTEMPTS:
                raise
    return folder


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """`atomic` for what lies in the store: `write` makes a file or a folder under the path that it is given, again when
    the store was deleted under it, or when another process put the same there at the same time."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with atomic(path) as temporary:
                write(temporary)
            return
        except OSError as error:
            if attempt == _ATTEMPTS or error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ESTALE):
                raise


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Callable[[], bool]]:
    """Create `folder`. Gives a function of whether it is still that one: what deletes the store deletes or moves it."""
    handle = None
    while handle is None:
        make(folder)
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)  # as long as it is open, no other folder gets its number
    try:
        yield lambda: same(handle, folder)
    finally:
        os.close(handle)


def same(handle: int, path: Path) -> bool:
    """Whether what is open under `handle` is what now lies at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def scratch() -> BinaryIO:
    """A file of this process on the store's disk. It has no name, so it ends with the process and nobody deletes it."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            return tempfile.TemporaryFile(dir=root())
    return tempfile.TemporaryFile(dir=root())


def found(folder: str | Path, pattern: str) -> list[Path]:
    """What matches `pattern` in a folder, sorted; nothing where the folder is gone."""
    try:
        return sorted(Path(folder).glob(pattern))
    except FileNotFoundError:
        return []


def remove(path: str | Path) -> None:
    """Remove a file or a folder that may be gone or be going."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; make it `path` when the block ends without an
    error. Raises IsADirectoryError when a file would replace a folder."""
    path = Path(path)
    make(path.parent)
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        if path.is_dir():  # rename cannot replace a folder that is not empty
            if not temporary.is_dir():
                raise IsADirectoryError(f"{path} is a folder, and a file is to be written; give the name of a file")
            remove(path)
        os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException:
        remove(temporary)
        raise


@contextlib.contextmanager
def out(path: str | Path) -> Iterator[Path]:
    """`atomic` for an out of a stage, which no two processes make at once: what killed runs left of it goes first."""
    path = Path(path)
    sweep(path.parent, f"*-{path.name}", seconds=0)
    with atomic(path) as temporary:
        yield temporary


def workspace(folder: Path) -> Path:
    """The path of a new folder of this process in `folder`, where `sweep` finds it when the process was killed."""
    sweep(folder)
    return folder / f"{_TEMPORARY}{uuid.uuid4().hex}"


def sweep(folder: str | Path, pattern: str = "*", seconds: float = 3600) -> int:
    """Remove the temporary files and folders that killed processes left in `folder`, untouched for `seconds`. Returns
    how many bytes they held."""
    freed = 0
    for path in found(folder, f"{_TEMPORARY}{pattern}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= seconds:
                freed += size(path)
                remove(path)
    return freed


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(size(inner) for inner in found(path, "*"))


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the `count` entries of a folder that were changed last."""
    for path in newest_first(folder)[count:]:
        remove(path)


def newest_first(folder: Path) -> list[Path]:
    """The entries of a folder by their times, temporary ones left out."""
    times = {}
    for path in found(folder, "[!.]*"):
        with contextlib.suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime_ns
    return sorted(times, key=times.__getitem__, reverse=True)


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


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder to `target` (absent). Unlike shutil.copytree it raises FileNotFoundError when a file of it, or the
    folder that it copies into, is gone."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_folder(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _reflink(source: str | Path, target: str | Path) -> bool:
    with open(source, "rb") as read, open(target, "xb") as write:
        if ctypes.CDLL(None).ioctl(write.fileno(), FICLONE, read.fileno()) == 0:
            return True
    os.unlink(target)
    return False


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
