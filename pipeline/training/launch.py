"""Starting the ranks of a run, each run in its turn. Imports no MindSpore."""

import contextlib
import ctypes
import errno
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import locks, npu
from pipeline.params import Device
from pipeline.stage import PROJECT, UNDER_STAGE, StageError

_PR_SET_PDEATHSIG = 1
_SHOWN = 25  # lines of a failed rank's log that the error shows
_MASTER_WAIT = 600  # seconds that the processes of a run wait for each other
_PORT_WAIT = 20  # seconds
_REASONS = {
    errno.EADDRINUSE: "another process has this port",
    errno.EADDRNOTAVAIL: "it is no address of this computer (`ip address` lists them)",
    errno.EACCES: "a port below 1024 is root's",
}
# what msrun of MindSpore 2.10.0 says of it
_RANK_FAILED = re.compile(rb"Worker process \d+ exit with exception\. Error code: (-?\d+)")


class RankKilled(StageError):
    """A signal ended a rank: no fault of the training's."""


def inside() -> bool:
    """Whether this process was started as a rank: by msrun, by mpirun, or with a rank table."""
    return any(os.environ.get(name) for name in ("MS_ROLE", "OMPI_COMM_WORLD_SIZE", "RANK_TABLE_FILE"))


def target(device: Device) -> str:
    """The device that will be used, "CPU" or "Ascend". Raises StageError when this machine has none for each process
    that it is to start."""
    return npu.target(device.target, 1 if inside() else device.workers)


def kernels(device: Device, target: str) -> dict:
    """The kinds of kernels that a training on `target` is of."""
    return {
        "target": target,
        "attention": device.attention,
        "jit_level": device.jit_level,
        "deterministic": npu.deterministic(device.deterministic, target),
    }


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
    if UNDER_STAGE in os.environ:
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
        return device.master if device.nodes > 1 and device.cluster is None else f"PID {os.getpid()}"
    if "MS_SCHED_HOST" in os.environ:
        return f"{os.environ['MS_SCHED_HOST']}:{os.environ.get('MS_SCHED_PORT')}"
    return os.environ.get("PMIX_NAMESPACE") or os.environ.get("RANK_TABLE_FILE") or ""


def check_master(device: Device) -> None:
    """Raises StageError when the ranks could not find each other at device.master, and would wait until they give up."""
    host, _, port = device.master.rpartition(":")
    found = f"device.master is {device.master}"
    wanted = "wanted an address of node 0 that all nodes can reach, or a name of it, and a free port: 10.0.0.1:8119"
    if device.nodes == 1:
        wanted = "wanted an address of node 0, which is this computer, and a free port: 127.0.0.1:8119"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # the latter for what is no host's name
        raise StageError(f"{found}, and no address of {host} is known on this computer ({error}); {wanted}") from None
    if device.nodes > 1 and ipaddress.ip_address(address[0]).is_loopback:
        raise StageError(
            f"{found}, and {host} means {address[0]} on this computer (/etc/hosts?), which no other can reach; {wanted}"
        )
    if device.node_rank == 0 and (reason := _cannot_listen(family, address)):
        raise StageError(f"{found}, and node 0, which is this computer, cannot listen there: {reason}; {wanted}")


def _cannot_listen(family: socket.AddressFamily, address: tuple) -> str | None:
    """Why, or None. The processes of a run that was killed just now are given time to end."""
    until = time.monotonic() + _PORT_WAIT
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended keep no port
            try:
                probe.bind(address)
                return None
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                    return _REASONS.get(error.errno, error.strerror)
        time.sleep(0.2)


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
    """As `ranks`. Raises StageError also for a device.master at which nodes cannot meet."""
    check_master(device)
    ranks(device, script, logs)


def ranks(device: Device, script: list[str], logs: Path) -> None:
    """Run `script` on all ranks of this node and wait; rank 0's progress is passed on. The ranks end with this process.

    Raises StageError with the end of the failed rank's log; RankKilled where that was a signal."""
    if device.nodes > 1:  # they may share the folder
        logs = logs / f"node_{device.node_rank}"
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    environment = {
        **os.environ,
        UNDER_STAGE: "1",
        # msrun starts the `python` of PATH, and a script's own folder stands for the project's in sys.path
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]),
    }
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(logs / f"worker_{device.node_rank * device.workers}.log", ended))
    follower.start()
    try:
        with open(logs / "msrun.log", "wb") as output:
            line = command(device, script, logs)
            with subprocess.Popen(
                line, env=environment, stdout=output, stderr=output, preexec_fn=_die_with_parent
            ) as run:
                try:
                    failed = _wait(run, logs / "msrun.log", device.nodes)
                except BaseException:  # KeyboardInterrupt too
                    run.kill()
                    raise
    finally:
        ended.set()
        follower.join()
    if failed:
        text, code = _failure(logs, script[0]), _RANK_FAILED.search((logs / "msrun.log").read_bytes())
        # a rank that ends while others wait for it in a collective may make them crash
        killed = code and code[1].startswith(b"-") and not says_why(text, script[0])
        raise (RankKilled if killed else StageError)(f"a training process failed; its log is in {logs}\n{text}")


def _wait(run: subprocess.Popen, log: Path, nodes: int) -> bool:
    """Whether a rank failed. msrun then ends the other ranks of its node at once, and waits until the scheduler has heard
    nothing of them for MS_NODE_TIMEOUT; where no other node is there to be told, that is cut short."""
    with open(log, "rb") as said:
        line = b""
        while run.poll() is None:
            *lines, line = (line + said.read()).split(b"\n")
            if nodes == 1 and any(map(_RANK_FAILED.search, lines)):
                run.send_signal(signal.SIGINT)  # it kills the scheduler, and ends with 0
                run.wait()
                return True
            time.sleep(0.2)
    return run.returncode != 0


def _die_with_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray's processes block SIGINT, by which `_wait` ends msrun
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


def says_why(text: str, script: str) -> bool:
    """Whether in the log of a rank that ran `script` the stage itself says what is wrong."""
    return f"{Path(script).name}: " in text


def _failure(logs: Path, script: str) -> str:
    """The end of the log of the rank that says most about the failure: the script's own message, else a traceback."""
    texts = {path.name: path.read_text(errors="replace").splitlines() for path in sorted(logs.glob("worker_*.log"))}
    for says in (lambda line: says_why(line, script), lambda line: "Traceback (most recent call last)" in line):
        for name, lines in texts.items():
            if any(map(says, lines)):
                return "\n".join([f"{name}:", *lines[-_SHOWN:]])
    return "\n".join(["msrun.log:", *(logs / "msrun.log").read_text(errors="replace").splitlines()[-_SHOWN:]])
