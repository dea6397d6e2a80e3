"""A training on a Ray cluster of three nodes without a shared disk, whose ranks and nodes are killed:

    python -m tests.training.kill_nodes [--kills 6]

The nodes are network namespaces of this computer with an address and a store each; the stage begins on the first, and
two others have a rank each. While it runs, ranks, the actors that started them and whole nodes are killed at random moments;
a node comes again. The end must be one process's with the whole batch, to rounding. It wants root, iproute2 (`ip`) and
Ray, so pytest does not run it."""

import argparse
import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.cache.kill_nodes import RAY, end, inside, pids
from tests.training.test_distributed import SETTINGS, assert_close, outcome
from tests.training.test_resume import environment, train
from tests.training.training_samples import ROOT
from tests.training.two_nodes import workspace_in

NODES = {f"node-{number}": f"10.78.0.{number + 1}" for number in range(3)}
FIRST = next(iter(NODES))
STEPS = ["train.steps=40", "train.checkpointing_steps=3", "train.lr_scheduler=cosine"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, kills = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder, network():
        top = Path(folder)
        workspace = workspace_in(top / "workspace")
        train(workspace, top / "alone", *SETTINGS, *STEPS, "train.batch_size=8")
        alone = outcome(workspace)
        with nodes(top) as start:
            while len(kills) < args.kills:
                kills += run(top, workspace, draw, start, args.kills - len(kills))
                assert_close(outcome(workspace), alone)
                print(f"{len(kills)} kills so far: one process's end", flush=True)
    print(f"three nodes without a shared disk, killed: {', '.join(kills)}; each run ended as one process does")


def run(top: Path, workspace: Path, draw: random.Random, start: Callable[[str], None], most: int) -> list[str]:
    """One training, from the start. Returns what was killed."""
    subprocess.run(["rm", "-rf", top / "store/trained", top / "store/train", workspace / "outs/train"], check=True)
    settings = ["train.batch_size=4", "train.shard_optimizer=true", "device.nodes=2"]
    command = [sys.executable, "-m", "tests.training.training_samples", "stub", *SETTINGS, *STEPS, *settings]
    stage = subprocess.Popen(
        [*inside(FIRST), *command, f"device.cluster={NODES[FIRST]}:6379"],
        cwd=workspace, env=environment(top / "store"), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    killed, seen = [], None
    until = time.monotonic() + 1800
    while stage.poll() is None:
        assert time.monotonic() < until, "it hangs"
        time.sleep(draw.uniform(0.5, 3))
        newest = max((path.name for path in top.glob("store/train/*/step-*")), default="")
        if newest > (seen or "") and len(killed) < most:  # one for each state, else it is given up
            if what := kill(draw, start):
                killed.append(what)
                seen = newest
    said = stage.communicate()[1]
    assert stage.returncode == 0, said[-4000:]
    return killed


def kill(draw: random.Random, start: Callable[[str], None]) -> str | None:
    """A rank or an actor of one of the nodes, or all of the node, which then comes again. Returns what it was, if there
    was one."""
    node = draw.choice([name for name in NODES if name != FIRST])
    kind = draw.choice(["rank", "actor", "node"])
    if kind == "node":
        end(node)
        start(node)
        return kind
    marks = {"rank": b"rank_on_stub.py", "actor": b"ray::Node"}
    found = [pid for pid in pids(node) if marks[kind] in command_of(pid) and b"msrun" not in command_of(pid)]
    if not found:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(found), signal.SIGKILL)
    return kind


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@contextlib.contextmanager
def network() -> Iterator[None]:
    """The namespaces, on a bridge in the first one."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for name in NODES:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", FIRST, "link", "add", "bridge", "type", "bridge")
        for number, (name, address) in enumerate(NODES.items()):
            ip("-n", FIRST, "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", FIRST, "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", FIRST, "link", "set", "bridge", "up")
        yield
    finally:
        for name in NODES:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@contextlib.contextmanager
def nodes(top: Path, clone: Path | None = None) -> Iterator[Callable[[str], None]]:
    """Ray on all, each with a store below `top`. Gives a function that starts it on one again. With a clone of the project
    the first one has its store, and the others do not see it; else all have this project's modules."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    started = []

    def start(name: str) -> None:
        own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
        own |= {"PIPELINE_STORE": str(clone / ".store" if clone and name == FIRST else top / f"store of {name}")}
        own |= {} if clone else {"PYTHONPATH": str(ROOT)}
        role = ["--head", "--port=6379", f"--temp-dir={top / 'ray'}", "--include-dashboard=false", "--num-cpus=0"]
        if name != FIRST:
            role = [f"--address={NODES[FIRST]}:6379", "--num-cpus=1"]
        command = [str(RAY), "start", *role, f"--node-ip-address={NODES[name]}"]
        command += ["--object-store-memory=200000000", "--block"]
        if clone and name != FIRST:
            hidden = f"mount -t tmpfs none {clone} && exec {shlex.join(command)}"
            command = ["unshare", "--mount", "sh", "-c", hidden]
        started.append(subprocess.Popen([*inside(name), *command], cwd=top, env={**os.environ, **own}, **quiet))

    try:
        for name in NODES:
            start(name)
            time.sleep(20 if name == FIRST else 5)  # until the first one listens
        yield start
    finally:
        for name in NODES:
            end(name)
        for process in started:
            process.wait()


if __name__ == "__main__":
    main()
