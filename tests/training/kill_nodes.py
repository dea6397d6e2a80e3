"""A training on a Ray cluster of three nodes without a shared disk, whose ranks and nodes are killed:

    python -m tests.training.kill_nodes [--kills 2]

The nodes are network namespaces of this computer with an address and a store each; the stage begins on the first, and
two others have a rank each, and see neither its workspace nor its store. While it runs, ranks, the actors that started them,
raylets and whole nodes are killed at random moments, --kills of each; what is Ray's is started again. The end must be one
process's with the whole batch, to rounding. It wants root, iproute2 (`ip`) and Ray, so pytest does not run it."""

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
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.cache.kill_nodes import RAY, RAYLET, end, inside, processes
from tests.training.test_distributed import SETTINGS, assert_close, outcome
from tests.training.test_resume import environment, train
from tests.training.training_samples import ROOT
from tests.training.two_nodes import workspace_in

NODES = {f"node-{number}": f"10.78.0.{number + 1}" for number in range(3)}
FIRST = next(iter(NODES))
# What is killed -> the command of what is there then.
KINDS = {"rank": rb"(?!.*msrun).*rank_on_stub\.py", "actor": rb"ray::Node", "raylet": RAYLET, "node": RAYLET}
STEPS = ["train.steps=40", "train.checkpointing_steps=3", "train.lr_scheduler=cosine"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, kills = random.Random(args.seed), Counter()
    with tempfile.TemporaryDirectory() as folder, network():
        top = Path(folder)
        workspace = workspace_in(top / "workspace")
        train(workspace, top / "alone", *SETTINGS, *STEPS, "train.batch_size=8")
        alone = outcome(workspace)
        with nodes(top) as start:
            while min(kills[kind] for kind in KINDS) < args.kills:
                run(top, workspace, draw, start, kills, args.kills)
                assert_close(outcome(workspace), alone)
                said = ", ".join(f"{kills[kind]} of a {kind}" for kind in KINDS)
                print(f"killed so far: {said}; one process's end", flush=True)


def run(
    top: Path, workspace: Path, draw: random.Random, start: Callable[[str], None], kills: Counter, most: int
) -> None:
    """One training, from the start, beside the kills that are still to be done, which it counts in `kills`."""
    subprocess.run(["rm", "-rf", top / "store/trained", top / "store/train", workspace / "outs/train"], check=True)
    settings = ["train.batch_size=4", "train.shard_optimizer=true", "device.nodes=2"]
    command = [sys.executable, "-m", "tests.training.training_samples", "stub", *SETTINGS, *STEPS, *settings]
    stage = subprocess.Popen(
        [*inside(FIRST), *command, f"device.cluster={NODES[FIRST]}:6379"],
        cwd=workspace, env=environment(top / "store"), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen = ""
    until = time.monotonic() + 1800
    while stage.poll() is None:
        assert time.monotonic() < until, "it hangs"
        time.sleep(draw.uniform(0.5, 3))
        newest = max((path.name for path in top.glob("store/train/*/step-*")), default="")
        kind = min(KINDS, key=kills.__getitem__)
        if newest > seen and kills[kind] < most and kill(kind, draw, start):  # one for each state, else it is given up
            kills[kind] += 1
            seen = newest
    said = stage.communicate()[1]
    assert stage.returncode == 0, said[-4000:]


def kill(kind: str, draw: random.Random, start: Callable[[str], None]) -> bool:
    """One of these on one of the nodes, whose Ray then comes again where it was killed. Whether there was one."""
    node = draw.choice([name for name in NODES if name != FIRST])
    found = processes(node, KINDS[kind])
    if not found:
        return False
    if kind == "node":
        end(node)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(found), signal.SIGKILL)
    if kind in ("node", "raylet"):
        start(node)
    return True


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
    """Ray on all, each with a store below `top`. Gives a function that starts it on one again. The first one has a clone
    of the project and its store, and is one of those that work; or it only begins `top`/workspace with `top`/store, and all
    have this project's modules. The others do not see what is the first one's."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    hidden = [top / "ray", *([clone] if clone else [top / "workspace", top / "store"])]
    started = []
    for folder in hidden:
        folder.mkdir(exist_ok=True)

    def start(name: str) -> None:
        own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
        own |= {"PIPELINE_STORE": str(clone / ".store" if clone and name == FIRST else top / f"store of {name}")}
        own |= {} if clone else {"PYTHONPATH": str(ROOT)}
        role = [
            "--head",
            "--port=6379",
            f"--temp-dir={top / 'ray'}",
            "--include-dashboard=false",
            f"--num-cpus={bool(clone):d}",
        ]
        if name != FIRST:
            role = [f"--address={NODES[FIRST]}:6379", "--num-cpus=1"]
        command = [str(RAY), "start", *role, f"--node-ip-address={NODES[name]}"]
        command += ["--object-store-memory=200000000", "--block"]
        if name != FIRST:
            mounts = "".join(f"mount -t tmpfs none {shlex.quote(str(folder))} && " for folder in hidden)
            command = ["unshare", "--mount", "sh", "-c", f"{mounts}exec {shlex.join(command)}"]
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
