"""What a report is of: the workspace as it stands, or a commit or DVC experiment, read through git and DVC's cache."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from dvc.exceptions import DvcException
from dvc_data.index import DataIndexDirError
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from ruamel.yaml import YAML

from pipeline.stage import StageError

WORKSPACE = "workspace"
_LOCK = "dvc.lock"
_KNOWN = 20  # names in a message


@dataclass(frozen=True)
class Revision:
    name: str  # as the user calls it
    commit: str | None  # None: the workspace
    files: AbstractFileSystem

    def read(self, path: str) -> bytes | None:
        """The bytes of a file of git's or DVC's; None when there is none. Raises StageError when dvc.lock names it and
        DVC's cache lacks it."""
        try:
            with self.open(path) as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError):
            return None

    def open(self, path: str) -> BinaryIO:
        """The same, to read in pieces. Raises FileNotFoundError when there is none."""
        try:
            return self.files.open(path, "rb")
        except (FileNotFoundError, DataIndexDirError):
            self._lacks(path)
            raise FileNotFoundError(path) from None

    def exists(self, path: str) -> bool:
        """Whether `read` would find it."""
        try:
            self.open(path).close()
            return True
        except (FileNotFoundError, IsADirectoryError):
            return False

    def names(self, folder: str) -> list[str]:
        """The files in a folder, sorted; none when there is no folder. Raises like `read`."""
        try:
            return sorted(Path(entry).name for entry in self.files.ls(folder, detail=False))
        except (FileNotFoundError, NotADirectoryError, DataIndexDirError):
            self._lacks(folder)
            return []

    def _lacks(self, path: str) -> None:
        """Raise StageError when a stage made what is not there."""
        if self.commit is None or path == _LOCK:
            return
        outs = (out["path"] for stage in self.lock().values() for out in stage.get("outs", []))
        if any(f"{path}/".startswith(f"{out}/") for out in outs):
            raise StageError(f"DVC's cache lacks {path} of {self.name}; try `dvc pull`")

    def lock(self) -> dict:
        """Stage -> its entry in dvc.lock; empty where none has run."""
        return (YAML(typ="safe").load(self.read(_LOCK) or b"") or {}).get("stages", {})

    @contextmanager
    def folder(self, path: str) -> Iterator[Path]:
        """A folder of DVC's on this disk; that of a commit is one of links into DVC's cache. Raises like `read`."""
        if self.commit is None:
            yield Path(path)
            return
        with TemporaryDirectory() as folder:
            cache = self.files.repo.cache.local
            for name in self.names(path):
                place = Path(cache.oid_to_path(self.files.info(f"{path}/{name}")["dvc_info"]["entry"].hash_info.value))
                if not place.exists():
                    self._lacks(f"{path}/{name}")
                (Path(folder) / name).symlink_to(place)
            yield Path(folder)

    @contextmanager
    def file(self, path: str) -> Iterator[Path]:
        """One file, as `folder` does."""
        name = Path(path).name
        if self.commit is None:
            yield Path(path)
            return
        with TemporaryDirectory() as folder:
            with self.open(path) as source, open(Path(folder) / name, "wb") as target:
                shutil.copyfileobj(source, target)
            yield Path(folder) / name


def workspace() -> Revision:
    return Revision(WORKSPACE, None, LocalFileSystem())


def find(name: str) -> Revision:
    """That of a branch, a tag, a commit or an experiment. Raises StageError, which names the experiments, when there is
    none of this name."""
    from dvc.api import DVCFileSystem  # takes a second or two, which a report of the workspace does without

    if name == WORKSPACE:
        return workspace()
    try:
        files = DVCFileSystem(rev=name)
        commit = files.repo.get_rev()
        return Revision(name, commit, files)
    except DvcException as error:
        known = _experiments()
        more = f", and {len(known) - _KNOWN} more" if len(known) > _KNOWN else ""
        listed = f"the experiments are {', '.join(known[:_KNOWN])}{more}" if known else "there are no experiments"
        raise StageError(
            f"{name} is neither an experiment nor a commit of this repository ({error}); {listed}"
        ) from None


def _experiments() -> list[str]:
    from dvc.repo import Repo

    with Repo() as repo:
        found = repo.experiments.ls(all_commits=True)
    return sorted({name for group in found.values() for name, _ in group})


def head() -> str:
    """The commit that the project is at, with a word on edits; empty without git."""
    commit = _git("rev-parse", "--short", "HEAD")
    if commit is None:
        return ""
    edited = _git("status", "--porcelain", "--untracked-files=no")
    return commit.decode().strip() + (" with uncommitted edits" if edited else "")


def at_head(path: str) -> bytes | None:
    """A file of the last commit."""
    return _git("show", f"HEAD:./{path}")


def _git(*words: str) -> bytes | None:
    """What git says; None where there is no git, no repository, or no such thing."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
