"""Starting the ranks of a run, each run in its turn. Imports no MindSpore."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import locks, npu
from pipeline.params import Device
from pipeline.stage import PROJECT, StageError

_PR_SET_PDEATHSIG = 1
_SHOWN = 25  # lines of a failed rank's log that the error shows
_MASTER_WAIT = 600  # seconds that the processes of a run wait for each other
_UNDER_LOCK = "TRAIN_UNDER_LOCK"  # set for ranks whose launcher has the training's lock


def inside() -> bool:
    """Whether this process was started as a rank: by msrun, by mpirun, or with a rank table."""
    return any(os.environ.get(name) for name in ("MS_ROLE", "OMPI_COMM_WORLD_SIZE", "RANK_TABLE_FILE"))


def target(device: Device) -> str:
    """The device that will be used, "CPU" or "Ascend". Raises StageError when this machine has none for each process
    that it is to start."""
    return npu.target(device.target, 1 if inside() else device.workers)


def world_size(device: Device) -> int:
    """How many ranks train together: as the launcher of this rank says, else as params.yaml does."""
    names = ("MS_WORKER_NUM", "OMPI_COMM_WORLD_SIZE", "RANK_SIZE") if inside() else ()
    found = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return int(found) if found.isdecimal() else device.workers * device.nodes


def first(device: Device) -> bool:
    """Whether this process is the one of its run that makes the outs, or starts the rank that does."""
    if not inside():
        return device.node_rank == 0
    names = ("RANK_ID", "OMPI_COMM_WORLD_RANK")
    rank = next((os.environ[name] for name in names if os.environ.get(name)), "0")
    return rank == "0" and os.environ.get("MS_ROLE") != "MS_SCHED"


@contextlib.contextmanager
def turn(training: str, device: Device) -> Iterator[None]:
    """One run at a time is at the training of this name; wait while another is. It comes before MindSpore's `init`, in
    which the ranks wait for each other for minutes only.

    The run's first process holds the lock for all of them. Ranks that something else than `start` has started, and
    further nodes, only wait until no other run has it."""
    name = f"train-{training}"
    if _UNDER_LOCK in os.environ:
        yield
    elif first(device):
        with locks.lock(name, "trains the same", _job(device)):
            yield
    else:
        locks.wait_for_others(name, "trains the same", _job(device))
        yield


def _job(device: Device) -> str:
    """Names the run, in each of its processes."""
    if not inside():
        return device.master if device.nodes > 1 else f"PID {os.getpid()}"
    if "MS_SCHED_HOST" in os.environ:
        return f"{os.environ['MS_SCHED_HOST']}:{os.environ.get('MS_SCHED_PORT')}"
    return os.environ.get("PMIX_NAMESPACE") or os.environ.get("RANK_TABLE_FILE") or ""


def command(device: Device, script: list[str], logs: Path) -> list[str]:
    """msrun's command line for this node. `script` is a Python file and its arguments."""
    address, port = device.master.rsplit(":", 1)
    return [
        str(Path(sys.executable).parent / "msrun"),
        f"--worker_num={device.workers * device.nodes}",
        f"--local_worker_num={device.workers}",
        f"--node_rank={device.node_rank}",
        f"--master_addr={address}",
        f"--master_port={port}",
        f"--log_dir={logs}",
        f"--cluster_time_out={_MASTER_WAIT}",
        "--join=True",
        # kernels are launched from the host, which loses time where its threads move between cores
        *(["--bind_core=True"] if target(device) == "Ascend" else []),
        *script,
    ]


def start(device: Device, script: list[str], logs: Path) -> None:
    """Run `script` on all ranks of this node and wait; rank 0's progress is passed on. The ranks end with this process.

    Raises StageError with the end of the failed rank's log."""
    if device.nodes > 1:  # they may share the folder
        logs = logs / f"node_{device.node_rank}"
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    environment = {
        **os.environ,
        _UNDER_LOCK: "1",
        # msrun starts the `python` of PATH, and a script's own folder stands for the project's in sys.path
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]),
    }
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(logs / f"worker_{device.node_rank * device.workers}.log", ended))
    follower.start()
    try:
        with open(logs / "msrun.log", "wb") as output:
            run = subprocess.run(
                command(device, script, logs),
                env=environment,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,
            )
    finally:
        ended.set()
        follower.join()
    if run.returncode:
        raise StageError(f"a training process failed; its log is in {logs}\n{_failure(logs, script[0])}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _follow(path: Path, ended: threading.Event) -> None:
    """Copy what is appended to `path` to stderr."""
    position = 0
    while True:
        last = ended.is_set()
        if path.exists():
            with open(path, "rb") as file:
                file.seek(position)
                text = file.read()
            position += len(text)
            sys.stderr.buffer.write(text)
            sys.stderr.flush()
        if last:
            return
        time.sleep(0.2)


def _failure(logs: Path, script: str) -> str:
    """The end of the log of the rank that says most about the failure: the script's own message, else a traceback."""
    texts = {path.name: path.read_text(errors="replace").splitlines() for path in sorted(logs.glob("worker_*.log"))}
    for mark in (f"{Path(script).name}: ", "Traceback (most recent call last)"):
        for name, lines in texts.items():
            if any(mark in line for line in lines):
                return "\n".join([f"{name}:", *lines[-_SHOWN:]])
    return "\n".join(["msrun.log:", *(logs / "msrun.log").read_text(errors="replace").splitlines()[-_SHOWN:]])
