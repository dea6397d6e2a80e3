"""What DVC records of a stage when it has ended, and whether it is still what the stage began with.

DVC hashes code, data and params after a stage has run (DVC issue 11058). What was edited meanwhile would be recorded
together with outs that were made of what stood there before, and `dvc status` would call them up to date. dvc.yaml says
what that is: a stage's code, its data outside of outs/, and its keys of params.yaml."""

import hashlib
import os
import re
import stat
import sys
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from pipeline import store
from pipeline.params import Params, parse

if TYPE_CHECKING:
    from pipeline.data.far import Far

PROJECT = Path(__file__).resolve().parent.parent
_OWN = ("outs/", "stages/", "pipeline")  # dependencies that are other stages' outs, or code
_NAMED = 5  # of many files, so many are named in a message
_STAMP = 4  # numbers of a file's stamp

Files = dict[str, tuple[str, array]]  # folder -> (its files' names, sorted, joined by /; _STAMP numbers for each)


@dataclass(frozen=True)
class Recorded:
    """As it stood when `take` looked."""

    code: dict[Path, bytes]  # file -> digest
    params: dict[str, object]  # the stage's keys -> their values
    data: dict[str, Files]  # place -> the files below


def take(stage: str, params: Params) -> Recorded:
    """What DVC will record of the stage of this name in dvc.yaml, if it knows it. Raises StageError where data far away
    cannot be listed, or are not what the list of them says."""
    listed = _stages().get(stage, {})
    places = [place for place in deps(stage, params) if not place.startswith(_OWN)]
    values = {name: value for key in listed.get("params", []) for name, value in leaves(key, _value(params, key))}
    # Pictures alone may be far away. An address as base or tokenizer is a path that is not there; its stage says so.
    data = {place: _pictures(place) if place == params.data.images else _files(place) for place in places}
    return Recorded(_code(), values, data)


def deps(stage: str, params: Params) -> list[str]:
    """The paths of the stage's dependencies as dvc.lock has them; none where DVC does not know it."""
    written = [_path(dep) for dep in _stages().get(stage, {}).get("deps", [])]
    return [re.sub(r"\$\{([\w.]+)\}", lambda match: str(_value(params, match[1])), dep) for dep in written]


def written(stage: str) -> dict[str, object]:
    """The stage's keys with their values as params.yaml writes them, and so dvc.lock: a group of train.groups has only
    the keys that it is given there."""
    found, keys = {}, _stages().get(stage, {}).get("params", [])
    if not keys:  # DVC does not know it
        return found
    tree = parse(Path("params.yaml").read_text(encoding="utf-8"), "params.yaml")
    for key in keys:
        value = reduce(lambda inner, name: inner[name], key.split("."), tree)
        found |= dict(leaves(key, value))
    return found


def differences(old: Recorded, new: Recorded) -> list[str]:
    """What was edited between the two, a line each; of the code, what this process has loaded."""
    loaded = {getattr(module, "__file__", None) for module in sys.modules.values()}
    edited = [path for path in new.code if old.code.get(path) != new.code[path] and str(path) in loaded]
    lines = [path.relative_to(PROJECT).as_posix() for path in edited]
    lines += [
        f"params.yaml: {key} {value} -> {new.params[key]}"
        for key, value in old.params.items()
        if new.params[key] != value
    ]
    for place, files in old.data.items():
        changes = _changes(files, new.data.get(place, {}))
        kinds = [f"{len(names)} {kind} ({_some(names)})" for kind, names in changes.items() if names]
        lines += [f"{place}: {', '.join(kinds)}"] if kinds else []
    return lines


def remove_outs(stage: str) -> None:
    """Remove what dvc.yaml names as outs of the stage, as DVC does before it runs one."""
    for out in _outs(_stages().get(stage, {})):
        store.remove(out)


def maker(path: str) -> str | None:
    """The stage of dvc.yaml that makes the file at `path`, which is relative to the project."""
    found = (name for name, listed in _stages().items() for out in _outs(listed) if Path(path).is_relative_to(out))
    return next(found, None)


def settle(recorded: Recorded) -> None:
    """Wait until a file that was written just now would get another time if it were written again: at most as long as
    its file system's times are coarse."""
    stamps = (stamps for files in recorded.data.values() for _, stamps in files.values())
    newest = max((max(numbers[3::_STAMP], default=0) for numbers in stamps), default=0)
    coarse = 2_000_000_000 if newest % 1_000_000_000 == 0 else 20_000_000  # whole seconds, else a clock tick or two
    time.sleep(max(0, min(coarse, newest + coarse - time.time_ns())) / 1e9)


def _stages() -> dict[str, dict]:
    """Those of dvc.yaml, by name. Without one DVC records nothing."""
    if not os.path.exists("dvc.yaml"):
        return {}
    return YAML(typ="safe").load(Path("dvc.yaml"))["stages"]


def _outs(listed: dict) -> list[str]:
    return [_path(out) for kind in ("outs", "metrics", "plots") for out in listed.get(kind, [])]


def _path(entry: str | dict) -> str:
    """A dependency or an out of dvc.yaml, with or without options."""
    return entry if isinstance(entry, str) else next(iter(entry))


def _value(params: Params, key: str) -> object:
    """That of "train.steps", or of the whole section "train"."""
    section, *names = key.split(".")
    value = getattr(params, section).model_dump()
    for name in names:
        value = value[name]
    return value


def leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Key -> value of all that is below a key, in no further mapping."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _code() -> dict[Path, bytes]:
    """Digest of each of the project's code files."""
    files = [path for folder in ("stages", "pipeline") for path in (PROJECT / folder).rglob("*.py")]
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in files}


def _files(place: str) -> Files:
    """The files at or below `place`, with their stamps. Links are followed and hidden files left out. It takes some 50
    bytes a file, as there may be millions."""
    if not os.path.isdir(place):
        folder, name = os.path.split(place)
        return {folder: _with_stamps(folder, [name] if os.path.lexists(place) else [])}
    found: Files = {}
    seen: set[tuple[int, int]] = set()  # a link may lead back up
    folders = [place]
    while folders:
        folder = folders.pop()
        names = []
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not _is_broken(entry) and entry.is_dir():
                        folders.append(entry.path)
                    else:
                        names.append(entry.name)
        except FileNotFoundError:
            continue
        found[folder] = _with_stamps(folder, sorted(names))
    return found


def _pictures(place: str) -> Files:
    """Those of data.images, wherever they are. Raises StageError."""
    from pipeline.data import far, urls  # which take their errors from pipeline/stage.py, and that what is here

    if "://" in place:
        return _far_files(far.listing(place).values())
    if place.lower().endswith(urls.END):
        return _files(place) | _far_files(urls.listing(place))
    return _files(place)


def _far_files(listed: "Iterable[Far]") -> Files:
    folders: dict[str, dict[str, tuple[int, ...]]] = {}
    for file in listed:
        folder, _, name = file.url.rpartition("/")
        size, first, _, second = file.stamp
        folders.setdefault(folder, {})[name] = (size, first, second, 0)
    return {
        folder: ("/".join(sorted(files)), array("q", [number for name in sorted(files) for number in files[name]]))
        for folder, files in folders.items()
    }


def _is_broken(entry: os.DirEntry) -> bool:
    """A link to nothing or to itself, on which is_dir raises."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _with_stamps(folder: str, names: list[str]) -> tuple[str, array]:
    stamps = array("q")
    for name in names:
        stamps.extend(_stamp(os.path.join(folder, name)))
    return "/".join(names), stamps


def _stamp(path: str) -> tuple[int, int, int, int]:
    """What changes when a file does: size, inode, mtime and ctime. The ctime shows an edit that puts the mtime back; it
    is left out where the file has other names too, since one more or less changes it (DVC's cache links files)."""
    try:
        status = os.stat(path)
    except OSError:  # gone, or a link to nothing or to itself
        return 0, 0, 0, 0
    only_here = status.st_nlink == 1 or stat.S_ISDIR(status.st_mode)
    inode = status.st_ino - (1 << 64 if status.st_ino >= 1 << 63 else 0)  # as a signed number
    return status.st_size, inode, status.st_mtime_ns, status.st_ctime_ns if only_here else 0


def _changes(old: Files, new: Files) -> dict[str, list[str]]:
    """Kind of change -> paths."""
    touched = "with a new time and the same size (touched or written again)"
    changes: dict[str, list[str]] = {"added": [], "removed": [], "changed": [], touched: []}
    for folder in sorted(old.keys() | new.keys()):
        before, after = old.get(folder), new.get(folder)
        if before == after:
            continue
        before, after = _by_name(before), _by_name(after)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                kind = "added" if name not in before else "removed" if name not in after else "changed"
                if kind == "changed" and before[name][:2] == after[name][:2]:  # size and inode
                    kind = touched
                changes[kind].append(os.path.join(folder, name))
    return changes


def _by_name(files: tuple[str, array] | None) -> dict[str, array]:
    names, stamps = files or ("", array("q"))
    rows = enumerate(names.split("/")) if names else []
    return {name: stamps[_STAMP * row : _STAMP * (row + 1)] for row, name in rows}


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more
