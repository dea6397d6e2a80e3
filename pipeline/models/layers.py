"""The layers that the four networks are made of.

One rule of precision holds in all of them: a layer computes in the dtype of its input, whatever dtype its parameters
have, and a norm computes in float32 and gives back the input's dtype. So float32 master weights with a float16 compute,
and float16 weights with a float32 compute, need no other code."""

import mindspore as ms
from mindspore import nn, ops
from mindspore.common.initializer import Normal, initializer

from pipeline.models import kernels
from pipeline.models.convolution import Convolution


class Linear(nn.Dense):
    """y = x Wᵀ + b over the last axis; weight (out_channels, in_channels)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, has_bias=bias)
        if bias and kernels.on_cpu():
            self.bias_add = kernels.AddColumns()

    def construct(self, x):
        """x (..., in_channels) -> (..., out_channels)"""
        y = self.matmul(x.reshape(-1, x.shape[-1]), self.weight.astype(x.dtype))
        if self.has_bias:
            y = self.bias_add(y, self.bias.astype(x.dtype))
        return y.reshape(x.shape[:-1] + (self.out_channels,))


class Conv(nn.Conv2d):
    """2-D convolution, kernel 1 or 3, with bias; pads so that stride 1 keeps the size.

    `padding` (top, bottom, left, right) replaces that padding where a network pads in another way."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding=None):
        padding = (kernel // 2,) * 4 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel, stride, pad_mode="pad", padding=padding, has_bias=True)
        if kernels.on_cpu():
            self.bias_add = kernels.AddChannels()
        if kernels.convolves_by_products():
            self.conv2d = Convolution(kernel, stride, padding)

    def construct(self, x):
        """x (b, in_channels, h, w) -> (b, out_channels, h / stride, w / stride)"""
        return self.bias_add(self.conv2d(x, self.weight.astype(x.dtype)), self.bias.astype(x.dtype))


class GroupNorm(nn.GroupNorm):
    """Group normalisation (arXiv 1803.08494) of (b, channels, h, w), in float32."""

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps)
        self.on_cpu = kernels.on_cpu()
        self.normalize = kernels.NormalizeRows(eps)
        self.scale = kernels.ScaleChannels()

    def construct(self, x):
        y = x.astype(ms.float32)
        if self.on_cpu:
            y = self.normalize(y.reshape(x.shape[0] * self.num_groups, -1)).reshape(x.shape)
            y = self.scale(y, self.gamma, self.beta)
        else:
            y = ops.group_norm(y, self.num_groups, self.gamma, self.beta, self.eps)
        return y.astype(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (arXiv 1607.06450) of (..., channels) over the last axis, in float32."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__((channels,), epsilon=eps)
        self.on_cpu = kernels.on_cpu()
        self.normalize = kernels.NormalizeRows(eps)
        self.scale = kernels.ScaleColumns()

    def construct(self, x):
        y = x.astype(ms.float32)
        if self.on_cpu:
            y = self.scale(self.normalize(y.reshape(-1, x.shape[-1])), self.gamma, self.beta).reshape(x.shape)
        else:
            y, _, _ = self.layer_norm(y, self.gamma, self.beta)
        return y.astype(x.dtype)


class SwapHeads(nn.Cell):
    """(b, tokens, heads, head_dim) -> (b, heads, tokens, head_dim), and back"""

    def __init__(self):
        super().__init__()
        self.on_cpu = kernels.on_cpu()
        self.swap = kernels.SwapMiddle()

    def construct(self, x):
        return self.swap(x) if self.on_cpu else x.swapaxes(1, 2)


class SiLU(nn.Cell):
    """x sigmoid(x) (arXiv 1702.03118)"""

    def __init__(self):
        super().__init__()
        self.on_cpu = kernels.on_cpu()
        self.silu = kernels.SiLU()

    def construct(self, x):
        return self.silu(x) if self.on_cpu else ops.silu(x)


class GEGLU(nn.Cell):
    """x gelu(gate) with (x, gate) = proj(input) (arXiv 2002.05202), with the exact GELU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = Linear(in_channels, 2 * out_channels)
        self.on_cpu = kernels.on_cpu()
        self.gate = kernels.GeluGate()

    def construct(self, x):
        """x (..., in_channels) -> (..., out_channels)"""
        value, gate = ops.Split(-1, 2)(self.proj(x))
        if self.on_cpu:
            return self.gate(value.astype(ms.float32), gate.astype(ms.float32)).astype(x.dtype)
        return value * gelu(gate)


class Embedding(nn.Cell):
    """Rows of `embedding_table` (rows, width) by their index."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embedding_table = ms.Parameter(initializer(Normal(0.02), (rows, width)), "embedding_table")

    def construct(self, ids):
        """ids (...) int32 -> (..., width)"""
        return ops.gather(self.embedding_table, ids, 0)


def gelu(x):
    """The exact GELU, x Φ(x) (arXiv 1606.08415)."""
    return ops.gelu(x, approximate="none")


class UpsampleNearest(nn.Cell):
    """Nearest neighbour, x (b, c, h, w) -> (b, c, 2h, 2w)."""

    def __init__(self):
        super().__init__()
        self.on_cpu = kernels.on_cpu()

    def construct(self, x):
        if self.on_cpu:
            return kernels.upsample(x)
        b, c, h, w = x.shape
        x = ops.broadcast_to(x.reshape(b, c, h, 1, w, 1), (b, c, h, 2, w, 2))
        return x.reshape(b, c, 2 * h, 2 * w)


def norm_parameters(cell: nn.Cell) -> set[str]:
    """Names (paths inside `cell`) of the parameters of every norm, by kind of module and not by name: most of SDXL's
    GroupNorms are called `in_layers.0`. They stay float32 when the other weights are half, and take no weight decay."""
    return {
        name
        for path, child in cell.cells_and_names()
        if isinstance(child, (nn.GroupNorm, nn.LayerNorm))
        for name in (f"{path}.gamma" if path else "gamma", f"{path}.beta" if path else "beta")
    }
