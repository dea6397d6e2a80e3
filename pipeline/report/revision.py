"""What a report is of: the workspace as it stands, or a commit or DVC experiment, read through git and DVC's cache."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from dvc.exceptions import DvcException
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from ruamel.yaml import YAML

from pipeline.stage import StageError

WORKSPACE = "workspace"
_KNOWN = 20  # names in a message


@dataclass(frozen=True)
class Revision:
    name: str  # as the user calls it
    commit: str | None  # None: the workspace
    files: AbstractFileSystem

    def read(self, path: str) -> bytes | None:
        """The bytes of a file of git's or DVC's; None when there is none, or DVC's cache lacks it."""
        try:
            with self.open(path) as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError):
            return None

    def open(self, path: str) -> BinaryIO:
        """A file of git's or DVC's, to read in pieces. Raises FileNotFoundError."""
        return self.files.open(path, "rb")

    def exists(self, path: str) -> bool:
        """Whether `open` would find it."""
        try:
            self.open(path).close()
            return True
        except (FileNotFoundError, IsADirectoryError):
            return False

    def names(self, folder: str) -> list[str]:
        """The files in a folder, sorted; none when there is no folder."""
        try:
            return sorted(Path(entry).name for entry in self.files.ls(folder, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def lock(self) -> dict:
        """Stage -> its entry in dvc.lock; empty where none has run."""
        return (YAML(typ="safe").load(self.read("dvc.lock") or b"") or {}).get("stages", {})

    @contextmanager
    def folder(self, path: str) -> Iterator[Path]:
        """A folder of DVC's as one on this disk; of a commit it is one of links into DVC's cache.

        Raises FileNotFoundError when DVC's cache lacks a part of it."""
        if self.commit is None:
            yield Path(path)
            return
        with TemporaryDirectory() as folder:
            for name in self.names(path):
                cached = self.files.info(f"{path}/{name}")["dvc_info"]
                cache = self.files.repo.cache.local
                place = Path(cache.oid_to_path(cached["entry"].hash_info.value))
                if not place.exists():
                    raise FileNotFoundError(f"DVC's cache lacks {path}/{name} of {self.name}; try `dvc pull`")
                (Path(folder) / name).symlink_to(place)
            yield Path(folder)

    @contextmanager
    def file(self, path: str) -> Iterator[Path]:
        """One file, as `folder` does."""
        parent, _, name = path.rpartition("/")
        if self.commit is None:
            yield Path(path)
            return
        with TemporaryDirectory() as folder:
            data = self.read(path)
            if data is None:
                raise FileNotFoundError(f"DVC's cache lacks {path} of {self.name}; try `dvc pull`")
            (Path(folder) / name).write_bytes(data)
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
        raise StageError(f"{name} is neither an experiment nor a commit of this repository ({error}); {listed}") from None


def _experiments() -> list[str]:
    from dvc.repo import Repo

    with Repo() as repo:
        found = repo.experiments.ls(all_commits=True)
    return sorted({name for group in found.values() for name, *_ in (one if isinstance(one, tuple) else (one,) for one in group)})


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
