"""Index and caches on a Ray cluster of two nodes without a shared disk, whose processes are killed:

    python -m tests.cache.kill_nodes [--kills 6]

The nodes are network namespaces of this computer with an address each. The second has the NPUs that the caches' workers
want (no process uses them), and sees neither the project nor its pictures nor the first node's store: a mount namespace
hides them. While each stage runs, processes of workers and Ray's own (the raylet, which is then started again) are
killed at random moments. The outs must be byte for byte those of one computer. It wants root, iproute2 (`ip`) and Ray,
so pytest does not run it."""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cache.kill_cache import environment, make_project
from tests.training.two_nodes import NODES, network

FIRST, SECOND = NODES
STAGES = {"index": "outs/index", "cache_latents": "outs/latents", "cache_text": "outs/text"}
RAY = Path(sys.executable).parent / "ray"
_LIMITS = ["--object-store-memory=100000000", "--num-cpus=2", "--block"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6, help="in each stage")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, killed = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        project = top / "project"
        make_project(project)
        wanted = {stage: made(project, stage) for stage in STAGES}
        params = project / "params.yaml"
        params.write_text(params.read_text().replace("cluster: null", f"cluster: {NODES[FIRST]}:6379"))
        with network(), nodes(top) as start_second:
            for stage, out in STAGES.items():
                shutil.rmtree(project / ".store")
                shutil.rmtree(project / out)
                run = subprocess.Popen([*inside(FIRST), sys.executable, "-m", f"stages.{stage}"], cwd=project,
                                       env=environment(project), stderr=subprocess.PIPE, text=True)  # fmt: skip
                kills = 0
                while run.poll() is None and kills < args.kills:
                    time.sleep(draw.uniform(1, 8))
                    kills += kill(draw, start_second)
                said = run.communicate()[1]
                assert run.returncode == 0, said
                assert bytes_of(project / out) == wanted[stage], f"{stage}: other bytes"
                print(f"{stage}: {kills} kills, the bytes of one computer", flush=True)
                killed += kills
    print(f"two nodes without a shared disk, {killed} kills: nothing was lost")


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


def kill(draw: random.Random, start_second) -> bool:
    """A worker of the second node, or all of the node, which comes again. Whether there was one."""
    workers = []
    for pid in pids(SECOND):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            workers += [pid] if command.startswith((b"ray::_Actor", b"ray::_call")) else []
    if not workers:
        return False
    if draw.random() < 0.3:
        end(SECOND)
        start_second()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(workers), signal.SIGKILL)
    return True


if __name__ == "__main__":
    main()
