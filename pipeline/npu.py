"""The NPUs of this machine, as far as they can be known without MindSpore: from device files and the environment.

So a stage says which device it will use before it imports MindSpore, and device.py, which does, cannot say another."""

import itertools
import os
import re
from pathlib import Path
from typing import Literal

from pipeline.stage import StageError

FOLDER = Path("/dev")  # where the driver, or a container's runtime, puts a file for each NPU
# ASCEND_RT_VISIBLE_DEVICES by CANN's rule: numbers and commas, read up to what is anything else, or no NPU.
_NUMBERS = re.compile(r"\d+(?:,\d+)*")


def files() -> list[str]:
    """The device files of this machine's NPUs, by number: "/dev/davinci0", ..."""
    found = [path for path in FOLDER.glob("davinci*") if path.name.removeprefix("davinci").isdecimal()]
    return [str(path) for path in sorted(found, key=lambda path: int(path.name.removeprefix("davinci")))]


def count() -> int:
    """How many NPUs this process may use. They are numbered from 0, whichever of the machine's they are."""
    present, chosen = len(files()), os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if not chosen:
        return present
    listed = _NUMBERS.match(chosen)
    return len(list(itertools.takewhile(lambda n: int(n) < present, listed[0].split(",") if listed else ())))


def target(wish: str, workers: int = 1) -> str:
    """The device, "CPU" or "Ascend", that `workers` processes of this machine will use, each a device of its own.
    `wish`: device.target. Raises StageError when they cannot."""
    present = files()
    if wish == "CPU" or (wish == "auto" and not present):
        return "CPU"
    if not present:
        raise StageError(
            f"device.target: {wish}, but this machine shows no NPU: there is no {FOLDER}/davinci0. Look whether "
            "`npu-smi info` lists one, and in a container, whether it was started with its NPUs; or set device.target "
            "to auto or CPU"
        )
    if not count():
        raise StageError(f"device.target: {wish}, but {_shown()}; let it show some, or set device.target to CPU")
    if workers > count():
        raise StageError(f"device.workers: {workers}, but {_shown()}; wanted at most {count()}, one process for each")
    return "Ascend"


def deterministic(wish: bool | Literal["auto"], target: str) -> bool:
    """Whether kernels shall give the same bits each time. `wish`: device.deterministic; they cost little on a CPU."""
    return target == "CPU" if wish == "auto" else wish


def own() -> int:
    """The number of this process's NPU: DEVICE_ID, which launchers set for each process, or by its rank among plain
    processes. Raises StageError when there is no such NPU."""
    text, rank = os.environ.get("DEVICE_ID"), os.environ.get("RANK_ID") or "0"
    if text is None:
        if not rank.isdecimal():
            raise StageError(f"RANK_ID is {rank}; wanted a whole number")
        return int(rank) % count()
    if not text.isdecimal() or int(text) >= count():
        raise StageError(
            f"DEVICE_ID is {text}, but {_shown()}; wanted 0 to {count() - 1}. Each process that a stage starts has its "
            "own; set device.workers to no more than there are NPUs, or unset the variable"
        )
    return int(text)


def _shown() -> str:
    present, chosen = files(), os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    found = present[0] if len(present) == 1 else f"{present[0]} to {present[-1]}"
    shows = f"this machine has {len(present)} NPU{'s' * (len(present) > 1)} ({found})"
    return shows + (f", of which ASCEND_RT_VISIBLE_DEVICES={chosen} shows {count()}" if chosen else "")
