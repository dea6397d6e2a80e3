"""The memory of a step's graph for an NPU, by replaying MindSpore's order of its kernels, against the planner's:
python -m benchmarks.liveness [--config tiny] [--side 32] [--batch 8] [--recompute] [--adapter lora]
python -m benchmarks.liveness --update adamw [--config tiny] [--weights-dtype float32] [--bucket 4]

Compiled on a CPU as by benchmarks/kernels.py --npu. Two orders are replayed: the one in which MindSpore lists the
graph when it chooses kernels, where this CPU stops, and which makes what is wanted as late as can be; and the one in
which its runtime runs kernels unless it is told otherwise (exec_order "bfs": each as soon as its inputs are there). A
tensor lives from the kernel that makes it to the last that reads it. Weights, moments and inputs are not in it,
workspaces neither. The graph is a whole step: a gradient is let go when it is unscaled.

With --update it is the graph that follows the gradients: they are clipped, and an optimizer takes them, in turns of so
many MiB of float32 parameters (pipeline/training/memory.py has 256, above all of the tiny UNet)."""

import argparse
from collections import Counter, deque

from benchmarks.kernels import Node, dumped_nodes, dumping, npu_forms, npu_step
from pipeline.models.config import CONFIGS, UNetConfig
from pipeline.planning import device, step, unet
from pipeline.planning.run import Run
from pipeline.training import memory
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


def update_nodes(config: str, optimizer: str, dtype: str, bucket: int) -> dict[str, Node]:
    """Of the graph of an update on one NPU, whether this CPU has all of its kernels or not; weights are of `dtype`, norms
    in float32. To be called in a process that has not imported MindSpore yet."""
    with dumping() as folder:
        import pipeline.device

        import mindspore as ms

        from pipeline import params
        from pipeline.models.layers import norm_parameters
        from pipeline.models.unet import UNet
        from pipeline.training import build, parameter_buckets
        from pipeline.training.step import Apply, Settings, Update

        parameter_buckets.BYTES = bucket
        chosen = {"train.optimizer": optimizer, "train.weights_dtype": dtype}
        train = params.replaced(params.load(), chosen).train
        with npu_forms():
            unet = UNet(CONFIGS[config].unet, "flash", ms.bfloat16)
            norms = norm_parameters(unet)
            for parameter in unet.get_parameters():
                if parameter.name not in norms:
                    parameter.set_dtype(getattr(ms, dtype))
            made = build.optimizer(unet, pipeline.device.setup("CPU"), train)
            update = Update(made, None, Settings(max_grad_norm=1.0))
        scalar = ms.Tensor(0.0, ms.float32)
        gradients = [ms.Tensor(shape=p.shape, dtype=p.dtype) for p in update.parameters]
        try:
            Apply(update).compile(scalar, scalar, scalar, *gradients)
        except (RuntimeError, TypeError) as error:  # two ways in which MindSpore says that it has no kernel
            if "Unsupported op [" not in str(error) and "Select CPU operator[" not in str(error):
                raise
        return dumped_nodes(folder)


def planned_update(config: str, optimizer: str, dtype: str, bucket: int) -> int:
    memory.BUCKET = bucket
    run = Run(
        config, images=1, resolution=256, devices=1, batch_size=1, accumulation=1, steps=1, epochs=None,
        precision="bfloat16", weights_dtype=dtype, optimizer=optimizer, shard_optimizer=False, ema=False,
        gradient_checkpointing=True, attention="flash", latent_channels=8, chunks=1,
    )  # fmt: skip
    parts = device.update(run)
    return sum(parts.values()) - parts["gradients"]  # which are inputs


def planned(config: UNetConfig, side: int, batch: int, recompute: bool, adapts: bool) -> int:
    blocks = unet.blocks(config, batch, side, side, 2, "flash")
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
    parser.add_argument("--update", metavar="OPTIMIZER", help="train.optimizer: of the update alone")
    parser.add_argument("--weights-dtype", default="float32", choices=["float32", "bfloat16"], help="of the update")
    parser.add_argument("--bucket", type=float, default=4.0, help="MiB, of the update")
    options = parser.parse_args()
    if options.update:
        wanted = options.config, options.update, options.weights_dtype, int(options.bucket * 2**20)
        nodes, count = update_nodes(*wanted), planned_update(*wanted)
    else:
        wanted = options.config, options.side, options.batch, options.recompute
        nodes, _ = npu_step(*wanted, options.adapter)
        count = planned(CONFIGS[options.config].unet, *wanted[1:], options.adapter != "none")
    for order, found in ("as listed", nodes), ("as soon as ready", as_soon_as_ready(largest(nodes))):
        most = max(lives(found))
        print(f"planned {count / 1e6:.1f} MB, replayed {order} {most / 1e6:.1f} MB: {count / most:.2f} times")


if __name__ == "__main__":
    main()
