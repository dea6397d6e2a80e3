"""The memory of a forward and backward pass over its time, from what each layer keeps and needs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Layer:
    """All in bytes, but `numbers`."""

    what: str  # as the plan names what it keeps
    kept: int  # from its forward to its backward pass; below 0 for what is let go in between (joined skips)
    forward: int  # beside that, while it runs forward
    backward: int  # beside that, while it runs backward: gradients of its output and input, temporaries
    numbers: int = 0  # of its parameters
    copies: int = 0  # of its weights in the compute dtype, kept as well
    late: int = 0  # of what its backward pass makes or reads: what waits to the end, for gradients of weights
    scratch: int = 0  # that its kernels keep for themselves from their first run on, as long as the graph is there


@dataclass(frozen=True)
class Block:
    layers: tuple[Layer, ...]
    inputs: int = 0  # bytes of its inputs
    recomputable: bool = False  # a unit of gradient checkpointing


@dataclass(frozen=True)
class Moment:
    """What is in memory at one time, in bytes."""

    kept: Counter  # what -> bytes
    gradients: int
    temporary: int

    @property
    def together(self) -> int:
        return self.kept.total() + self.gradients + self.temporary


def moments(blocks: Iterable[Block], recompute: bool, gradient: int) -> Iterable[Moment]:
    """Each layer's turn, forward and then backward; gradients of `gradient` bytes a number stay. With `recompute`
    recomputable blocks keep their inputs, and compute all else again when their backward pass comes."""
    blocks = list(blocks)
    kept: Counter = Counter()
    for block in blocks:
        inside: Counter = Counter()
        for layer in block.layers:
            yield Moment(kept + inside, 0, layer.forward)
            inside.update(_kept(layer))
        if recompute and block.recomputable:
            kept["inputs of recomputed blocks"] += block.inputs
        else:
            kept.update(inside)
    gradients = 0
    for block in reversed(blocks):
        if recompute and block.recomputable:
            kept["inputs of recomputed blocks"] -= block.inputs
            for layer in block.layers:
                kept.update(_kept(layer))
        for layer in reversed(block.layers):
            yield Moment(+kept, gradients, layer.backward)
            kept.subtract(_kept(layer))
            kept["gradients that wait for the weights' to be taken"] += layer.late
            gradients += layer.numbers * gradient
    yield Moment(+kept, gradients, 0)


def forward(blocks: Iterable[Block]) -> Counter:
    """What -> bytes of the fullest moment of a forward pass that no backward pass follows: skips wait for their joins,
    and weights in the compute dtype to the end (MindSpore makes what waits for nothing first)."""
    stays: Counter = Counter()
    fullest = Counter()
    for block in blocks:
        inside = 0
        for layer in block.layers:
            moment = stays + Counter({"a block": inside + layer.forward})
            fullest = max(fullest, moment, key=Counter.total)
            stays["weights in the compute dtype"] += layer.copies
            if layer.what == "skips":
                stays["skips"] += layer.kept
            else:
                inside += layer.kept
    return fullest


def frozen(block: Block) -> Block:
    """As it is where adapters are trained: its weights are of the computation's dtype by now."""
    return replace(block, layers=tuple(replace(layer, copies=0) for layer in block.layers))


def peak(blocks: Iterable[Block], recompute: bool, gradient: int) -> Moment:
    return max(moments(blocks, recompute, gradient), key=lambda moment: moment.together)


def _kept(layer: Layer) -> dict[str, int]:
    return {layer.what: layer.kept, "weights in the compute dtype": layer.copies}
