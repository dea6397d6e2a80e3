"""Kernels that a training step launches, by part and kind, in the graph that MindSpore compiles: python -m
benchmarks.kernels [--config tiny] [--side 8] [--batch 1] [--recompute] [--npu]

With --npu the graph is the one for an NPU: this machine's CPU lacks some of its kernels, so MindSpore stops behind
type inference and optimization, and the count is of the graph that it would hand to the device. Counted are
primitives: MindSpore may still insert casts, and fuse (jit level O1). What only forwards or views memory is no
kernel."""

import argparse
import contextlib
import math
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

RANK = 16
NO_KERNEL = {
    "Constant", "Load", "UpdateState", "Depend", "MakeTuple", "TupleGetItem", "Return", "Reshape", "Partial", "Switch",
    "Call", "Identity",
}  # fmt: skip
Kinds = Counter  # of (part, kind): part is forward, backward, recompute or update


class Node(NamedTuple):
    kind: str  # of primitive
    scope: str  # its place in the tree of cells
    inputs: list[str]  # names of nodes
    made: tuple[int, ...] = ()  # bytes of each output, where they were read
    item: int = 0  # of TupleGetItem: which


def counted(nodes: dict[str, Node]) -> Kinds:
    """Forward is what the loss depends on, whatever MindSpore calls it: a cell's own bprop has the cell's scope."""
    loss = [name for name, node in nodes.items() if node.scope.startswith("Default/scaled_loss-_ScaledLoss/Mul-op")]
    forward, ahead = set(), loss[-1:]
    while ahead:
        name = ahead.pop()
        if name in nodes and name not in forward:
            forward.add(name)
            ahead += nodes[name].inputs
    found: Kinds = Counter()
    for name, (kind, scope, *_) in nodes.items():
        if kind in NO_KERNEL or not kind.isidentifier():  # a call of a subgraph
            continue
        part = "recompute" if "recompute_" in scope else "update" if "/update-" in scope else "backward"
        found["forward" if name in forward else part, kind] += 1
    return found


def compiled(cell) -> Kinds:
    """Of a cell that was compiled for one set of shapes."""
    from mindspore.common.api import _cell_graph_executor
    from mindspore.train.mind_ir_pb2 import ModelProto

    (phase,) = cell.compile_cache
    model = ModelProto()
    model.ParseFromString(_cell_graph_executor._graph_executor.get_func_graph_proto(phase, "mind_ir"))
    primitives = {primitive.name: primitive.op_type for primitive in model.primitives}
    nodes = {}
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            kind = node.op_type.removeprefix("REF::")
            nodes[node.output[0]] = Node(primitives.get(kind, kind), node.domain, list(node.input))
    return counted(nodes)


_SIZES = {"Float16": 2, "BFloat16": 2, "Float32": 4, "Int32": 4, "Int64": 8, "Bool": 1, "UInt8": 1}


def _bytes(types: str) -> tuple[int, ...]:
    """Of each output, as MindSpore writes a node's types."""
    made = types.rsplit("->", 1)[-1]
    shapes = re.findall(r"\(([\d, ]*)\)", made)
    dtypes = []
    for dtype, count in re.findall(r"Tensor\[(\w+)\](?:\*(\d+))?", made):
        dtypes += [dtype] * int(count or 1)
    numbers = [math.prod(map(int, re.findall(r"\d+", shape))) for shape in shapes]
    return tuple(_SIZES.get(dtype, 4) * count for dtype, count in zip(dtypes, numbers, strict=False))


def dumped(folder: Path) -> Kinds:
    """Of the last graph that was compiled, as far as the choice of kernels, in a process with MS_DEV_SAVE_GRAPHS=1 and
    MS_DEV_SAVE_GRAPHS_PATH=folder."""
    return counted(dumped_nodes(folder))


def dumped_nodes(folder: Path) -> dict[str, Node]:
    """Of that graph, in MindSpore's order."""
    file = max(folder.rglob("*_backend_pass_*.ir"), key=lambda path: path.stat().st_mtime)
    nodes, graph, text, types = {}, "", "", ""
    for line in file.read_text().splitlines():
        if line.startswith("subgraph @"):
            graph = line
        elif re.match(r"  %\d+\(", line):
            text = line
        elif text and (scope := re.match(r"      # Fullname with scope: \((.*)\)", line)):
            name, kind, rest = re.match(r"  (%\d+)\([^)]*\) = (?:PrimFunc_)?([^(]+)(.*)", text).groups()
            inputs = rest.split(" cnode_attrs: ")[0].split(" primitive_attrs: ")[0]
            names = [graph + found for found in re.findall(r"%\d+", inputs)]
            item = re.search(r"I64\((\d+)\)", inputs) if kind == "TupleGetItem" else None
            nodes[graph + name] = Node(kind, scope[1], names, _bytes(types), int(item[1]) if item else 0)
            text = types = ""
        elif text and line.startswith("      :"):
            types += line
        elif text:
            text += line  # a constant's values
    return nodes


def report(kinds: Kinds) -> str:
    lines = []
    for part in sorted({part for part, _ in kinds}):
        own = Counter({kind: count for (where, kind), count in kinds.items() if where == part})
        lines.append(f"{part}: {own.total():,}")
        lines.append("  " + ", ".join(f"{kind} {count:,}" for kind, count in own.most_common()))
    return "\n".join([*lines, f"together: {kinds.total():,}"])


def train_step(config: str, side: int, batch: int, recompute: bool, adapter: str = "none"):
    """(the cell, its inputs) of a step in float32, or with an NPU's forms in float16 with loss scaling; of an adapter of this
    kind, of rank 16 in the layers that have one by default."""
    import pipeline.device

    import mindspore as ms
    import numpy as np

    from pipeline.models import forms
    from pipeline.models.adapters import attach
    from pipeline.models.config import CONFIGS
    from pipeline.models.layers import norm_parameters
    from pipeline.models.unet import UNet, recompute_blocks
    from pipeline.training.optimizers.adamw import AdamW
    from pipeline.training.optimizers.common import decays
    from pipeline.training.step import SampleLoss, Settings, TrainStep, Update
    from pipeline.training.targets import targets
    from pipeline.weights.adapters.extract import TARGETS

    pipeline.device.setup("CPU")
    npu = not forms.on_cpu()
    c = CONFIGS[config].unet
    dtype = ms.float16 if npu else ms.float32
    unet = UNet(c, "flash" if npu else "tiled", dtype, recompute and adapter == "none").set_train()
    if adapter != "none":
        norms = norm_parameters(unet)
        for parameter in unet.get_parameters():  # frozen, in the computation's dtype
            if parameter.name not in norms:
                parameter.set_dtype(dtype)
        chosen = targets({p.name: p.shape for p in unet.get_parameters()}, TARGETS, ())
        attach(unet, forms.chosen(), adapter, chosen, rank=RANK, alpha=float(RANK), factor=-1, seed=0)
        if recompute:
            recompute_blocks(unet)
    optimizer = AdamW(unet.trainable_params(), decays(unet), 0.01, 0.9, 0.999, 1e-8)
    settings = Settings(max_grad_norm=1.0, loss_scale=65536.0 if npu else None)
    cell = TrainStep(SampleLoss(unet, settings), Update(optimizer, None, settings))
    latents, context, vector = (batch, 4, side, side), (batch, 77, c.context_dim), (batch, c.vector_dim)
    arrays = [np.zeros(shape, np.float32) for shape in (latents, (batch,), context, vector, latents, (batch,))]
    return cell, [*map(ms.Tensor, arrays), ms.Tensor(0.0, ms.float32)]


@contextlib.contextmanager
def npu_forms():
    """Cells made in the block have an NPU's forms."""
    from pipeline.models import forms

    on_cpu, forms.on_cpu = forms.on_cpu, lambda: False
    try:
        yield
    finally:
        forms.on_cpu = on_cpu


@contextlib.contextmanager
def dumping():
    """Gives the folder where MindSpore leaves its graphs. Around MindSpore's import."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "MS_DEV_SAVE_GRAPHS": "1",
            "MS_DEV_SAVE_GRAPHS_PATH": folder,
            "MS_DEV_DUMP_IR_PASSES": "backend_pass",
        }
        yield Path(folder)


def stopped(cell, inputs: list, folder: Path) -> tuple[dict[str, Node], str]:
    """(the nodes of the graph of a cell in an NPU's form, in MindSpore's order; the kernel at which this CPU stops)."""
    try:
        cell.compile(*inputs)
    except RuntimeError as error:
        if lacks := re.search(r"Unsupported op \[(\w+)\]", str(error)):
            return dumped_nodes(folder), lacks[1]
        raise
    raise SystemExit("an NPU's graph was compiled to its end on this CPU: it is not an NPU's")


def npu_step(config: str, side: int, batch: int, recompute: bool, adapter: str = "none") -> tuple[dict[str, Node], str]:
    """`stopped` of a step. To be called in a process that has not imported MindSpore yet."""
    with dumping() as folder:
        import pipeline.device  # noqa: F401

        with npu_forms():
            return stopped(*train_step(config, side, batch, recompute, adapter), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--side", type=int, default=8, help="of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="train.gradient_checkpointing")
    parser.add_argument("--npu", action="store_true", help="an NPU's form of each layer, float16")
    options = parser.parse_args()
    wanted = options.config, options.side, options.batch, options.recompute
    if options.npu:
        nodes, lacks = npu_step(*wanted)
        print(report(counted(nodes)))
        print("this CPU has no kernel", lacks)
    else:
        cell, inputs = train_step(*wanted)
        cell.compile(*inputs)
        print(report(compiled(cell)))


if __name__ == "__main__":
    main()
