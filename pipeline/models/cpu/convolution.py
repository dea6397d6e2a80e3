"""A convolution as products, for CPUs.

MindSpore 2.10.0's CPU backend gives oneDNN plain NCHW arrays, for which oneDNN has no convolution with AVX-512 but a
reference one. Its products have AVX-512, and gain more by it than a convolution loses by being several of them. So a
process that trains lets oneDNN use what the CPU has and convolves here, every other is held to AVX2 and takes Conv2D
(pipeline/device.py). Measured on two cores for a UNet of 33 million parameters: docs/measured.md.

There are three forms. Two of them turn maps (b, c, h, w) into rows of channels, one or several a place, which a gather
puts in the order that a product needs:
- _Pointwise, for kernel 1: a product for each sample, of maps as they are.
- _Columns, for any other: the rows under a kernel's taps side by side (im2col; Chellapilla et al. 2006). It keeps
  nine times each map until the backward pass.
- _Winograd, for kernel 3 without stride, float32 and even sides (Lavin and Gray, arXiv 1509.09308): for 4 places 16
  products where the other has 36, F(2x2, 3x3), and four times each map to keep; or for 16 places 36 where the other has
  144, F(4x4, 3x3), and two and a quarter times. Their rounding errors are up to 1.7 and up to 5.3 times the columns'
  (root mean square, 64 to 512 channels)."""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from pipeline.models.cpu import kernels


def _under_taps(side: int, out: int, kernel: int, stride: int, before: int) -> np.ndarray:
    """(out, kernel): which of `side` inputs lies under each tap of each output; outside 0 ... side - 1 for none."""
    return np.arange(out)[:, None] * stride + np.arange(kernel) - before


def _read_by(side: int, out: int, kernel: int, stride: int, before: int) -> np.ndarray:
    """(side, kernel): which of `out` outputs reads each input with each tap; outside 0 ... out - 1 for none."""
    at, rest = np.divmod(np.arange(side)[:, None] + before - np.arange(kernel), stride)
    return np.where(rest == 0, at, -1)


def _numbers(b: int, y: np.ndarray, x: np.ndarray, height: int, width: int) -> np.ndarray:
    """int32 numbers of rows (b height width) at the places y (m, kernel) by x (n, kernel) of each sample, in the order
    (b, m, n, kernel, kernel); b height width, the row after the last, for places outside."""
    y, x = y[:, None, :, None], x[None, :, None, :]
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    sample = np.arange(b).reshape(b, 1, 1, 1, 1) * (height * width)
    return np.where(outside, b * height * width, sample + y * width + x).astype(np.int32)


@ops.constexpr
def _taps_of_outputs(b: int, h: int, w: int, ho: int, wo: int, kernel: int, stride: int, top: int, left: int):
    y, x = _under_taps(h, ho, kernel, stride, top), _under_taps(w, wo, kernel, stride, left)
    return ms.Tensor(_numbers(b, y, x, h, w).reshape(-1))


@ops.constexpr
def _taps_of_inputs(b: int, h: int, w: int, ho: int, wo: int, kernel: int, stride: int, top: int, left: int):
    y, x = _read_by(h, ho, kernel, stride, top), _read_by(w, wo, kernel, stride, left)
    return ms.Tensor(_numbers(b, y, x, ho, wo).reshape(-1))


def _to_rows(x):
    """(b, c, h, w) -> (b h w, c)"""
    b, c, h, w = x.shape
    return ops.Transpose()(x.reshape(b, c, h * w), (0, 2, 1)).reshape(b * h * w, c)


def _to_maps(rows, b: int, h: int, w: int):
    """(b h w, c) -> (b, c, h, w)"""
    c = rows.shape[1]
    return ops.Transpose()(rows.reshape(b, h * w, c), (0, 2, 1)).reshape(b, c, h, w)


def _gathered(rows, numbers):
    """rows (n, c), numbers (m,) -> (m, c), zeros for n, the row after the last"""
    return ops.EmbeddingLookup()(rows, numbers, 0)


class _Columns(nn.Cell):
    """The convolution, and what its backward pass needs again: the columns (b ho wo, taps c) and the weights in their
    order (o, taps c)."""

    def __init__(self, kernel: int, stride: int, padding: tuple[int, int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.top, self.bottom, self.left, self.right = padding

    def construct(self, x, weight):
        b, c, h, w = x.shape
        o, k, s = weight.shape[0], self.kernel, self.stride
        ho = (h + self.top + self.bottom - k) // s + 1
        wo = (w + self.left + self.right - k) // s + 1
        numbers = _taps_of_outputs(b, h, w, ho, wo, k, s, self.top, self.left)
        columns = _gathered(_to_rows(x), numbers).reshape(-1, k * k * c)
        weight = ops.Transpose()(weight.reshape(o, c, k * k), (0, 2, 1)).reshape(o, k * k * c)
        y = _to_maps(ops.MatMul(transpose_b=True)(columns, weight), b, ho, wo)
        return y, columns, weight

    def bprop(self, x, weight, out, dout):
        _, columns, ordered = out
        b, c, h, w = x.shape
        o, ho, wo = dout[0].shape[1:]
        k, s = self.kernel, self.stride
        drows = _to_rows(dout[0])
        dweight = ops.MatMul(transpose_a=True)(drows, columns).reshape(o, k * k, c)
        dweight = ops.Transpose()(dweight, (0, 2, 1))
        numbers = _taps_of_inputs(b, h, w, ho, wo, k, s, self.top, self.left)
        drows = _gathered(drows, numbers).reshape(-1, k * k * o)
        # (o, taps, c) -> (taps, o, c)
        ordered = kernels.swap_middle(ordered.reshape(1, o, k * k, c)).reshape(k * k * o, c)
        return _to_maps(ops.MatMul()(drows, ordered), b, h, w), dweight.reshape(weight.shape)


class _Pointwise(nn.Cell):
    """The convolution by a kernel of 1, and the weights once for each sample (b, o, c), because BatchMatMul broadcasts
    nothing."""

    def construct(self, x, weight):
        b, c, h, w = x.shape
        o = weight.shape[0]
        weights = ops.Concat()((weight,) * b).reshape(b, o, c)
        y = ops.BatchMatMul()(weights, x.reshape(b, c, h * w))
        return y.reshape(b, o, h, w), weights

    def bprop(self, x, weight, out, dout):
        b, c, h, w = x.shape
        o, weights = weight.shape[0], out[1]
        dmaps = dout[0].reshape(b, o, h * w)
        dweights = ops.BatchMatMul(transpose_b=True)(dmaps, x.reshape(b, c, h * w)).reshape(b, o * c)
        dx = ops.BatchMatMul(transpose_a=True)(weights, dmaps).reshape(x.shape)
        return dx, kernels.column_sums(dweights).reshape(weight.shape)


# F(m, 3) evaluates polynomials at 0, these points, their negatives and infinity; with each point stands its reciprocal.
_POINTS = {2: [1.0], 4: [0.5**0.5, 2**0.5]}


def _matrices(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of F(m, 3) the transforms of m + 2 inputs, of 3 weights and of m + 2 products to m outputs: Bᵀ (m + 2, m + 2),
    G (m + 2, 3), Aᵀ (m, m + 2) (Toom and Cook's algorithm, transposed)."""
    points = np.array([0, *_POINTS[m], *(-x for x in _POINTS[m])])

    def powers(n: int) -> np.ndarray:
        """(m + 2, n): 1, x, x² ... at each point; at infinity the highest power alone"""
        return np.vstack([points[:, None] ** np.arange(n), np.eye(n)[-1]])

    # G's row at x times this is its row at 1/x reversed
    scale = np.array([1, *np.abs(points[1:]), 1])[:, None]
    return scale * np.linalg.inv(powers(m + 2)).T, powers(3) / scale, powers(m).T


def _both_ways(matrix: np.ndarray) -> ms.Tensor:
    """Of a matrix for one dimension, the one for both: (m, n) -> (m m, n n)"""
    return ms.Tensor(np.kron(matrix, matrix), ms.float32)


@ops.constexpr
def _identities(n: int, width: int):
    return ms.Tensor(np.tile(np.eye(width, dtype=np.float32), (n, 1, 1)))


def _to_parts(x, width: int):
    """(b, c, h, w) -> (b c/width h w, width), rows of parts of the channels. Products with ones and zeros are exact, and
    take about a third of Transpose's time at 32x32 places."""
    b, c, h, w = x.shape
    n = b * c // width
    x = x.reshape(n, width, h * w)
    return ops.BatchMatMul(transpose_a=True)(x, _identities(n, width)).reshape(-1, width)


@ops.constexpr
def _rows_of_tiles(b: int, parts: int, h: int, w: int, m: int):
    """Numbers of the rows (b parts h w) in each tile of m + 2 by m + 2, which lies around m by m outputs, in the order
    (m + 2, m + 2, b, h/m, w/m, parts)."""
    y, x = _under_taps(h, h // m, m + 2, m, 1), _under_taps(w, w // m, m + 2, m, 1)
    numbers = _numbers(b * parts, y, x, h, w).reshape(b, parts, h // m, w // m, m + 2, m + 2)
    return ms.Tensor(numbers.transpose(4, 5, 0, 2, 3, 1).reshape(-1))


class _Winograd(nn.Cell):
    """The convolution by F(m x m, 3x3), and what its backward pass needs again: transformed tiles (n, b h/m w/m, c) and
    weights (n, o, c), n = (m + 2)²."""

    def __init__(self, m: int):
        super().__init__()
        self.m, self.products = m, (m + 2) ** 2
        inputs, weights, outputs = _matrices(m)
        self.of_input, self.of_weight, self.of_output = map(_both_ways, (inputs, weights, outputs.T))
        # The input's gradient is the convolution of the output's with reversed weights, whose products are the
        # weights' in another order.
        order = [int(np.abs(weights - row[::-1]).sum(1).argmin()) for row in weights]
        self.of_dout, self.of_dinput = _both_ways(inputs[order]), _both_ways(outputs[:, order].T)
        # the products' gradient; the tile's inner places are the outputs
        self.of_dproducts = _both_ways(np.pad(outputs.T, ((0, 0), (1, 1))))

    def construct(self, x, weight):
        b, c, h, w = x.shape
        o, n = weight.shape[0], self.products
        tiles = ops.MatMul()(self.of_input, self._tiles(x)).reshape(n, -1, c)
        weights = ops.MatMul(transpose_b=True)(self.of_weight, weight.reshape(o * c, 9)).reshape(n, o, c)
        products = ops.BatchMatMul(transpose_b=True)(tiles, weights)
        return self._maps(self.of_output, products, b, h, w), tiles, weights

    def _tiles(self, x):
        """(b, c, h, w) -> (n, b h/m w/m c)"""
        b, c, h, w = x.shape
        width = math.gcd(c, 32)
        return _gathered(_to_parts(x, width), _rows_of_tiles(b, c // width, h, w, self.m)).reshape(self.products, -1)

    def _maps(self, of_output, products, b, h, w):
        """(n, b h/m w/m, o) -> (b, o, h, w)"""
        m, o = self.m, products.shape[2]
        y = ops.MatMul(transpose_a=True)(products.reshape(self.products, -1), of_output)
        y = y.reshape(b, h // m, w // m, o, m, m)
        return ops.Transpose()(y, (0, 3, 1, 4, 2, 5)).reshape(b, o, h, w)

    def bprop(self, x, weight, out, dout):
        _, tiles, weights = out
        b, c, h, w = x.shape
        o, n = weight.shape[0], self.products
        douts = self._tiles(dout[0])
        dproducts = ops.MatMul()(self.of_dproducts, douts).reshape(n, -1, o)
        dweights = ops.BatchMatMul(transpose_a=True)(dproducts, tiles).reshape(n, -1)
        dweight = ops.MatMul(transpose_a=True)(dweights, self.of_weight).reshape(weight.shape)
        douts = ops.MatMul()(self.of_dout, douts).reshape(n, -1, o)
        dx = self._maps(self.of_dinput, ops.BatchMatMul()(douts, weights), b, h, w)
        return dx, dweight


# Of fewer places (b h w) F(4x4, 3x3) takes longer than F(2x2, 3x3): its products have too few rows.
_ENOUGH = 512


class Convolution(nn.Cell):
    """x (b, c, h, w), weight (o, c, kernel, kernel) -> (b, o, ho, wo): kernel 1 without stride or padding, or any other
    with `padding` (top, bottom, left, right)."""

    def __init__(self, kernel: int, stride: int, padding: tuple[int, int, int, int]):
        super().__init__()
        self.pointwise = kernel == 1
        self.winograd = (kernel, stride, *padding) == (3, 1, 1, 1, 1, 1)
        if self.pointwise:
            self.by_samples = _Pointwise()
        else:
            self.by_columns = _Columns(kernel, stride, padding)
        if self.winograd:
            self.by_2, self.by_4 = _Winograd(2), _Winograd(4)

    def construct(self, x, weight):
        b, _, h, w = x.shape
        if self.pointwise:
            y, _ = self.by_samples(x, weight)
        elif not self.winograd or x.dtype != ms.float32 or h % 2 or w % 2:
            y, _, _ = self.by_columns(x, weight)
        elif h % 4 or w % 4 or b * h * w < _ENOUGH:
            y, _, _ = self.by_2(x, weight)
        else:
            y, _, _ = self.by_4(x, weight)
        return y
