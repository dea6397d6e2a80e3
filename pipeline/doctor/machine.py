"""The machine under a run: Python, packages, device, memory. Writes nothing, and imports no MindSpore."""

import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import psutil
from packaging.specifiers import SpecifierSet

from pipeline import hardware, npu
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, Finding
from pipeline.params import Params
from pipeline.planning import device as device_memory
from pipeline.planning.run import Run
from pipeline.recorded import PROJECT

GB = 10**9
STAGES_DEVICE = ("device", "cache_latents", "cache_text", "train", "sample")  # sections that may demand an NPU
_IMPORT = "from pipeline import device; import mindspore; device.setup({!r}); print('MindSpore', mindspore.__version__)"
_IMPORT_WAIT = 300  # seconds


def python() -> Finding:
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("Python", GOOD, found)
    return Finding("Python", BAD, found, wanted, "`rm -rf .venv && make repro PYTHON=python3.11`")


def packages() -> Finding:
    """Those of requirements.txt, and where there are NPUs those that CANN wants."""
    files = ["requirements.txt"] + ["requirements-npu.txt"] * bool(npu.files())
    pinned = [pin for file in files for pin in pins(PROJECT / file)]
    odd = [f"{name} {found or 'missing'} (wanted {wanted})" for name, wanted in pinned
           if (found := _version(name)) != wanted]  # fmt: skip
    if not odd:
        return Finding("packages", GOOD, f"{len(pinned)} as {' and '.join(files)} pin them")
    shown = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
    command = " ".join(f"-r {file}" for file in files)
    return Finding("packages", BAD, shown, "what the files pin", f"`.venv/bin/python -m pip install {command}`")


def pins(file: Path) -> list[tuple[str, str]]:
    """The packages of a requirements file, and their versions."""
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
        said = "SDXL trains on a CPU in minutes a step, if at all"
        findings.append(Finding("device", DOUBTFUL, said, "an NPU", "`make preset NAME=tiny` is the demo"))
    return findings


def _reason(output: str) -> str:
    """The end of a failed process's output, without its traceback."""
    lines = output.strip().splitlines() or ["it ended without a word"]
    start = next((n for n, line in enumerate(lines) if re.match(r"(\w+\.)*\w*Error: ", line)), len(lines) - 1)
    return " ".join(lines[start : start + 8]).removeprefix("pipeline.stage.StageError: ")


def _cpu() -> str:
    return f"{os.cpu_count()} cores, no NPU"


def memory(params: Params, run: Run) -> Finding:
    """What the planner counts for training, against a card or this computer's free memory."""
    wanted = device_memory.needed(run)
    ways = "; ".join(device_memory.ways_to_fit(run)) or "take a lower index.resolution"
    if run.target == "Ascend":
        found = f"training takes {wanted / GB:.1f} GB of each NPU, by the planner"
        if device_memory.fits(run):
            return Finding("memory", GOOD, f"{found}, of {device_memory.CARD // GB}")
        return Finding("memory", BAD, found, f"{device_memory.room(run) / GB:.0f} GB at most", f"Would fit with {ways}")
    wanted *= params.device.workers
    found = f"{_free_memory() / GB:.1f} GB are free and training takes {wanted / GB:.1f}, by the planner"
    if wanted <= _free_memory():
        return Finding("memory", GOOD, found)
    lacks = (wanted - _free_memory()) / GB
    do = "End other programs, or lower train.batch_size or device.workers"
    return Finding("memory", BAD, found, f"{lacks:.1f} GB more", do)


def _free_memory() -> int:
    """Of this computer, or of the container that this process is in."""
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text) - int(used.read_text()))
    return max(free, 0)
