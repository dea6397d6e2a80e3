"""Training on two nodes, which are network namespaces of this machine with an address each:

    python -m tests.training.two_nodes

Each has a folder of its own and they share a store, as docs/sdxl-on-npus.md says. Their two ranks each are killed after step
3, go on when both nodes are started again, and end as one rank with the whole batch does. With another learning
rate on node 1, or a store of its own, both stop and say so. It wants root and iproute2 (`ip`), so pytest does not
run it."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.training.test_distributed import SETTINGS, assert_close, outcome
from tests.training.test_resume import environment, train
from tests.training.training_samples import write_stub, write_workspace

NODES = {"train-node-0": "10.77.0.1", "train-node-1": "10.77.0.2"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    try:
        for number, (name, address) in enumerate(NODES.items()):
            ip("netns", "add", name)
            if not number:
                ip("-n", name, "link", "add", "link0", "type", "veth", "peer", "name", "link1")
            else:
                ip("-n", next(iter(NODES)), "link", "set", "link1", "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"link{number}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"link{number}", "up")
        yield
    finally:
        for name in NODES:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def workspace_in(folder: Path) -> Path:
    workspace = write_workspace(folder, 30, ((64, 64), (64, 32)))
    write_stub(workspace / "outs/convert/unet.ckpt")
    return workspace


def train_on_both(
    workspaces: list[Path], stores: list[Path], *arguments: str, on_node_1: tuple[str, ...] = ()
) -> list[tuple[int, str]]:
    """(exit code, what was said) of each node"""
    runs = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "tests.training.training_samples", "stub", *arguments]
            + ["device.workers=2", "device.nodes=2", f"device.node_rank={number}"]
            + [f"device.master={NODES['train-node-0']}:8118", *(on_node_1 if number else ())],
            cwd=workspaces[number], env=environment(stores[number]), stderr=subprocess.PIPE, text=True,
        )
        for number, name in enumerate(NODES)
    ]  # fmt: skip
    said = [run.communicate()[1] for run in runs]
    return [(run.returncode, text) for run, text in zip(runs, said, strict=True)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, network():
        workspaces, shared = [workspace_in(Path(folder) / name) for name in NODES], [Path(folder) / "store"] * 2
        train(workspaces[0], Path(folder) / "alone", *SETTINGS, "train.batch_size=8")
        alone = outcome(workspaces[0])

        settings = [*SETTINGS, "train.batch_size=2", "train.shard_optimizer=true", "train.checkpointing_steps=3"]
        for code, said in train_on_both(workspaces, shared, "kill=step:3", *settings):
            assert code == 1 and "a training process failed" in said, (code, said)
        for code, said in train_on_both(workspaces, shared, *settings, on_node_1=("train.learning_rate=0.002",)):
            assert code == 1 and "rank 2, 3 on" in said and "train.learning_rate 0.001 -> 0.002" in said, (code, said)
        for code, said in train_on_both(workspaces, [shared[0], Path(folder) / "own"], *settings):
            assert code == 1 and "rank 2, 3 does not see the state that rank 0 has in" in said, (code, said)
        for code, said in train_on_both(workspaces, shared, *settings):
            assert code == 0 and "goes on after step 3" in said, (code, said)
        assert_close(outcome(workspaces[0]), alone)
        assert not (workspaces[1] / "outs/train").exists()
    print("two nodes of two ranks were killed, went on, and ended as one rank does")


if __name__ == "__main__":
    main()
