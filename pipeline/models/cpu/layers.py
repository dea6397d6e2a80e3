"""The layers of models/layers.py in the form that a CPU wants: the same names, parameters and numbers, from kernels of
MindSpore's CPU backend that are there and fast (kernels.py, convolution.py)."""

import os

import mindspore as ms
from mindspore import nn, ops

from pipeline.models import attention, layers
from pipeline.models.cpu import kernels
from pipeline.models.cpu.convolution import Convolution


def convolves_by_products() -> bool:
    """Whether oneDNN may use AVX-512, so that its convolutions cannot be used (convolution.py); asked when a layer is
    made."""
    return os.environ["ONEDNN_MAX_CPU_ISA"] != "AVX2"


class Linear(layers.Linear):
    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, bias)
        if bias:
            self.bias_add = kernels.AddColumns()

    def compute(self, x, weight):
        y = self.matmul(x.reshape(-1, x.shape[-1]), weight.astype(x.dtype))
        if self.has_bias:
            y = self.bias_add(y, self.bias.astype(x.dtype))
        return y.reshape(x.shape[:-1] + (self.out_channels,))


def linear(x, weight, bias):
    """x (..., in_channels), weight (out_channels, in_channels), bias (out_channels) -> (..., out_channels)"""
    return ops.matmul(x, weight.astype(x.dtype).T) + bias.astype(x.dtype)


class Conv(layers.Conv):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding=None):
        super().__init__(in_channels, out_channels, kernel, stride, padding)
        self.bias_add = kernels.AddChannels()
        if convolves_by_products():
            self.conv2d = Convolution(kernel, stride, self.padding)

    def compute(self, x, weight):
        return self.bias_add(self.conv2d(x, weight.astype(x.dtype)), self.bias.astype(x.dtype))


class GroupNorm(layers.GroupNorm):
    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps)
        self.normalize = kernels.NormalizeRows(eps)
        self.scale = kernels.ScaleChannels()

    def construct(self, x):
        y = x.astype(ms.float32)
        y = self.normalize(y.reshape(x.shape[0] * self.num_groups, -1)).reshape(x.shape)
        return self.scale(y, self.gamma, self.beta).astype(x.dtype)


class LayerNorm(layers.LayerNorm):
    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(channels, eps)
        self.normalize = kernels.NormalizeRows(eps)
        self.scale = kernels.ScaleColumns()

    def construct(self, x):
        y = x.astype(ms.float32)
        y = self.scale(self.normalize(y.reshape(-1, x.shape[-1])), self.gamma, self.beta).reshape(x.shape)
        return y.astype(x.dtype)


SiLU = kernels.SiLU
SumOfSquares = kernels.SumOfSquares


class GELU(nn.Cell):
    """In float32 whatever the input: composed of erf as it is, it would cancel in half precision where x < -2."""

    def construct(self, x):
        return ops.gelu(x.astype(ms.float32), approximate="none").astype(x.dtype)


class GEGLU(nn.Cell):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = Linear(in_channels, 2 * out_channels)
        self.gate = kernels.GeluGate()

    def construct(self, x):
        """x (..., in_channels) -> (..., out_channels)"""
        value, gate = ops.Split(-1, 2)(self.proj(x))
        return self.gate(value.astype(ms.float32), gate.astype(ms.float32)).astype(x.dtype)


class Embedding(layers.Embedding):
    def construct(self, ids):
        """ids (...) int32 -> (..., width)"""
        return ops.gather(self.embedding_table, ids, 0)


class AtLargest(nn.Cell):
    def construct(self, x, ids):
        b, tokens, width = x.shape
        rows = ops.argmax(ids, dim=1).astype(ms.int32) + ms.mint.arange(b, dtype=ms.int32) * tokens
        return ops.gather(x.reshape(b * tokens, width), rows, 0)


class AddToChannels(nn.Cell):
    def __init__(self):
        super().__init__()
        self.add = kernels.AddChannels()

    def construct(self, x, numbers):
        b, c, h, w = x.shape
        return self.add(x.reshape(1, b * c, h, w), numbers.reshape(b * c)).reshape(x.shape)


class Fork(nn.Cell):
    """x -> (x, x), without a gradient of its own: a CPU has AddN."""

    def construct(self, x):
        return x, x


class UpsampleNearest(nn.Cell):
    def construct(self, x):
        return kernels.upsample(x)


def make_attention(kind: str, heads: int, head_dim: int, dtype: ms.Type = ms.float32) -> nn.Cell:
    swap = kernels.SwapOne if heads == 1 else kernels.SwapMiddle
    return attention.make_attention(kind, heads, head_dim, dtype, swap, kernels.CentredScores, kernels.Between)
