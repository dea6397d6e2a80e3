"""Formulations for the CPU: the same numbers from kernels of MindSpore's CPU backend that are fast.

Measured on MindSpore 2.10.0, float32, two threads, forward and backward together: its GroupNorm and LayerNorm take five
times as long as two batch normalisations, a bias's gradient (BiasAddGrad) two to fifteen times as long as products
with ones, `erf` three times as long as the polynomial below. A broadcast keeps four times its result in memory for as
long as the graph lives (an index of every element), Transpose twice: in the full UNet 10 GB each. So none stands here
between large tensors."""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops


class NormalizeRows(nn.Cell):
    """(x - mean) / sqrt(variance + eps) of each row of x (rows, n) float32: a batch normalisation whose channels are
    the rows. Its running statistics are not used, and a momentum of 0 leaves them as they are."""

    def __init__(self, eps: float):
        super().__init__()
        self.normalize = ops.BatchNorm(is_training=True, epsilon=eps, momentum=0.0)

    def construct(self, x):
        rows, n = x.shape
        ones, zeros = ops.ones((rows,), ms.float32), ops.zeros((rows,), ms.float32)
        return self.normalize(x.reshape(1, rows, 1, n), ones, zeros, zeros, ones)[0].reshape(rows, n)


@ops.constexpr
def _mean_and_variance(channels: int) -> tuple[ms.Tensor, ms.Tensor]:
    """0 and 1. Of ops.zeros and ops.ones, which NormalizeRows has too, copies would be made at each step."""
    return ms.Tensor(np.zeros(channels, np.float32)), ms.Tensor(np.ones(channels, np.float32))


class ScaleChannels(nn.Cell):
    """x (b, c, h, w) * gamma (c) + beta (c): a batch normalisation with mean 0 and variance 1 given."""

    def __init__(self):
        super().__init__()
        # an epsilon that float32 cannot tell from 0 beside the variance of 1
        self.scale = ops.BatchNorm(is_training=False, epsilon=1e-12)

    def construct(self, x, gamma, beta):
        mean, variance = _mean_and_variance(gamma.shape[0])
        return self.scale(x, gamma, beta, mean, variance)[0]


def column_sums(x):
    """(rows, n) -> (n,)"""
    if x.shape[0] == 1:
        return x.reshape(-1)
    return ops.MatMul()(ops.ones((1, x.shape[0]), x.dtype), x).reshape(-1)


def _repeated(row, rows: int):
    """row (n) -> (rows, n), by a product, because a constant to add it to would be kept for each use"""
    return ops.MatMul()(ops.ones((rows, 1), row.dtype), row.reshape(1, -1))


class _WithFactors(nn.Cell):
    """(x * gamma + beta, gamma repeated); the second is kept for the backward pass. One that used gamma again would
    have MindSpore 2.10.0 copy it at each step."""

    def construct(self, x, gamma, beta):
        factors = _repeated(gamma, x.shape[0])
        return ops.BiasAdd()(x * factors, beta), factors

    def bprop(self, x, gamma, beta, out, dout):
        return dout[0] * out[1], column_sums(dout[0] * x), column_sums(dout[0])


class ScaleColumns(nn.Cell):
    """x (rows, n) * gamma (n) + beta (n)"""

    def __init__(self):
        super().__init__()
        self.scale = _WithFactors()

    def construct(self, x, gamma, beta):
        y, _ = self.scale(x, gamma, beta)
        return y


@ops.constexpr
def _swapped(b: int, m: int, n: int) -> ms.Tensor:
    """Of the rows of an array (b, m, n, ...), those of (b, n, m, ...) in order."""
    return ms.Tensor(np.arange(b * m * n, dtype=np.int32).reshape(b, m, n).swapaxes(1, 2).reshape(-1))


def swap_middle(x):
    """x (b, m, n, d) -> (b, n, m, d). Transpose takes as long and keeps twice the array's size in memory."""
    b, m, n, d = x.shape
    return ops.Gather()(x.reshape(-1, d), _swapped(b, m, n), 0).reshape(b, n, m, d)


class SwapMiddle(nn.Cell):
    """swap_middle with its gradient, another swap_middle."""

    def construct(self, x):
        return swap_middle(x)

    def bprop(self, x, out, dout):
        return (swap_middle(dout),)


class SwapOne(nn.Cell):
    """SwapMiddle of x (b, m, n, d) with m or n = 1, which needs no kernel."""

    def construct(self, x):
        b, m, n, d = x.shape
        return x.reshape(b, n, m, d)


class CentredScores(nn.Cell):
    """dout vᵀ (b, heads, queries, keys) less each query's Σ dout∘out over head_dim: the sum by a product, the
    difference as a bias of channels, because a broadcast subtraction builds an index of every element, and keeps it."""

    def construct(self, dout, v, out):
        b, heads, queries, head_dim = out.shape
        minus_row = ops.MatMul()((dout * out).reshape(-1, head_dim), -ops.ones((head_dim, 1), out.dtype))
        dp = ops.BatchMatMul(transpose_b=True)(dout, v).reshape(1, b * heads * queries, -1, 1)
        return ops.BiasAdd()(dp, minus_row.reshape(-1)).reshape(b, heads, queries, -1)


class Between(nn.Cell):
    """x (b, heads, tokens, head_dim) -> its tokens from `start` to before `stop`, which may lie behind the last"""

    def construct(self, x, start, stop):
        return x[:, :, start:stop]


class AddColumns(nn.Cell):
    """x (rows, n) + bias (n)"""

    def construct(self, x, bias):
        return ops.BiasAdd()(x, bias)

    def bprop(self, x, bias, out, dout):
        return dout, column_sums(dout)


class AddChannels(nn.Cell):
    """x (b, c, h, w) + bias (c)"""

    def construct(self, x, bias):
        return ops.BiasAdd()(x, bias)

    def bprop(self, x, bias, out, dout):
        b, c, h, w = dout.shape
        sums = ops.MatMul(transpose_b=True)(ops.ones((1, h * w), dout.dtype), dout.reshape(b * c, h * w))
        return dout, column_sums(sums.reshape(b, c))


class _WithSigmoid(nn.Cell):
    """(silu(x), sigmoid(x)); the second is kept for the backward pass."""

    def construct(self, x):
        sigmoid = ops.sigmoid(x)
        return x * sigmoid, sigmoid

    def bprop(self, x, out, dout):
        y, sigmoid = out
        # silu' = s + x s (1 - s)
        return (dout[0] * (sigmoid + y - y * sigmoid),)


class SiLU(nn.Cell):
    """x sigmoid(x). The framework's gradient computes the sigmoid again."""

    def __init__(self):
        super().__init__()
        self.silu = _WithSigmoid()

    def construct(self, x):
        y, _ = self.silu(x)
        return y


def _gram(x):
    """(2, 16, 16) float32, on whose diagonals stand sums whose sum is the sum of x², of a matrix x, in half the time of
    MindSpore's own sum; zeros of a vector"""
    if x.ndim < 2:
        return ops.zeros((2, 16, 16), ms.float32)
    x = ops.cast(x, ms.float32).reshape(-1)
    missing = -x.shape[0] % 32
    if missing > 0:
        x = ops.Concat()((x, ops.zeros((missing,), ms.float32)))
    x = x.reshape(2, 16, -1)
    return ops.BatchMatMul(transpose_b=True)(x, x)


def _vector(x):
    """x float32 of a vector x, a zero of a matrix"""
    return ops.cast(x, ms.float32) if x.ndim < 2 else ops.zeros((1,), ms.float32)


class SumOfSquares(nn.Cell):
    """Of all numbers of a tuple of tensors, float32 ()."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.map = ops.HyperMap()

    def construct(self, tensors):
        # joined, because a step's vectors are many and small
        vectors = ops.Concat()(self.map(_vector, tensors)).reshape(1, -1)
        squares = ops.MatMul(transpose_b=True)(vectors, vectors).reshape(())
        return squares + ops.addn(self.map(_gram, tensors)).reshape(2, -1)[:, ::17].sum()


@ops.constexpr
def _each_twice(n: int) -> ms.Tensor:
    return ms.Tensor(np.repeat(np.eye(n, dtype=np.float32), 2, axis=1))


def upsample(x):
    """Nearest neighbour, x (b, c, h, w) -> (b, c, 2h, 2w): the columns by a product, the lines by joining each to
    itself."""
    b, c, h, w = x.shape
    n = math.gcd(w, 8)
    lines = ops.MatMul()(x.reshape(-1, n), _each_twice(n).astype(x.dtype)).reshape(b * c * h, 2 * w)
    return ops.Concat(1)((lines, lines)).reshape(b, c, 2 * h, 2 * w)


# Φ(x) = sigmoid(2 x q(x²)) within 6e-8 (MindSpore's sigmoid itself is exact to 8e-7 only): a minimax fit of q to
# atanh(erf(x / sqrt 2)) / x on |x| <= 5.6, where Φ is 1 - 1e-8; q is positive beyond. Highest power first, and doubled.
_PHI = (
    2 * 1.7561712559060217e-09,
    2 * -1.3226335680161757e-07,
    2 * 3.964744617836851e-06,
    2 * -5.53061947134318e-05,
    2 * -3.259497338894539e-05,
    2 * 0.03633308457214174,
    2 * 0.7978849414607415,
)
_LOG_SQRT_2PI = 0.9189385332046727


def normal_cdf(x, square):
    """Φ(x), the standard normal distribution function, of x float32 and its square."""
    q = square * _PHI[0] + _PHI[1]
    for coefficient in _PHI[2:]:
        q = q * square + coefficient
    return ops.sigmoid(x * q)


class _GateWithCdf(nn.Cell):
    """(x gelu(gate), gate², Φ(gate), gelu(gate)); the last three are kept for the backward pass."""

    def construct(self, x, gate):
        square = gate * gate
        cdf = normal_cdf(gate, square)
        gelu = gate * cdf
        return x * gelu, square, cdf, gelu

    def bprop(self, x, gate, out, dout):
        dout, (_, square, cdf, gelu) = dout[0], out
        density = ops.exp(square * -0.5 - _LOG_SQRT_2PI)
        # gelu'(g) = Φ(g) + g φ(g)
        return dout * gelu, dout * x * (cdf + gate * density)


class GeluGate(nn.Cell):
    """x gelu(gate) for x and gate of one shape, float32."""

    def __init__(self):
        super().__init__()
        self.gate = _GateWithCdf()

    def construct(self, x, gate):
        out, _, _, _ = self.gate(x, gate)
        return out
