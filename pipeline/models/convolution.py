"""A convolution as products, for CPUs.

MindSpore 2.10.0's CPU backend gives oneDNN plain NCHW arrays, for which oneDNN has no convolution with AVX-512 but a
reference one. Its products have AVX-512, and gain more by it than a convolution loses by being several of them. So a
process that trains lets oneDNN use what the CPU has and convolves here, every other is held to AVX2 and takes Conv2D
(pipeline/device.py). Measured on two cores for a UNet of 33 million parameters: README, "Measured".

Maps (b, c, h, w) become rows (b h w, c), one a place, which a gather puts in the order that a product needs. There are
two forms:
- _Columns, for any convolution: the rows under a kernel's taps side by side (im2col; Chellapilla et al. 2006). It keeps
  nine times each map until the backward pass.
- _Winograd, for kernel 3 without stride, float32 and even sides: 16 products for 4 places where the other has 36
  (F(2x2, 3x3); Lavin and Gray, arXiv 1509.09308), and four times each map to keep. Its rounding errors are up to 1.7
  times the other's (root mean square, 64 to 512 channels)."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from pipeline.models import kernels


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
    """rows (n, c), numbers (m,) -> (m, c), zeros for the row after the last"""
    rows = ops.Concat(0)((rows, ops.zeros((1, rows.shape[1]), rows.dtype)))
    return ops.Gather()(rows, numbers, 0)


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
        columns = _to_rows(x)
        if k == 1:
            weight = weight.reshape(o, c)
        else:
            numbers = _taps_of_outputs(b, h, w, ho, wo, k, s, self.top, self.left)
            columns = _gathered(columns, numbers).reshape(-1, k * k * c)
            weight = ops.Transpose()(weight.reshape(o, c, k * k), (0, 2, 1)).reshape(o, k * k * c)
        return _to_maps(ops.MatMul(transpose_b=True)(columns, weight), b, ho, wo), columns, weight

    def bprop(self, x, weight, out, dout):
        _, columns, ordered = out
        b, c, h, w = x.shape
        o, ho, wo = dout[0].shape[1:]
        k, s = self.kernel, self.stride
        drows = _to_rows(dout[0])
        dweight = ops.MatMul(transpose_a=True)(drows, columns)
        if k > 1:
            dweight = ops.Transpose()(dweight.reshape(o, k * k, c), (0, 2, 1))
            numbers = _taps_of_inputs(b, h, w, ho, wo, k, s, self.top, self.left)
            drows = _gathered(drows, numbers).reshape(-1, k * k * o)
            # (o, taps, c) -> (taps, o, c)
            ordered = kernels.swap_middle(ordered.reshape(1, o, k * k, c)).reshape(k * k * o, c)
        return _to_maps(ops.MatMul()(drows, ordered), b, h, w), dweight.reshape(weight.shape)


# Of 4 inputs, of 3 weights and of 4 products, the matrices Bᵀ, G and Aᵀ of F(2, 3).
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_WEIGHT = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
# Reversed weights are G's products in this order.
_REVERSED = [3, 1, 2, 0]


def _both_ways(matrix: np.ndarray) -> ms.Tensor:
    """Of a matrix for one dimension, the one for both: (m, n) -> (m m, n n)"""
    return ms.Tensor(np.kron(matrix, matrix))


@ops.constexpr
def _tiles(b: int, h: int, w: int):
    """Numbers of the rows in each 4x4 tile, which lies around 2x2 outputs, in the order (4, 4, b, h/2, w/2)."""
    y, x = _under_taps(h, h // 2, 4, 2, 1), _under_taps(w, w // 2, 4, 2, 1)
    return ms.Tensor(_numbers(b, y, x, h, w).transpose(3, 4, 0, 1, 2).reshape(-1))


@ops.constexpr
def _in_places(b: int, h: int, w: int):
    """Of rows in the order (2, 2, b, h/2, w/2), those of (b, h, w) in order."""
    numbers = np.arange(b * h * w, dtype=np.int32).reshape(2, 2, b, h // 2, w // 2)
    return ms.Tensor(numbers.transpose(2, 3, 0, 4, 1).reshape(-1))


class _Winograd(nn.Cell):
    """The convolution, and what its backward pass needs again: transformed tiles (16, b h/2 w/2, c) and weights
    (16, o, c)."""

    def __init__(self):
        super().__init__()
        self.of_input, self.of_weight, self.of_output = map(_both_ways, (_INPUT, _WEIGHT, _OUTPUT))
        # the input's gradient is the convolution of the output's with reversed weights
        self.of_dout = _both_ways(_INPUT[_REVERSED])
        self.of_dinput = _both_ways(_OUTPUT[:, _REVERSED])
        # the products' gradient; the tile's inner 2x2 places are the outputs
        self.of_dproducts = _both_ways(np.pad(_OUTPUT.T, ((0, 0), (1, 1))))

    def construct(self, x, weight):
        b, c, h, w = x.shape
        o = weight.shape[0]
        tiles = _gathered(_to_rows(x), _tiles(b, h, w)).reshape(16, -1)
        tiles = ops.MatMul()(self.of_input, tiles).reshape(16, -1, c)
        weights = ops.MatMul(transpose_b=True)(self.of_weight, weight.reshape(o * c, 9)).reshape(16, o, c)
        products = ops.BatchMatMul(transpose_b=True)(tiles, weights)
        return self._maps(self.of_output, products, b, h, w), tiles, weights

    def _maps(self, of_output, products, b, h, w):
        """(16, b h/2 w/2, o) -> (b, o, h, w)"""
        o = products.shape[2]
        rows = ops.MatMul()(of_output, products.reshape(16, -1)).reshape(-1, o)
        return _to_maps(ops.Gather()(rows, _in_places(b, h, w), 0), b, h, w)

    def bprop(self, x, weight, out, dout):
        _, tiles, weights = out
        b, c, h, w = x.shape
        o = weight.shape[0]
        douts = _gathered(_to_rows(dout[0]), _tiles(b, h, w)).reshape(16, -1)
        dproducts = ops.MatMul()(self.of_dproducts, douts).reshape(16, -1, o)
        dweights = ops.BatchMatMul(transpose_a=True)(dproducts, tiles).reshape(16, -1)
        dweight = ops.MatMul(transpose_a=True)(dweights, self.of_weight).reshape(weight.shape)
        douts = ops.MatMul()(self.of_dout, douts).reshape(16, -1, o)
        return self._maps(self.of_dinput, ops.BatchMatMul()(douts, weights), b, h, w), dweight


class Convolution(nn.Cell):
    """x (b, c, h, w), weight (o, c, kernel, kernel) -> (b, o, ho, wo): kernel 1 without stride or padding, or any other
    with `padding` (top, bottom, left, right)."""

    def __init__(self, kernel: int, stride: int, padding: tuple[int, int, int, int]):
        super().__init__()
        self.columns = _Columns(kernel, stride, padding)
        self.winograd = _Winograd() if (kernel, stride, *padding) == (3, 1, 1, 1, 1, 1) else None

    def construct(self, x, weight):
        if self.winograd is not None and x.dtype == ms.float32 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
            y, _, _ = self.winograd(x, weight)
        else:
            y, _, _ = self.columns(x, weight)
        return y
