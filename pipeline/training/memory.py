"""What training keeps on a device from step to step, in exact bytes. Plain numbers; imports no MindSpore.

What a step needs beside it is estimated, in pipeline/planning."""

from math import prod

FLOAT32, FLOAT16 = 4, 2
BUCKET = 256 * 2**20  # bytes of gradients or weights, counted as float32, that one collective or turn takes
Shapes = dict[str, tuple[int, ...]]


def sharded(shape: tuple[int, ...], ranks: int) -> bool:
    """Whether ZeRO-1 cuts a parameter of this shape into slices of its first axis. The others (vectors, and first axes
    that do not divide: less than a thousandth of SDXL) are kept whole on each rank, which costs less than sending
    them."""
    return ranks > 1 and len(shape) > 1 and shape[0] % ranks == 0


def parameters(shapes: Shapes, param_fp16: bool) -> int:
    """Bytes of the weights; norms stay float32. `shapes` are of MindSpore's names, whose norms have gamma and beta."""
    return sum(
        prod(shape) * (FLOAT16 if param_fp16 and not is_norm(name) else FLOAT32) for name, shape in shapes.items()
    )


def is_norm(name: str) -> bool:
    return name.endswith((".gamma", ".beta"))


def optimizer(shapes: Shapes, kind: str, ranks: int) -> int:
    """Bytes of the optimizer's state on one rank; `ranks` > 1 when it is sharded over that many. The step count is one
    of the numbers."""
    if kind == "adafactor":
        return FLOAT32 * (1 + sum(shape[0] + (prod(shape[1:]) if len(shape) > 1 else 1) for shape in shapes.values()))
    return FLOAT32 * (1 + sum(2 * prod(shape) // (ranks if sharded(shape, ranks) else 1) for shape in shapes.values()))


def in_float32(shapes: Shapes) -> int:
    """Bytes of the EMA, or of the totals of micro-batches' gradients."""
    return FLOAT32 * sum(map(prod, shapes.values()))
