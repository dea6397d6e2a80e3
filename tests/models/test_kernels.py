"""The CPU's formulations against the formulas in float64, forward and backward."""

import math

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from pipeline.models import forms
from pipeline.models.cpu import kernels, layers
from pipeline.models.cpu.convolution import Convolution
from tests.golden.compare import peak

pytestmark = pytest.mark.usefixtures("device")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(cell, inputs, dout):
    """(output, gradients of sum(dout * output) by each input)"""

    def loss(dout, *inputs):
        out = cell(*inputs)
        return (out * dout).sum(), out

    positions = tuple(range(1, len(inputs) + 1))
    graph = ms.jit(ms.value_and_grad(loss, grad_position=positions, has_aux=True))
    (_, out), gradients = graph(ms.Tensor(dout), *map(ms.Tensor, inputs))
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return out.asnumpy(), [gradient.asnumpy() for gradient in gradients]


def close(found, wanted, tolerance=2e-6):
    np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max(), rtol=0)


def numeric_gradient(function, inputs, dout, which):
    """Central differences in float64 along one direction, with that direction."""
    inputs = [a.astype(np.float64) for a in inputs]
    direction = np.random.default_rng(9).standard_normal(inputs[which].shape)
    step = 1e-6
    moved = [[a + sign * step * direction if i == which else a for i, a in enumerate(inputs)] for sign in (1, -1)]
    return ((function(*moved[0]) - function(*moved[1])) * dout).sum() / (2 * step), direction


def check(cell, function, inputs, tolerance=2e-6):
    wanted = function(*(a.astype(np.float64) for a in inputs))
    dout = numbers(*wanted.shape, seed=7)
    out, gradients = run(cell, inputs, dout)
    close(out, wanted, tolerance)
    for which, gradient in enumerate(gradients):
        slope, direction = numeric_gradient(function, inputs, dout, which)
        size = np.abs(gradient * direction).sum()
        assert abs((gradient * direction).sum() - slope) <= 1e-5 * size, which


def normalized(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def cdf(x):
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


# Rows of small variance, so that a wrong epsilon shows.
SMALL = (1e-2 * numbers(6, 16) + numbers(6, 1, seed=1)).astype(np.float32)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_normalize_rows(eps):
    check(kernels.NormalizeRows(eps), lambda x: normalized(x, 1, eps), [SMALL], 2e-5)


def test_normalize_rows_forgets_what_was_not_finite():
    cell = kernels.NormalizeRows(1e-5)
    x = numbers(4, 8)
    wanted = cell(ms.Tensor(x)).asnumpy()
    assert np.isnan(cell(ms.Tensor(x * np.nan)).asnumpy()).all()
    np.testing.assert_array_equal(cell(ms.Tensor(x)).asnumpy(), wanted)


def test_scale_channels():
    inputs = [numbers(2, 3, 4, 5), numbers(3, seed=1), numbers(3, seed=2)]
    check(kernels.ScaleChannels(), lambda x, g, b: x * g[:, None, None] + b[:, None, None], inputs)


def test_scale_columns():
    check(kernels.ScaleColumns(), lambda x, g, b: x * g + b, [numbers(6, 5), numbers(5, seed=1), numbers(5, seed=2)])


def test_add_columns():
    check(kernels.AddColumns(), lambda x, b: x + b, [numbers(6, 5), numbers(5, seed=1)])


@pytest.mark.parametrize("b", [1, 2])
def test_add_channels(b):
    check(kernels.AddChannels(), lambda x, bias: x + bias[:, None, None], [numbers(b, 3, 4, 5), numbers(3, seed=1)])


def test_swap_middle():
    check(kernels.SwapMiddle(), lambda x: x.swapaxes(1, 2), [numbers(2, 5, 3, 4)])


def convolution(x, weight, stride, padding):
    top, bottom, left, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bcyxij,ocij->boyx", windows, weight)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        (3, 1, (1, 1, 1, 1)),
        (3, 2, (1, 1, 1, 1)),
        (3, 2, (0, 1, 0, 1)),  # the VAE's encoder
        (1, 1, (0, 0, 0, 0)),
    ],
)
@pytest.mark.parametrize(
    ("size", "b", "c", "o"), [((4, 6), 1, 5, 6), ((7, 5), 2, 24, 64), ((16, 8), 2, 24, 64), ((16, 8), 1, 5, 6)]
)
def test_convolution(kernel, stride, padding, size, b, c, o):
    inputs = [numbers(b, c, *size), numbers(o, c, kernel, kernel, seed=1) / c]
    check(Convolution(kernel, stride, padding), lambda x, w: convolution(x, w, stride, padding), inputs)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_of_halves(kernel):
    cell = Convolution(kernel, 1, (kernel // 2,) * 4)
    shapes = (2, 6, 8, 8), (2, 5, 8, 8), (6, 5, kernel, kernel)
    dout, *inputs = (numbers(*shape).astype(np.float16) for shape in shapes)
    out, gradients = run(cell, inputs, dout)
    wanted, wanted_gradients = run(cell, [a.astype(np.float32) for a in inputs], dout.astype(np.float32))
    for found, exact in zip((out, *gradients), (wanted, *wanted_gradients), strict=True):
        assert found.dtype == np.float16
        close(found.astype(np.float32), exact, 1e-3)


@pytest.mark.parametrize(
    ("size", "form"),
    [((4, 6), "by_2"), ((2, 2), "by_2"), ((16, 14), "by_2"), ((8, 8), "by_2"), ((16, 16), "by_4"), ((12, 24), "by_4")],
)
def test_winograds_convolution_is_taken(size, form):
    cell = Convolution(3, 1, (1, 1, 1, 1))
    for other in {"by_columns", "by_2", "by_4"} - {form}:
        getattr(cell, other).construct = None
    inputs = [numbers(2, 5, *size), numbers(6, 5, 3, 3, seed=1)]
    check(cell, lambda x, w: convolution(x, w, 1, (1, 1, 1, 1)), inputs)


@pytest.mark.parametrize(
    ("most", "target", "products"), [("AVX2", "CPU", False), ("DEFAULT", "CPU", True), ("DEFAULT", "Ascend", False)]
)
def test_convolutions_are_products_where_onednn_has_none(monkeypatch, most, target, products):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    monkeypatch.setattr(ms, "get_context", {"device_target": target}.get)
    assert isinstance(forms.chosen().Conv(4, 4, 3).conv2d, Convolution) == products == forms.convolves_by_products()


@pytest.mark.parametrize("shape", [(1, 2, 24, 16), (2, 3, 40, 16)])
def test_centred_scores(shape):
    dout, out = numbers(*shape), numbers(*shape, seed=1)
    v = numbers(*shape[:2], 24, shape[3], seed=2)
    found = kernels.CentredScores()(*map(ms.Tensor, (dout, v, out))).asnumpy()
    close(found, dout @ v.swapaxes(2, 3) - (dout * out).sum(-1, keepdims=True))


@pytest.mark.parametrize("shape", [(2, 5, 1, 4), (2, 1, 5, 4)])
def test_swap_one(shape):
    check(kernels.SwapOne(), lambda x: x.swapaxes(1, 2), [numbers(*shape)])


def test_silu():
    check(kernels.SiLU(), lambda x: x / (1 + np.exp(-x)), [3 * numbers(6, 50)])


@pytest.mark.parametrize("width", [3, 4, 8, 24])
def test_upsample(width):
    class Upsample(nn.Cell):
        def construct(self, x):
            return kernels.upsample(x)

    check(Upsample(), lambda x: x.repeat(2, 2).repeat(2, 3), [numbers(2, 3, 5, width)])


def test_kernels_keep_nothing_in_memory():
    """MindSpore's own broadcast multiplication and Transpose would keep four times and twice the array."""
    x = ms.Tensor(numbers(4096, 1024))
    gamma = ms.Tensor(numbers(1024))

    class Chain(nn.Cell):
        def __init__(self, cell):
            super().__init__()
            # six cells, because calls of the same one share its constants
            self.chain = nn.CellList([cell() for _ in range(6)])

        def construct(self, x, gamma):
            for cell in self.chain:
                x = cell(x, gamma)
            return x

    class Swap(nn.Cell):
        def __init__(self):
            super().__init__()
            self.swap = kernels.SwapMiddle()

        def construct(self, x, gamma):
            return self.swap(x.reshape(4, 1024, 16, 64)).reshape(4096, 1024)

    class Scale(nn.Cell):
        def __init__(self):
            super().__init__()
            self.scale = kernels.ScaleColumns()

        def construct(self, x, gamma):
            return self.scale(x, gamma, gamma)

    for cell in (Swap, Scale):
        chain = Chain(cell)
        # six operations in a row: a result or two at a time, and not one for each
        assert peak(lambda: chain(x, gamma).asnumpy()) < 6 * x.nbytes


def test_normal_cdf():
    class Cdf(nn.Cell):
        def construct(self, x):
            return kernels.normal_cdf(x, x * x)

    x = np.concatenate([np.linspace(-9, 9, 20001), [-1e4, 1e4, -1e30, 1e30]]).astype(np.float32)
    found = Cdf()(ms.Tensor(x)).asnumpy()
    # 6e-8 of the fit, and the 8e-7 of MindSpore's own sigmoid on the CPU
    np.testing.assert_allclose(found, cdf(x.astype(np.float64)), atol=1e-6)


def test_gelu_gate():
    check(kernels.GeluGate(), lambda x, gate: x * gate * cdf(gate), [numbers(6, 50), 2 * numbers(6, 50, seed=1)])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_gelu_is_exact_where_half_precision_would_cancel(dtype):
    """Composed of erf in float16 it would be off by up to 8.5 % in [-3, -2] and 0 for a third of [-4, -3]."""
    x = np.linspace(-4, 4, 4001).astype(dtype)
    exact = x.astype(np.float64)
    exact = exact * cdf(exact)
    found = layers.GELU()(ms.Tensor(x)).asnumpy()
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=1e-3, atol=1e-6)


def test_geglu_is_exact_in_half_precision():
    """With both halves of its projection the input itself: x times the exact GELU of x."""
    geglu = layers.GEGLU(1, 1)
    geglu.proj.weight.set_data(ms.Tensor(np.ones((2, 1), np.float32)))
    geglu.proj.bias.set_data(ms.Tensor(np.zeros(2, np.float32)))
    x = np.linspace(-4, 4, 4001).astype(np.float16)
    found = geglu(ms.Tensor(x.reshape(-1, 1))).asnumpy().ravel()
    exact = x.astype(np.float64) ** 2
    exact = exact * cdf(x.astype(np.float64))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=1e-3, atol=1e-6)
