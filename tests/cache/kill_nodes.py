"""Index and caches on a Ray cluster of two nodes without a shared disk, whose processes are killed:

    python -m tests.cache.kill_nodes [--kills 2]

The nodes are network namespaces of this computer with an address each. The second has the NPUs that the caches' workers
want (no process uses them), and sees neither the project nor its pictures nor the first node's store: a mount namespace
hides them. While each stage runs, workers, the raylet and all that is the node's are killed at random moments, and what is Ray's is
started again; a stage is run from an empty store until each kind had --kills. The outs must be byte for byte those of one
computer. It wants root, iproute2 (`ip`) and Ray, so pytest does not run it."""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.cache.kill_cache import environment, make_project
from tests.training.two_nodes import NODES, network

FIRST, SECOND = NODES
STAGES = {"index": "outs/index", "cache_latents": "outs/latents", "cache_text": "outs/text"}
RAY = Path(sys.executable).parent / "ray"
RAYLET = rb"\S*/raylet/raylet\0"  # Ray's own process on each node
KINDS = ("worker", "raylet", "node")
_LIMITS = ["--object-store-memory=100000000", "--num-cpus=2", "--block"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2, help="of each kind, in each stage")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        project = top / "project"
        make_project(project)
        wanted = {stage: made(project, stage) for stage in STAGES}
        params = project / "params.yaml"
        params.write_text(params.read_text().replace("cluster: null", f"cluster: {NODES[FIRST]}:6379"))
        with network(), nodes(top) as start_second:
            for stage in STAGES:
                kills, runs = Counter(), 0
                while not runs or min(kills[kind] for kind in KINDS) < args.kills:
                    run(project, stage, kills, args.kills, draw, start_second)
                    assert bytes_of(project / STAGES[stage]) == wanted[stage], f"{stage}: other bytes"
                    runs += 1
                said = ", ".join(f"{kills[kind]} of a {kind}" for kind in KINDS)
                print(f"{stage}: killed {said} in {runs} runs: the bytes of one computer", flush=True)


def run(project: Path, stage: str, kills: Counter, most: int, draw: random.Random, start_second) -> None:
    """One run of a stage, from an empty store, beside the kills that are still to be done, which it counts in `kills`."""
    shutil.rmtree(project / ".store", ignore_errors=True)
    shutil.rmtree(project / STAGES[stage], ignore_errors=True)
    work = subprocess.Popen([*inside(FIRST), sys.executable, "-m", f"stages.{stage}"], cwd=project,
                            env=environment(project), stderr=subprocess.PIPE, text=True)  # fmt: skip
    while work.poll() is None:
        time.sleep(draw.uniform(1, 8))
        kind = min(KINDS, key=kills.__getitem__)
        if kills[kind] < most:
            kills[kind] += kill(kind, draw, start_second)
    said = work.communicate()[1]
    assert work.returncode == 0, said


def made(project: Path, stage: str) -> dict[str, bytes]:
    subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=project, env=environment(project), check=True)
    return bytes_of(project / STAGES[stage])


def bytes_of(out: Path) -> dict[str, bytes]:
    """But for the report, which says when it was written."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix != ".html"}


def inside(node: str) -> list[str]:
    return ["ip", "netns", "exec", node]


@contextlib.contextmanager
def nodes(top: Path) -> Iterator:
    """Ray on both. Gives a function that starts it on the second one again."""
    own = top / "second"
    own.mkdir()
    common = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    first = [*inside(FIRST), str(RAY), "start", "--head", f"--node-ip-address={NODES[FIRST]}", "--port=6379",
             f"--temp-dir={top / 'ray'}", "--include-dashboard=false", *_LIMITS]  # fmt: skip
    second = [str(RAY), "start", f"--address={NODES[FIRST]}:6379", f"--node-ip-address={NODES[SECOND]}",
              "--resources='{\"NPU\": 2}'", *_LIMITS]  # fmt: skip
    hidden = f"mount -t tmpfs none {top / 'project'} && mount -t tmpfs none {top / 'ray'} && exec {' '.join(second)}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    started = []

    def start_second() -> None:
        environment = {**common, "PIPELINE_STORE": str(own / "store"), "ENCODED": str(own / "encoded.log")}
        command = [*inside(SECOND), "unshare", "--mount", "sh", "-c", hidden]
        started.append(subprocess.Popen(command, cwd=own, env=environment, **quiet))

    environment = {**common, "PIPELINE_STORE": str(top / "store"), "ENCODED": str(top / "encoded.log")}
    started.append(subprocess.Popen(first, env=environment, **quiet))
    try:
        time.sleep(20)  # until the first one listens
        start_second()
        yield start_second
    finally:
        for node in NODES:
            end(node)
        for process in started:
            process.wait()


def pids(node: str) -> list[int]:
    return [int(pid) for pid in subprocess.check_output(["ip", "netns", "pids", node], text=True).split()]


def end(node: str) -> None:
    for pid in pids(node):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill(kind: str, draw: random.Random, start_second) -> bool:
    """A worker of the second node, Ray's raylet there, or all of the node. Whether there was a worker, at work or about to be."""
    workers = processes(SECOND, rb"ray::(_Actor|_call)")
    if not workers:
        return False
    if kind == "node":
        end(SECOND)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(workers if kind == "worker" else processes(SECOND, RAYLET)), signal.SIGKILL)
    if kind != "worker":
        start_second()
    return True


def processes(node: str, command: bytes) -> list[int]:
    """Those of a node whose command begins so: a pattern."""
    found = []
    for pid in pids(node):
        with contextlib.suppress(OSError):
            if re.match(command, Path(f"/proc/{pid}/cmdline").read_bytes()):
                found.append(pid)
    return found


if __name__ == "__main__":
    main()
