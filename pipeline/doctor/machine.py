"""The machine under a run: Python, packages, device, memory, disks. Writes nothing, and imports no MindSpore."""

import ctypes
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from math import prod
from pathlib import Path

import psutil
from dvc.config import Config, ConfigError
from packaging.specifiers import SpecifierSet

from pipeline import hardware, npu, plan
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, Finding
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.recorded import PROJECT
from pipeline.weights import layout
from pipeline.weights.names import part_of

GB = 10**9
STAGES_DEVICE = ("device", "cache_latents", "cache_text", "train", "sample")  # sections that may demand an NPU
_IMPORT = "from pipeline import device; import mindspore; device.setup({!r}); print('MindSpore', mindspore.__version__)"
_IMPORT_WAIT = 300  # seconds
_FICLONE = 0x40049409
_LINKLESS = {"vfat", "exfat", "msdos", "fuseblk", "9p", "cifs", "smb3"}  # kinds of disks without hard links, or odd ones


def python() -> Finding:
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("Python", GOOD, found)
    return Finding("Python", BAD, found, wanted, "`rm -rf .venv && make repro PYTHON=python3.11`")


def packages() -> Finding:
    """Those of requirements.txt, and where there are NPUs those that CANN wants."""
    files = ["requirements.txt"] + ["requirements-npu.txt"] * bool(npu.files())
    pins = [pin for file in files for pin in _pins(PROJECT / file)]
    odd = [f"{name} {found or 'missing'} (wanted {wanted})" for name, wanted in pins
           if (found := _version(name)) != wanted]  # fmt: skip
    if not odd:
        return Finding("packages", GOOD, f"{len(pins)} as {' and '.join(files)} pin them")
    shown = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
    command = " ".join(f"-r {file}" for file in files)
    return Finding("packages", BAD, shown, "what the files pin", f"`.venv/bin/python -m pip install {command}`")


def _pins(file: Path) -> list[tuple[str, str]]:
    matches = re.finditer(r"(?m)^([A-Za-z0-9_.-]+)==([^\s;#]+)", file.read_text())
    return [(match[1], match[2]) for match in matches]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def device(params: Params) -> list[Finding]:
    """The device that the stages will use, and that MindSpore can use it, in a process of its own."""
    target = npu.target(params.device.target, params.device.workers)
    hardware.check(params, *STAGES_DEVICE)
    kind = f"{npu.count()} NPUs for {params.device.workers} processes" if target == "Ascend" else _cpu()
    cann = os.environ.get("ASCEND_HOME_PATH") or "not sourced" if target == "Ascend" else ""
    found = f"{target}: {kind}" + (f"; CANN: {cann}" if cann else "")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT.format(params.device.target)],
            env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, timeout=_IMPORT_WAIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [Finding("device", BAD, f"{found}; MindSpore did not start within {_IMPORT_WAIT} s", "that it does")]
    if done.returncode:
        reason = _reason(done.stderr)
        return [Finding("device", BAD, f"{found}; {reason}", "a MindSpore that uses it", "see docs/doctor.md, device")]
    findings = [Finding("device", GOOD, f"{found}; {done.stdout.strip().splitlines()[-1]}")]
    if target == "CPU" and params.model.config == "sdxl-base":
        findings.append(Finding("device", DOUBTFUL, "SDXL on a CPU takes minutes a step", "an NPU", "or `make preset NAME=tiny`"))
    return findings


def _reason(output: str) -> str:
    """The end of a failed process's output, without its traceback."""
    lines = output.strip().splitlines() or ["it ended without a word"]
    start = next((n for n, line in enumerate(lines) if re.match(r"(\w+\.)*\w*Error: ", line)), len(lines) - 1)
    return " ".join(lines[start : start + 8]).removeprefix("pipeline.stage.StageError: ")


def _cpu() -> str:
    return f"{os.cpu_count()} cores, no NPU"


def memory(params: Params, run: plan.Run) -> Finding:
    """What the planner counts for training, against a card or this computer's free memory."""
    wanted = sum(plan.device_bytes(run).values())
    if npu.target(params.device.target) == "Ascend":
        card = plan.CARD - plan.RESERVED
        found = f"training takes {wanted / GB:.1f} GB of each NPU, by the planner"
        if plan.fits(run):
            return Finding("memory", GOOD, f"{found}, of {plan.CARD // GB}")
        ways = "; ".join(plan.ways_to_fit(run)) or "take a lower index.resolution"
        return Finding("memory", BAD, found, f"{card / GB:.0f} GB at most", f"Would fit with {ways}")
    wanted *= params.device.workers
    found = f"{_free_memory() / GB:.1f} GB are free and training takes {wanted / GB:.1f}, by the planner"
    if wanted <= _free_memory():
        return Finding("memory", GOOD, found)
    return Finding("memory", BAD, found, "more", "End other programs, or lower train.batch_size or device.workers")


def _free_memory() -> int:
    """Of this computer, or of the container that this process is in."""
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text) - int(used.read_text()))
    return max(free, 0)


# Disks


def places() -> dict[str, Path]:
    """Where a run writes: outs, store and DVC's cache; the nearest folder that is there."""
    config = _dvc_config()
    cache = config.get("cache", {}).get("dir") or ".dvc/cache"
    chosen = os.environ.get("PIPELINE_STORE")
    root = os.environ.get("DVC_ROOT") or PROJECT
    store = Path(chosen).expanduser() if chosen else Path(root) / ".store"
    return {"outs": _there(Path("outs")), "store": _there(store), "DVC's cache": _there(Path(cache))}


def _dvc_config() -> dict:
    try:
        return dict(Config(dvc_dir=str(Path(".dvc").resolve()))) if Path(".dvc").is_dir() else {}
    except ConfigError as error:
        raise OSError(f".dvc/config cannot be read: {error}") from None


def _there(path: Path) -> Path:
    path = Path(os.path.abspath(path))
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
            "one disk, or outs stand there several times", "Set PIPELINE_STORE, or `dvc cache dir`, to a folder beside outs/",
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
            if ctypes.CDLL(None).ioctl(target.fileno(), _FICLONE, source.fileno()) == 0:
                return "reflink"
    except OSError as error:
        raise OSError(f"no file can be written to {one} and {other}: {error.strerror}") from None
    mount, kind = _mount(one)
    return "hardlink" if _mount(other)[0] == mount and kind not in _LINKLESS else "copy"


def _mount(folder: Path) -> tuple[str, str]:
    """(where the disk of a folder is mounted, its kind). Links cross no mount, not even to the same disk's."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    found = next(str(parent) for parent in (folder, *folder.parents) if str(parent) in mounts or parent == parent.parent)
    return found, mounts.get(found, "")


def disk(params: Params, run: plan.Run, linked: bool) -> list[Finding]:
    """Free space of each disk against what the run will put there, beside what is there already."""
    parts = needs(params, run)
    wanted: dict[str, int] = {}
    folders = places()
    for place, folder in folders.items():
        mount = _mount(folder)[0]
        if linked:  # one copy, wherever it is
            wanted[mount] = sum(parts.values())
        else:
            kept = ("state of training", "graphs")  # in the store alone
            own = [value for name, value in parts.items() if place == "store" or name not in kept]
            wanted[mount] = wanted.get(mount, 0) + sum(own)
    listed = ", ".join(f"{name} {value / GB:.1f}" for name, value in parts.items() if value >= GB / 10)
    findings = []
    for mount, need in wanted.items():
        free = psutil.disk_usage(mount).free
        names = ", ".join(place for place, folder in folders.items() if _mount(folder)[0] == mount)
        found = f"{free / GB:.1f} GB are free for {names} and a run from nothing takes {need / GB:.1f}"
        found += f" ({listed})" if listed else ""
        if need <= free:
            findings.append(Finding("disk", GOOD, found))
        else:
            findings.append(Finding(
                "disk", BAD, found, "more", "`python -m pipeline cache gc` and `dvc gc -w -n` (a look first) free some, or put "
                "PIPELINE_STORE and `dvc cache dir` on a larger disk",
            ))  # fmt: skip
    return findings


def needs(params: Params, run: plan.Run) -> dict[str, int]:
    """Bytes that a run of these settings puts on disks, by what they are."""
    unet = sum(_sizes(run.config, "unet")) * 4
    whole = sum(_sizes(run.config))
    moments = unet * 2 if run.optimizer == "adamw" else 0
    width = 4 if params.merge.dtype == "float32" else 2
    return {
        "caches": plan.cache_bytes(run),
        "converted weights": whole * 2,  # a base in float16
        "trained weights": unet * (2 if run.ema else 1),
        "merged weights": 2 * whole * width,
        # one more while it is written
        "state of training": (params.train.checkpoints_total_limit + 1) * (unet * (2 if run.ema else 1) + moments),
        "graphs": 2 * GB if run.config == "sdxl-base" else GB // 50,
    }


def _sizes(config: str, part: str | None = None) -> list[int]:
    shapes = layout.shapes(CONFIGS[config]).items()
    return [prod(shape) for name, shape in shapes if part is None or part_of(name) == part]
