"""What training keeps on a device from step to step, in exact bytes. Plain numbers; imports no MindSpore.

What a step needs beside it is estimated, in pipeline/planning."""

from collections.abc import Iterable
from math import ceil, prod

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT32 = SIZES["float32"]
BUCKET = 256 * 2**20  # bytes of gradients or weights, counted as float32, that one collective or turn takes
KEYS = 2**16  # random numbers by which those of an update differ from another's
PRODIGY_SLICE = 11  # of so many numbers Prodigy looks at one for its estimate, as prodigyopt advises
BLOCK, SMALL = 256, 4096  # numbers of a block in 8 bits, and parameters with fewer that stay float32 (bitsandbytes')
Shapes = dict[str, tuple[int, ...]]


def sharded(shape: tuple[int, ...], ranks: int) -> bool:
    """Whether ZeRO-1 cuts a parameter of this shape into slices of its first axis. The others (vectors, and first axes
    that do not divide: less than a thousandth of SDXL) are kept whole on each rank, which costs less than sending
    them."""
    return ranks > 1 and len(shape) > 1 and shape[0] % ranks == 0


def parameters(shapes: Shapes, dtype: str) -> int:
    """Bytes of the weights in `dtype`; norms stay float32. `shapes` are of MindSpore's names, whose norms have gamma and
    beta."""
    return sum(prod(shape) * (FLOAT32 if is_norm(name) else SIZES[dtype]) for name, shape in shapes.items())


def rounding_numbers(shapes: Iterable[tuple[int, ...]]) -> int:
    """Of the table that bfloat16 weights of these shapes are rounded by: the largest has a place from each offset on."""
    return max(map(prod, shapes)) + KEYS


def rounding(shapes: Shapes, dtype: str) -> int:
    """Bytes of the random numbers that weights in `dtype` are rounded by."""
    weights = [shape for name, shape in shapes.items() if not is_norm(name)]
    return 4 * (rounding_numbers(weights) + KEYS) if weights and dtype == "bfloat16" else 0


def is_norm(name: str) -> bool:
    return name.endswith((".gamma", ".beta"))


def in_8_bits(shape: tuple[int, ...]) -> bool:
    """Whether adamw8bit keeps a parameter's moments in 8 bits."""
    return prod(shape) >= SMALL


def optimizer(shapes: Shapes, kind: str, ranks: int) -> int:
    """Bytes of the optimizer's state on one rank; `ranks` > 1 when it is sharded over that many. The step count, and
    Prodigy's d and its numerator, are of the numbers."""
    return FLOAT32 + sum(_STATE[kind](shape, ranks) for shape in shapes.values()) + (2 * FLOAT32) * (kind == "prodigy")


def _adamw(shape: tuple[int, ...], ranks: int) -> int:
    return 2 * FLOAT32 * prod(shape) // (ranks if sharded(shape, ranks) else 1)


def _adamw8bit(shape: tuple[int, ...], ranks: int) -> int:
    return 2 * ceil(prod(shape) / BLOCK) * (BLOCK + FLOAT32) if in_8_bits(shape) else 2 * FLOAT32 * prod(shape)


def _lion(shape: tuple[int, ...], ranks: int) -> int:
    return FLOAT32 * prod(shape)


def _prodigy(shape: tuple[int, ...], ranks: int) -> int:
    return 2 * FLOAT32 * (prod(shape) + ceil(prod(shape) / PRODIGY_SLICE))


def _adafactor(shape: tuple[int, ...], ranks: int) -> int:
    return FLOAT32 * (shape[0] + (prod(shape[1:]) if len(shape) > 1 else 1))


_STATE = {"adamw": _adamw, "adamw8bit": _adamw8bit, "lion": _lion, "prodigy": _prodigy, "adafactor": _adafactor}


def in_float32(shapes: Shapes) -> int:
    """Bytes of the EMA, or of the totals of micro-batches' gradients."""
    return FLOAT32 * sum(map(prod, shapes.values()))
