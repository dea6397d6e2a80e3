"""The disks that a run writes to: whether files can be linked between its places, and whether there is room."""

import ctypes
import os
import tempfile
from pathlib import Path

import psutil
from dvc.config import Config, ConfigError

from pipeline import store
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, Finding
from pipeline.planning import disk as planned
from pipeline.planning.run import Run
from pipeline.recorded import PROJECT

GB = 10**9
_GRAPHS = "graphs (assumed)"
_IN_STORE = ("states", _GRAPHS)  # and nowhere else
_LASTING = ("latents", "text", "convert")  # outs that are not made anew when they are there
_LINKLESS = {"vfat", "exfat", "msdos", "fuseblk", "9p", "cifs", "smb3"}  # kinds of disks that have no hard links


def places() -> dict[str, Path]:
    """Where a run writes: outs, store and DVC's cache; the nearest folder that is there."""
    config = _dvc_config()
    cache = config.get("cache", {}).get("dir") or ".dvc/cache"
    chosen = os.environ.get("PIPELINE_STORE")
    root = os.environ.get("DVC_ROOT") or PROJECT
    kept = Path(chosen).expanduser() if chosen else Path(root) / ".store"
    return {"outs": _there(Path("outs")), "store": _there(kept), "DVC's cache": _there(Path(cache))}


def _dvc_config() -> dict:
    try:
        return dict(Config(dvc_dir=str(Path(".dvc").resolve()))) if Path(".dvc").is_dir() else {}
    except ConfigError as error:
        raise OSError(f".dvc/config cannot be read: {error}") from None


def _there(path: Path) -> Path:
    path = Path(os.path.realpath(path))
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def links() -> list[Finding]:
    """Whether what is in the store can be in DVC's cache and in outs without a copy."""
    kinds = _dvc_config().get("cache", {}).get("type") or ["reflink", "copy"]
    found, findings = places(), []
    how = {}
    for one, other in (("store", "outs"), ("store", "DVC's cache"), ("DVC's cache", "outs")):
        how[one, other] = _link(found[one], found[other])
    copies = [f"{one} and {other}" for (one, other), kind in how.items() if kind == "copy"]
    if copies:
        findings.append(Finding(
            "links", DOUBTFUL, f"between {' and between '.join(copies)} files are copied: they are on other disks",
            "one disk, or outs stand there several times",
            "Set PIPELINE_STORE, or `dvc cache dir`, to a folder beside outs/",
        ))  # fmt: skip
    possible = {kind for kind in how.values() if kind != "copy"} or {"copy"}
    if not copies and not possible & set(kinds):
        findings.append(Finding(
            "links", DOUBTFUL, f"DVC's cache.type is {', '.join(kinds)}: it copies", "hardlink among them",
            "`dvc config cache.type hardlink,reflink,copy`",
        ))  # fmt: skip
    return findings or [Finding("links", GOOD, f"{' and '.join(sorted(possible))} between store, DVC's cache and outs")]


def _link(one: Path, other: Path) -> str:
    """How a file gets from one folder to another: "reflink", "hardlink" or "copy". Tried with files without a name
    where the disk has them, so that nothing is seen in either."""
    try:
        with tempfile.TemporaryFile(dir=one) as source, tempfile.TemporaryFile(dir=other) as target:
            source.write(b"0" * 4096)
            source.flush()
            if ctypes.CDLL(None).ioctl(target.fileno(), store.FICLONE, source.fileno()) == 0:
                return "reflink"
    except OSError as error:
        raise OSError(f"no file can be written to {one} and {other}: {error.strerror}") from None
    mount, kind = _mount(one)
    return "hardlink" if _mount(other)[0] == mount and kind not in _LINKLESS else "copy"


def _mount(folder: Path) -> tuple[str, str]:
    """(where the disk of a folder is mounted, its kind). Links cross no mount, not even to the same disk's."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    above = (str(parent) for parent in (folder, *folder.parents))
    found = next((parent for parent in above if parent in mounts), "/")
    return found, mounts.get(found, "")


def disk(run: Run, linked: bool) -> list[Finding]:
    """Free space of each disk against what the run will put there, beside what is there already."""
    parts = needs(run)
    there = sum(store.size(Path("outs") / name) for name in _LASTING if (Path("outs") / name).exists())
    wanted: dict[str, int] = {}
    folders = places()
    for place, folder in folders.items():
        mount = _mount(folder)[0]
        if linked:  # one copy, wherever it is
            wanted[mount] = sum(parts.values())
        else:
            own = [size for name, size in parts.items() if place == "store" or not name.startswith(_IN_STORE)]
            wanted[mount] = wanted.get(mount, 0) + sum(own)
    listed = ", ".join(f"{name} {value / GB:.1f}" for name, value in parts.items() if value >= GB / 10)
    findings = []
    for mount, need in wanted.items():
        free = psutil.disk_usage(mount).free
        need = max(need - there, 0)
        names = ", ".join(place for place, folder in folders.items() if _mount(folder)[0] == mount)
        found = f"{free / GB:.1f} GB are free for {names} and the run takes {need / GB:.1f} more"
        found += f" ({listed})" if listed else ""
        if need <= free:
            findings.append(Finding("disk", GOOD, found))
        else:
            findings.append(Finding(
                "disk", BAD, found, f"{need / GB:.1f} GB free, {(need - free) / GB:.1f} more",
                "`python -m pipeline cache gc` frees some; or put PIPELINE_STORE and `dvc cache dir` on a larger disk",
            ))  # fmt: skip
    return findings


def needs(run: Run) -> dict[str, int]:
    """Bytes that a run of these settings puts on disks, by what they are."""
    return planned.disk_bytes(run) | {_GRAPHS: 2 * GB if run.config == "sdxl-base" else GB // 50}
