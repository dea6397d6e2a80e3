"""Scaled dot-product attention (arXiv 1706.03762, eq. 1) in the forms that the devices want.

All cells take queries (b, tokens, heads * head_dim), keys and values (b, keys, heads * head_dim), as Linear gives them,
and give (b, tokens, heads * head_dim). The softmax is in float32 whatever the dtype of q. Below, q, k, v, out and their
gradients are (b, heads, tokens or keys, head_dim)."""

import mindspore as ms
from mindspore import nn, ops

KINDS = ("plain", "tiled", "flash", "flash_padded")

# Queries of one tile: 512 queries of 20 heads by 4,096 keys are 168 MB of float32 scores.
TILE = 512


def attend(q, k, v, scale: float, mask):
    """softmax(q kᵀ scale + mask) v with the whole (queries, keys) matrix at once."""
    scores = ops.BatchMatMul(transpose_b=True)(q * scale, k).astype(ms.float32) + mask
    return ops.BatchMatMul()(ops.Softmax()(scores).astype(q.dtype), v)


class Swap(nn.Cell):
    """(b, tokens, heads, head_dim) -> (b, heads, tokens, head_dim), and back"""

    def construct(self, x):
        return x.swapaxes(1, 2)


class CentredScores(nn.Cell):
    """dout vᵀ (b, heads, queries, keys) less each query's Σ dout∘out over head_dim"""

    def construct(self, dout, v, out):
        return ops.BatchMatMul(transpose_b=True)(dout, v) - (dout * out).sum(-1, keepdims=True)


class Between(nn.Cell):
    """x (b, heads, tokens, head_dim) -> its tokens from `start` to before `stop`, which may lie behind the last"""

    def construct(self, x, start, stop):
        return ops.auto_generate.SliceExt()(x, 2, start, stop, 1)


def _probabilities(q, k):
    """softmax(q kᵀ) (b, heads, queries, keys) float32, for q already scaled"""
    return ops.Softmax()(ops.BatchMatMul(transpose_b=True)(q, k).astype(ms.float32))


def _gradients(centred, q, k, v, p, out, dout):
    """(dq, dk, dv) of out = p v, p = softmax(q kᵀ), for q already scaled and p (b, heads, queries, keys) float32.

    ds = p ∘ (dp - row) with dp = dout vᵀ, and row = Σ p∘dp over the keys = Σ dout∘out over head_dim, which is much the
    narrower sum (arXiv 2205.14135, algorithm 4)."""
    ds = (p * centred(dout, v, out).astype(ms.float32)).astype(q.dtype)
    dq = ops.BatchMatMul()(ds, k)
    dk = ops.BatchMatMul(transpose_a=True)(ds, q)
    dv = ops.BatchMatMul(transpose_a=True)(p.astype(q.dtype), dout)
    return dq, dk, dv


class _Whole(nn.Cell):
    """(attention for q already scaled, p); the second is kept for the backward pass."""

    def __init__(self, centred: nn.Cell):
        super().__init__()
        self.centred = centred

    def construct(self, q, k, v):
        p = _probabilities(q, k)
        return ops.BatchMatMul()(p.astype(q.dtype), v), p

    def bprop(self, q, k, v, out, dout):
        return _gradients(self.centred, q, k, v, out[1], out[0], dout[0])


class _Tiled(nn.Cell):
    """Attention for q already scaled, `tile` queries at a time; each tile waits for the one before it, or the device
    would have them all in memory at once."""

    def __init__(self, tile: int, centred: nn.Cell, between: nn.Cell):
        super().__init__()
        self.tile = tile
        self.centred, self.between = centred, between

    def construct(self, q, k, v):
        tiles = ()
        for start in range(0, q.shape[2], self.tile):
            q_tile = self.between(q, start, start + self.tile)
            if start > 0:
                q_tile = ops.depend(q_tile, tiles[-1])
            tiles = tiles + (ops.BatchMatMul()(_probabilities(q_tile, k).astype(q.dtype), v),)
        return ops.concat(tiles, 2)

    def bprop(self, q, k, v, out, dout):
        dq, dk, dv = (), None, None
        for start in range(0, q.shape[2], self.tile):
            stop = start + self.tile
            q_tile, d_tile = self.between(q, start, stop), self.between(dout, start, stop)
            if start > 0:
                q_tile, d_tile = ops.depend(q_tile, (dq[-1], dk, dv)), ops.depend(d_tile, (dq[-1], dk, dv))
            p = _probabilities(q_tile, k)
            out_tile = self.between(out, start, stop)
            dq_tile, dk_tile, dv_tile = _gradients(self.centred, q_tile, k, v, p, out_tile, d_tile)
            dq = dq + (dq_tile,)
            dk = dk_tile if dk is None else dk + dk_tile
            dv = dv_tile if dv is None else dv + dv_tile
        return ops.concat(dq, 2), dk, dv


class _Heads(nn.Cell):
    """What the two forms by matrices share: heads apart, q scaled, heads joined again."""

    def __init__(self, heads: int, head_dim: int, swap: type = Swap):
        super().__init__()
        self.heads = heads
        self.scale = head_dim**-0.5
        self.swap = swap()

    def split(self, x):
        b, tokens, channels = x.shape
        return self.swap(x.reshape(b, tokens, self.heads, channels // self.heads))

    def construct(self, q, k, v):
        out = self.attend(self.split(q) * self.scale, self.split(k), self.split(v))
        return self.swap(out).reshape(q.shape)


class PlainAttention(_Heads):
    """The whole (queries, keys) matrix at once, kept for the backward pass."""

    def __init__(self, heads: int, head_dim: int, swap: type = Swap, centred: type = CentredScores):
        super().__init__(heads, head_dim, swap)
        self.whole = _Whole(centred())

    def attend(self, q, k, v):
        out, _ = self.whole(q, k, v)
        return out


class TiledAttention(PlainAttention):
    """The same numbers in memory that grows with the sequence and not with its square: `tile` queries at a time, and
    the backward pass computes each tile's matrix again (arXiv 2205.14135). Up to `tile` queries it is
    PlainAttention."""

    def __init__(
        self,
        heads: int,
        head_dim: int,
        tile: int = TILE,
        swap: type = Swap,
        centred: type = CentredScores,
        between: type = Between,
    ):
        super().__init__(heads, head_dim, swap, centred)
        self.tile = tile
        self.tiled = _Tiled(tile, centred(), between())

    def attend(self, q, k, v):
        if q.shape[2] <= self.tile:
            out, _ = self.whole(q, k, v)
        else:
            out = self.tiled(q, k, v)
        return out


class FlashAttention(nn.Cell):
    """MindSpore's fused kernel, Ascend only; compiled against 2.10.0, not run on an NPU.

    It takes Linear's outputs as they are (layout BSH), so no head is moved. `pad_keys` pads keys and values to a
    multiple of 16 (SDXL's 77 text tokens to 80) under a mask, for versions of CANN whose kernel wants that. Raises
    ValueError, before the kernel would, for a dtype or head size that it does not have."""

    def __init__(self, heads: int, head_dim: int, dtype: ms.Type, pad_keys: bool = False):
        super().__init__()
        if dtype not in (ms.float16, ms.bfloat16):
            raise ValueError(
                f"flash attention got {dtype}; it computes in float16 or bfloat16: choose one of them as precision, "
                f"or another attention"
            )
        if head_dim % 16 or not 16 <= head_dim <= 512:
            raise ValueError(f"flash attention got a head size of {head_dim}; it wants a multiple of 16, at most 512")
        self.heads = heads
        self.scale = head_dim**-0.5
        self.dtype = dtype
        self.pad_keys = pad_keys

    def construct(self, q, k, v):
        q, k, v = q.astype(self.dtype), k.astype(self.dtype), v.astype(self.dtype)
        mask = None
        b, keys, channels = k.shape
        padding = -keys % 16
        if self.pad_keys and padding > 0:
            zeros = ops.zeros((b, padding, channels), self.dtype)
            k, v = ops.concat((k, zeros), 1), ops.concat((v, zeros), 1)
            queries = q.shape[1]
            # 1 hides a key
            mask = ops.concat((ops.zeros((queries, keys), ms.uint8), ops.ones((queries, padding), ms.uint8)), 1)
        return ops.flash_attention_score(
            q, k, v, head_num=self.heads, attn_mask=mask, scalar_value=self.scale, input_layout="BSH"
        )


def make_attention(
    kind: str,
    heads: int,
    head_dim: int,
    dtype: ms.Type = ms.float32,
    swap: type = Swap,
    centred: type = CentredScores,
    between: type = Between,
) -> nn.Cell:
    """The attention cell of this kind (one of KINDS) for heads of this size, called with tensors of this dtype. `swap`,
    `centred` and `between` are what the two kinds by matrices are made of."""
    if kind == "plain":
        return PlainAttention(heads, head_dim, swap, centred)
    if kind == "tiled":
        return TiledAttention(heads, head_dim, TILE, swap, centred, between)
    if kind in ("flash", "flash_padded"):
        return FlashAttention(heads, head_dim, dtype, pad_keys=kind == "flash_padded")
    raise ValueError(f"attention {kind!r} is not one of {', '.join(KINDS)}")
