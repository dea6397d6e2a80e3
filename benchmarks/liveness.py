"""The memory of a step's graph for an NPU, by replaying MindSpore's order of its kernels, against the planner's:
python -m benchmarks.liveness [--config tiny] [--side 32] [--batch 8] [--recompute] [--adapter lora]

Compiled on a CPU as by benchmarks/kernels.py --npu. Two orders are replayed: the one in which MindSpore lists the
graph when it chooses kernels, where this CPU stops, and which makes what is wanted as late as can be; and the one in
which its runtime runs kernels unless it is told otherwise (exec_order "bfs": each as soon as its inputs are there). A
tensor lives from the kernel that makes it to the last that reads it. Weights, moments and inputs are not in it,
workspaces neither. The graph is a whole step: a gradient is let go when it is unscaled."""

import argparse
from collections import Counter, deque

from benchmarks.kernels import Node, npu_step
from pipeline.models.config import CONFIGS
from pipeline.planning import step, unet
from pipeline.weights.adapters.kinds import KINDS

_VIEWS = {"Depend", "Load", "Reshape", "Identity", "Return"}  # of their first input
_IN_PLACE = {"UpdateState", "Assign", "AssignAdd", "AdamW"}
Buffer = tuple[str, int]  # a node's output


def largest(nodes: dict[str, Node]) -> dict[str, Node]:
    """Those of the largest graph among them."""
    graph = Counter(name.rpartition("%")[0] for name in nodes).most_common(1)[0][0]
    return {name: node for name, node in nodes.items() if name.rpartition("%")[0] == graph}


def as_soon_as_ready(nodes: dict[str, Node]) -> dict[str, Node]:
    """The nodes of one graph, first those without inputs and then each when its last input came, first in first out
    (as KernelGraph::SetExecOrderByDefault)."""
    wanted = {name: {other for other in node.inputs if other in nodes} for name, node in nodes.items()}
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for name, inputs in wanted.items():
        for other in inputs:
            readers[other].append(name)
    ready, found = deque(name for name, inputs in wanted.items() if not inputs), {}
    while ready:
        name = ready.popleft()
        found[name] = nodes[name]
        for reader in readers[name]:
            wanted[reader].remove(name)
            if not wanted[reader]:
                ready.append(reader)
    return found


def lives(nodes: dict[str, Node]) -> list[int]:
    """Bytes in memory at each node of the largest graph among them, in their order."""
    order = list(largest(nodes).items())
    outputs: dict[str, list[set[Buffer]]] = {}  # of each name: the buffers that each output stands for
    last: dict[Buffer, int] = {}

    def whole(name: str) -> set[Buffer]:
        return set().union(*outputs.get(name, ()))

    for place, (name, node) in enumerate(order):
        first = node.inputs[0] if node.inputs else ""
        forwards = True
        if node.kind in _VIEWS:
            outputs[name] = outputs.get(first, [])
        elif node.kind == "TupleGetItem":
            found = outputs.get(first, [])
            outputs[name] = [found[node.item]] if node.item < len(found) else []
        elif node.kind == "MakeTuple":
            outputs[name] = [whole(other) for other in node.inputs]
        elif node.kind in _IN_PLACE:
            outputs[name], forwards = [], node.kind == "UpdateState"
        else:
            outputs[name], forwards = [{(name, item)} for item in range(len(node.made))], False
            last |= {(name, item): place for item in range(len(node.made))}
        if not forwards or node.kind == "Return":
            last |= dict.fromkeys(set().union(*map(whole, node.inputs)), place)
    ends: dict[int, list[Buffer]] = {}
    for buffer, place in last.items():
        ends.setdefault(place, []).append(buffer)
    found, live = [], 0
    for place, (name, node) in enumerate(order):
        live += sum(size for item, size in enumerate(node.made) if (name, item) in last)
        found.append(live)
        live -= sum(nodes[other].made[item] for other, item in ends.get(place, ()))
    return found


def planned(config: str, side: int, batch: int, recompute: bool, adapts: bool) -> int:
    blocks = unet.blocks(CONFIGS[config].unet, batch, side, side, 2, "flash")
    if adapts:
        return step.peak(map(step.frozen, blocks), recompute, 0).together
    return step.peak(blocks, recompute, 4).together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny", choices=sorted(CONFIGS))
    parser.add_argument("--side", type=int, default=32, help="of the latents")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--recompute", action="store_true", help="train.gradient_checkpointing")
    parser.add_argument("--adapter", default="none", choices=["none", *KINDS], help="train.adapter")
    options = parser.parse_args()
    wanted = options.config, options.side, options.batch, options.recompute
    nodes, _ = npu_step(*wanted, options.adapter)
    count = planned(*wanted, options.adapter != "none")
    for order, found in ("as listed", nodes), ("as soon as ready", as_soon_as_ready(largest(nodes))):
        most = max(lives(found))
        print(f"planned {count / 1e6:.1f} MB, replayed {order} {most / 1e6:.1f} MB: {count / most:.2f} times")


if __name__ == "__main__":
    main()
