"""The layers that the four networks are made of, in the form that an NPU wants: every one of MindSpore's primitives in
them and in their gradients has an aclnn kernel, where the older primitives (Conv2D, BiasAdd, LayerNorm, Split, AddN) go
by way of GE's adapters (tests/models/test_npu_form.py). What a CPU wants instead stands in models/cpu under the same names,
and models/forms.py chooses. Compiled, not run on an NPU.

One rule of precision holds in both: a layer computes in the dtype of its input, whatever dtype its parameters have, and
a norm computes in float32 and gives back the input's dtype. So float32 master weights with a float16 compute, and
float16 weights with a float32 compute, need no other code."""

import mindspore as ms
from mindspore import mint, nn, ops
from mindspore.common.initializer import Normal, initializer

from pipeline.models.attention import make_attention  # noqa: F401  (a layer like the others)

F = mint.nn.functional


class Linear(nn.Dense):
    """y = x Wᵀ + b over the last axis; weight (out_channels, in_channels)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, has_bias=bias)

    def construct(self, x):
        """x (..., in_channels) -> (..., out_channels)"""
        return self.compute(x, self.weight)

    def compute(self, x, weight):
        """As `construct`, with `weight` in the place of its own."""
        if self.has_bias:
            return linear(x, weight, self.bias)
        # MatMul and not linear without a bias, in whose gradient two matrices are transposed by kernels of their own
        y = self.matmul(x.reshape(-1, x.shape[-1]), weight.astype(x.dtype))
        return y.reshape(x.shape[:-1] + (self.out_channels,))


def linear(x, weight, bias):
    """x (..., in_channels), weight (out_channels, in_channels), bias (out_channels) -> (..., out_channels)"""
    return F.linear(x, weight.astype(x.dtype), bias.astype(x.dtype))


class Conv(nn.Conv2d):
    """2-D convolution, kernel 1 or 3, with bias; pads so that stride 1 keeps the size.

    `padding` (top, bottom, left, right) replaces that padding where a network pads in another way."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding=None):
        padding = (kernel // 2,) * 4 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel, stride, pad_mode="pad", padding=padding, has_bias=True)
        top, bottom, left, right = padding
        self.step = stride
        # the kernel pads both sides alike, or not at all
        self.uneven = (top, left) != (bottom, right)
        self.sides = (left, right, top, bottom)
        self.border = (0, 0) if self.uneven else (top, left)

    def construct(self, x):
        """x (b, in_channels, h, w) -> (b, out_channels, h / stride, w / stride)"""
        return self.compute(x, self.weight)

    def compute(self, x, weight):
        """As `construct`, with `weight` in the place of its own."""
        if self.uneven:
            x = F.pad(x, self.sides)
        return F.conv2d(x, weight.astype(x.dtype), self.bias.astype(x.dtype), self.step, self.border)


class GroupNorm(nn.GroupNorm):
    """Group normalisation (arXiv 1803.08494) of (b, channels, h, w), in float32."""

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps)

    def construct(self, x):
        y = F.group_norm(x.astype(ms.float32), self.num_groups, self.gamma, self.beta, self.eps)
        return y.astype(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (arXiv 1607.06450) of (..., channels) over the last axis, in float32."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__((channels,), epsilon=eps)

    def construct(self, x):
        y = F.layer_norm(x.astype(ms.float32), self.normalized_shape, self.gamma, self.beta, self.epsilon)
        return y.astype(x.dtype)


class SiLU(nn.Cell):
    """x sigmoid(x) (arXiv 1702.03118)"""

    def construct(self, x):
        return F.silu(x)


class GELU(nn.Cell):
    """The exact GELU, x Φ(x) (arXiv 1606.08415), by one kernel and not composed of erf, which in half precision cancels
    where x < -2. CANN's public kernel computes halves in float32 (hicann/ops-nn, gelu_v2_dag.h)."""

    def __init__(self):
        super().__init__()
        # F.gelu is the same kernel, which MindSpore 2.10.0 then takes for one outside of the block that is recomputed.
        self.gelu = ops.auto_generate.GeluExt()

    def construct(self, x):
        return self.gelu(x, "none")


def halves(x):
    """(..., 2 n) -> two (..., n)"""
    return ops.auto_generate.SplitTensor()(x, x.shape[-1] // 2, -1)


class GEGLU(nn.Cell):
    """x gelu(gate) with (x, gate) = proj(input) (arXiv 2002.05202), with the exact GELU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = Linear(in_channels, 2 * out_channels)
        self.gelu = GELU()

    def construct(self, x):
        """x (..., in_channels) -> (..., out_channels)"""
        value, gate = halves(self.proj(x))
        return value * self.gelu(gate)


class Embedding(nn.Cell):
    """Rows of `embedding_table` (rows, width) by their index."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embedding_table = ms.Parameter(initializer(Normal(0.02), (rows, width)), "embedding_table")

    def construct(self, ids):
        """ids (...) int32 -> (..., width)"""
        return F.embedding(ids, self.embedding_table)


class AtLargest(nn.Cell):
    """x (b, tokens, width), ids (b, tokens) int32 -> (b, width): x at the first of each row's largest ids."""

    def construct(self, x, ids):
        b, tokens, width = x.shape
        rows = mint.argmax(ids, dim=1).astype(ms.int32) + mint.arange(b, dtype=ms.int32) * tokens
        return mint.index_select(x.reshape(b * tokens, width), 0, rows)


class AddToChannels(nn.Cell):
    """x (b, c, h, w), numbers (b, c) -> x with its number added to each channel of each sample."""

    def construct(self, x, numbers):
        return x + numbers.reshape(*numbers.shape, 1, 1)


class Fork(nn.Cell):
    """x -> (x, x), for what two cells take: MindSpore would sum their gradients by AddN, which has no aclnn kernel."""

    def construct(self, x):
        return x, x

    def bprop(self, x, out, dout):
        return (dout[0] + dout[1],)


class UpsampleNearest(nn.Cell):
    """Nearest neighbour, x (b, c, h, w) -> (b, c, 2h, 2w)."""

    def construct(self, x):
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _square_sum(x):
    x = x.astype(ms.float32)
    return (x * x).sum().reshape(1)


class SumOfSquares(nn.Cell):
    """Of all numbers of a tuple of tensors (a step's gradients), float32 ()."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.map = ops.HyperMap()

    def construct(self, tensors):
        return ops.concat(self.map(_square_sum, tensors)).sum()


def norm_parameters(cell: nn.Cell) -> set[str]:
    """Names (paths inside `cell`) of the parameters of every norm, by kind of module and not by name: most of SDXL's
    GroupNorms are called `in_layers.0`. They stay float32 when the other weights are half, and take no weight decay."""
    return {
        name
        for path, child in cell.cells_and_names()
        if isinstance(child, (nn.GroupNorm, nn.LayerNorm))
        for name in (f"{path}.gamma" if path else "gamma", f"{path}.beta" if path else "beta")
    }
