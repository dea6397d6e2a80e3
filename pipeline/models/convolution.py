"""A convolution as products, for CPUs.

MindSpore 2.10.0's CPU backend gives oneDNN plain NCHW arrays, for which oneDNN has no convolution with AVX-512 but a
reference one. Its products have AVX-512, and gain more by it than a convolution loses by being three of them. So a
process that trains lets oneDNN use what the CPU has and convolves here, every other is held to AVX2 and takes Conv2D
(pipeline/device.py). Measured on two cores for a UNet of 33 million parameters: README, "Measured".

Maps (b, c, h, w) become rows (b h w, c), one a place. A gather puts side by side the rows that lie under the kernel's
taps, the taps' columns (im2col; Chellapilla et al. 2006); the product of columns and weights is the output's rows. It
takes memory, 4.2 GB for that UNet's training in place of 3.1: nine times each map until the backward pass, and
Transpose keeps twice each map."""

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


def _numbers(b: int, y: np.ndarray, x: np.ndarray, height: int, width: int) -> ms.Tensor:
    """int32 numbers of rows (b height width) at the places y (m, kernel) by x (n, kernel) of each sample, in the order
    (b, m, n, kernel, kernel); b height width, the row after the last, for places outside."""
    y, x = y[:, None, :, None], x[None, :, None, :]
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    sample = np.arange(b).reshape(b, 1, 1, 1, 1) * (height * width)
    return ms.Tensor(np.where(outside, b * height * width, sample + y * width + x).reshape(-1).astype(np.int32))


@ops.constexpr
def _taps_of_outputs(b: int, h: int, w: int, ho: int, wo: int, kernel: int, stride: int, top: int, left: int):
    y, x = _under_taps(h, ho, kernel, stride, top), _under_taps(w, wo, kernel, stride, left)
    return _numbers(b, y, x, h, w)


@ops.constexpr
def _taps_of_inputs(b: int, h: int, w: int, ho: int, wo: int, kernel: int, stride: int, top: int, left: int):
    y, x = _read_by(h, ho, kernel, stride, top), _read_by(w, wo, kernel, stride, left)
    return _numbers(b, y, x, ho, wo)


def _to_rows(x):
    """(b, c, h, w) -> (b h w, c)"""
    b, c, h, w = x.shape
    return ops.Transpose()(x.reshape(b, c, h * w), (0, 2, 1)).reshape(b * h * w, c)


def _to_maps(rows, b: int, h: int, w: int):
    """(b h w, c) -> (b, c, h, w)"""
    c = rows.shape[1]
    return ops.Transpose()(rows.reshape(b, h * w, c), (0, 2, 1)).reshape(b, c, h, w)


def _columns(rows, numbers, taps: int):
    """rows (n, c), numbers (m taps,) -> (m, taps c), zeros for the row after the last"""
    c = rows.shape[1]
    rows = ops.Concat(0)((rows, ops.zeros((1, c), rows.dtype)))
    return ops.Gather()(rows, numbers, 0).reshape(-1, taps * c)


class _WithColumns(nn.Cell):
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
            columns = _columns(columns, _taps_of_outputs(b, h, w, ho, wo, k, s, self.top, self.left), k * k)
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
            drows = _columns(drows, _taps_of_inputs(b, h, w, ho, wo, k, s, self.top, self.left), k * k)
            # (o, taps, c) -> (taps, o, c)
            ordered = kernels.swap_middle(ordered.reshape(1, o, k * k, c)).reshape(k * k * o, c)
        return _to_maps(ops.MatMul()(drows, ordered), b, h, w), dweight.reshape(weight.shape)


class Convolution(nn.Cell):
    """x (b, c, h, w), weight (o, c, kernel, kernel) -> (b, o, ho, wo): kernel 1 without stride or padding, or any other
    with `padding` (top, bottom, left, right)."""

    def __init__(self, kernel: int, stride: int, padding: tuple[int, int, int, int]):
        super().__init__()
        self.convolve = _WithColumns(kernel, stride, padding)

    def construct(self, x, weight):
        y, _, _ = self.convolve(x, weight)
        return y
