"""What the layers of models/cpu, a CPU's, keep for the backward pass and need beside it: planning/npu.py's functions,
in the forms of a process that trains (convolutions by products).

oneDNN copies an operand of a product into an order of its own, a block for each thread, and each product of a graph
has its scratchpad for that as long as the graph is there. The sizes are those that the library of MindSpore 2.10.0
names for AVX-512 (tests/planning/test_device_memory.py); with AVX2 it names none. Linear layers' and the gradients' norm's are counted; those of convolutions
and attention are a seventh of all, and about as much is never written to."""

from dataclasses import replace
from pathlib import Path

from pipeline.planning import npu
from pipeline.planning.npu import FLOAT32, TILE
from pipeline.planning.step import Layer

# As in models/cpu/convolution.py, whose module needs MindSpore: places from which Winograd's larger form is taken.
ENOUGH = 512
THREADS = 2  # of oneDNN, each with blocks of its own: those of the computer on which they were measured
SMALL = 2**23  # multiplications; fewer of few rows oneDNN does without a copy


def has_scratchpads() -> bool:
    """Whether oneDNN's products have them on this computer."""
    processor = Path("/proc/cpuinfo")
    return processor.exists() and "avx512f" in processor.read_text()


def group_norm(n: int, channels: int, size: int) -> Layer:
    """The input and the normalized input."""
    return Layer("norms", 2 * FLOAT32 * n, (FLOAT32 + size) * n, 4 * FLOAT32 * n, 2 * channels)


def layer_norm(n: int, channels: int, size: int) -> Layer:
    """The input, the normalized input and gamma for each row."""
    return Layer("norms", 3 * FLOAT32 * n, (FLOAT32 + size) * n, 4 * FLOAT32 * n, 2 * channels)


def silu(n: int, size: int) -> Layer:
    """The sigmoid and the output."""
    return Layer("SiLU: sigmoid, output", 2 * size * n, 2 * size * n, 4 * size * n)


def conv(batch: int, inputs: int, outputs: int, height: int, width: int, size: int, kernel=3, stride=1) -> Layer:
    places, made = batch * height * width, batch * (height // stride) * (width // stride)
    weights = outputs * inputs * kernel**2
    numbers = weights + outputs
    if kernel == 1:
        return Layer(
            "convolutions: inputs, weights", size * (places * inputs + batch * weights), size * made * outputs,
            size * (made * (inputs + outputs) + (batch + 1) * weights), numbers, npu._copies(numbers, size),
        )  # fmt: skip
    if stride > 1 or size != FLOAT32 or height % 2 or width % 2:
        columns, rows = kernel**2 * inputs * made, kernel**2 * outputs * places
        return Layer(
            "convolutions: columns, weights", size * (columns + weights), size * (places * inputs + made * outputs),
            size * (rows + 2 * weights + places * inputs + made * outputs), numbers, npu._copies(numbers, size),
        )  # fmt: skip
    m = 2 if height % 4 or width % 4 or places < ENOUGH else 4
    growth, tiles = (m + 2) ** 2 / 9, (m + 2) ** 2 / m**2  # of weights, of maps
    ins, outs = tiles * places * inputs, tiles * places * outputs
    return Layer(
        "convolutions: Winograd's tiles and weights", int(size * (ins + growth * weights)),
        int(size * (places * inputs + ins + outs + 2 * places * outputs)),
        int(size * (3 * outs + ins + 2 * growth * weights + places * inputs)), numbers,
    )  # fmt: skip


def linear(rows: int, inputs: int, outputs: int, size: int, bias: bool = True, shares: bool = False) -> Layer:
    layer = npu.linear(rows, inputs, outputs, size, bias, shares)
    return replace(layer, scratch=scratchpads(rows, inputs, outputs))


def scratchpads(rows: int, inputs: int, outputs: int) -> int:
    """Of the product x wᵀ and of that of the weights' gradient, whose operands are transposed; small products have
    none."""
    if rows < 1024 and rows * inputs * outputs < SMALL:
        return 0
    return THREADS * FLOAT32 * (64 * min(inputs, 512) + 256 * min(outputs, rows // 2, 512))


def norm_scratchpad(numbers: int) -> int:
    """Of the product of a matrix of weights' gradient with itself (kernels.SumOfSquares)."""
    return THREADS * FLOAT32 * 64 * min(numbers // 32, 1024)


transposed = npu.transposed


def attention(batch: int, queries: int, keys: int, channels: int, heads: int, kind: str, size: int) -> Layer:
    """A CPU has no flash attention; no tile of queries is smaller than TILE."""
    return npu.attention(batch, queries, keys, channels, heads, "plain" if queries <= TILE else kind, size)


def geglu(rows: int, width: int, size: int) -> Layer:
    """Value, gate, its square, Φ and GELU in float32."""
    n = rows * width
    return Layer("GEGLU: value, gate, square, Φ, GELU", 5 * FLOAT32 * n, (3 * size + FLOAT32) * n, 6 * FLOAT32 * n)


def upsample(n: int, size: int) -> Layer:
    return Layer("upsampling", 0, 6 * size * n, 7 * size * n)
