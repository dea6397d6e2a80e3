"""What the layers of models/layers.py, an NPU's, keep for the backward pass and need beside it.

A tensor that two layers read is counted where it is kept first. `n` are numbers of elements, `size` the bytes of one in
the dtype of the computation. Kernels' own workspaces are not known and not counted."""

from pipeline.planning.step import Layer

FLOAT32 = 4
TILE = 512  # queries, as in models/attention.py, whose module needs MindSpore


def group_norm(n: int, channels: int, size: int) -> Layer:
    """Input and output in float32; the backward pass wants the input."""
    return Layer("norms' inputs in float32", FLOAT32 * n, (FLOAT32 + size) * n, (2 * FLOAT32 + size) * n, 2 * channels)


layer_norm = group_norm


def silu(n: int, size: int) -> Layer:
    return Layer("inputs of SiLU", size * n, size * n, 2 * size * n)


def conv(batch: int, inputs: int, outputs: int, height: int, width: int, size: int, kernel=3, stride=1) -> Layer:
    """Of maps (batch, inputs, height, width)."""
    n, made = batch * inputs * height * width, batch * outputs * (height // stride) * (width // stride)
    numbers = outputs * inputs * kernel**2 + outputs
    return Layer(
        "inputs of convolutions", size * n, size * made, size * (n + made) + _weights_gradient(numbers, size), numbers,
        _copies(numbers, size),
    )  # fmt: skip


def linear(rows: int, inputs: int, outputs: int, size: int, bias: bool = True, shares: bool = False) -> Layer:
    """`shares`: its input is kept by another layer."""
    numbers = inputs * outputs + (outputs if bias else 0)
    return Layer(
        "inputs of linear layers", 0 if shares else size * rows * inputs, size * rows * outputs,
        size * rows * (inputs + outputs) + _weights_gradient(numbers, size), numbers, _copies(numbers, size),
    )  # fmt: skip


def _copies(numbers: int, size: int) -> int:
    return numbers * size if size < FLOAT32 else 0


def _weights_gradient(numbers: int, size: int) -> int:
    """Before it is cast to the weights' dtype."""
    return numbers * size


def attention(batch: int, queries: int, keys: int, channels: int, heads: int, kind: str, size: int) -> Layer:
    """Queries, keys, values and what the softmax's backward pass wants; the output is the next layer's input.

    Flash attention keeps of each query and head two times eight float32 (softmax_max, softmax_sum). The two kinds by
    matrices keep heads apart, so the output twice, and up to one tile of queries all probabilities in float32."""
    inputs = size * batch * channels * (queries + 2 * keys)
    output = size * batch * channels * queries
    what = "queries, keys, values of attention"
    if kind.startswith("flash"):
        statistics = batch * heads * queries * 2 * 8 * FLOAT32
        # output and gradients wait for the weights' gradients, as GEGLU's
        return Layer(what, inputs + statistics, output, inputs + 2 * output, late=inputs + output)
    whole = kind == "plain" or queries <= TILE
    matrix = batch * heads * (queries if whole else TILE) * keys
    return Layer(
        what if not whole else "queries, keys, values, probabilities of attention",
        inputs + output + (FLOAT32 * matrix if whole else 0),
        inputs + output + (FLOAT32 + size) * matrix,
        2 * inputs + 2 * output + (2 * FLOAT32 + size) * matrix,
    )


def geglu(rows: int, width: int, size: int) -> Layer:
    """Value, gate and its GELU (rows, width); their product is the next layer's input. In the NPU's graph the value,
    and the gradients of value and gate, stay to the end, where MindSpore lists the weights' gradients that want them
    (seen by benchmarks/liveness.py)."""
    n = size * rows * width
    return Layer("GEGLU: value, gate, GELU", 3 * n, 2 * n, 4 * n, late=3 * n)


def upsample(n: int, size: int) -> Layer:
    """n: of the input"""
    return Layer("inputs of convolutions", 0, 4 * size * n, 5 * size * n)


def transposed(n: int, size: int) -> Layer:
    return Layer("inputs of linear layers", 0, size * n, size * n)
