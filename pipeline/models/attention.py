"""Scaled dot-product attention (arXiv 1706.03762, eq. 1) in the forms that the devices want.

All cells take q (b, heads, queries, head_dim), k and v (b, heads, keys, head_dim), and give (b, heads, queries,
head_dim). The softmax is in float32 whatever the dtype of q."""

import mindspore as ms
from mindspore import nn, ops

KINDS = ("plain", "tiled", "flash", "flash_padded")

# Queries of one tile: 512 queries of 20 heads by 4,096 keys are 168 MB of float32 scores.
TILE = 512


def attend(q, k, v, scale: float, mask):
    """softmax(q kᵀ scale + mask) v with the whole (queries, keys) matrix at once."""
    scores = ops.BatchMatMul(transpose_b=True)(q * scale, k).astype(ms.float32) + mask
    return ops.BatchMatMul()(ops.Softmax()(scores).astype(q.dtype), v)


def _probabilities(q, k):
    """softmax(q kᵀ) (b, heads, queries, keys) float32, for q already scaled"""
    return ops.Softmax()(ops.BatchMatMul(transpose_b=True)(q, k).astype(ms.float32))


def _gradients(q, k, v, p, out, dout):
    """(dq, dk, dv) of out = p v, p = softmax(q kᵀ), for q already scaled and p (b, heads, queries, keys) float32.

    ds = p ∘ (dp - row) with dp = dout vᵀ, and row = Σ p∘dp over the keys = Σ dout∘out over head_dim, which is much the
    narrower sum (arXiv 2205.14135, algorithm 4). As a bias of channels, because a broadcast subtraction on the CPU
    builds an index of every element, and keeps it."""
    b, heads, queries, head_dim = q.shape
    minus_row = ops.MatMul()((dout * out).reshape(-1, head_dim), -ops.ones((head_dim, 1), q.dtype))
    dp = ops.BatchMatMul(transpose_b=True)(dout, v).reshape(1, b * heads * queries, -1, 1)
    dp = ops.BiasAdd()(dp, minus_row.reshape(-1)).reshape(p.shape)
    ds = (p * dp.astype(ms.float32)).astype(q.dtype)
    dq = ops.BatchMatMul()(ds, k)
    dk = ops.BatchMatMul(transpose_a=True)(ds, q)
    dv = ops.BatchMatMul(transpose_a=True)(p.astype(q.dtype), dout)
    return dq, dk, dv


class _WithProbabilities(nn.Cell):
    """Attention that also gives p, so that the backward pass has it."""

    def construct(self, q, k, v):
        p = _probabilities(q, k)
        return ops.BatchMatMul()(p.astype(q.dtype), v), p

    def bprop(self, q, k, v, out, dout):
        return _gradients(q, k, v, out[1], out[0], dout[0])


class PlainAttention(nn.Cell):
    """The whole (queries, keys) matrix at once, kept for the backward pass."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.scale = head_dim**-0.5
        self.attention = _WithProbabilities()

    def construct(self, q, k, v):
        out, _ = self.attention(q * self.scale, k, v)
        return out


class _Tiled(nn.Cell):
    """Attention for q already scaled, `tile` queries at a time; each tile waits for the one before it, or the device
    would have them all in memory at once."""

    def __init__(self, tile: int):
        super().__init__()
        self.tile = tile

    def construct(self, q, k, v):
        tiles = ()
        for start in range(0, q.shape[2], self.tile):
            q_tile = q[:, :, start : start + self.tile]
            if start > 0:
                q_tile = ops.depend(q_tile, tiles[-1])
            tiles = tiles + (ops.BatchMatMul()(_probabilities(q_tile, k).astype(q.dtype), v),)
        return ops.concat(tiles, 2)

    def bprop(self, q, k, v, out, dout):
        dq, dk, dv = (), None, None
        for start in range(0, q.shape[2], self.tile):
            stop = start + self.tile
            q_tile, d_tile = q[:, :, start:stop], dout[:, :, start:stop]
            if start > 0:
                q_tile, d_tile = ops.depend(q_tile, (dq[-1], dk, dv)), ops.depend(d_tile, (dq[-1], dk, dv))
            p = _probabilities(q_tile, k)
            dq_tile, dk_tile, dv_tile = _gradients(q_tile, k, v, p, out[:, :, start:stop], d_tile)
            dq = dq + (dq_tile,)
            dk = dk_tile if dk is None else dk + dk_tile
            dv = dv_tile if dv is None else dv + dv_tile
        return ops.concat(dq, 2), dk, dv


class TiledAttention(nn.Cell):
    """The same numbers in memory that grows with the sequence and not with its square: `tile` queries at a time, and
    the backward pass computes each tile's matrix again (arXiv 2205.14135). Up to `tile` queries it is
    PlainAttention."""

    def __init__(self, head_dim: int, tile: int = TILE):
        super().__init__()
        self.scale = head_dim**-0.5
        self.tile = tile
        self.plain = PlainAttention(head_dim)
        self.tiled = _Tiled(tile)

    def construct(self, q, k, v):
        if q.shape[2] <= self.tile:
            return self.plain(q, k, v)
        return self.tiled(q * self.scale, k, v)


class FlashAttention(nn.Cell):
    """MindSpore's fused kernel, Ascend only; written against the signature of 2.10.0, not run on an NPU.

    `pad_keys` pads keys and values to a multiple of 16 (SDXL's 77 text tokens to 80) under a mask, for versions of CANN
    whose kernel wants that. Raises ValueError, before the kernel would, for a dtype or head size that it does not
    have."""

    def __init__(self, head_dim: int, dtype: ms.Type, pad_keys: bool = False):
        super().__init__()
        if dtype not in (ms.float16, ms.bfloat16):
            raise ValueError(
                f"flash attention got {dtype}; it computes in float16 or bfloat16: choose one of them as precision, "
                f"or another attention"
            )
        if head_dim % 16 or not 16 <= head_dim <= 512:
            raise ValueError(f"flash attention got a head size of {head_dim}; it wants a multiple of 16, at most 512")
        self.scale = head_dim**-0.5
        self.dtype = dtype
        self.pad_keys = pad_keys

    def construct(self, q, k, v):
        q, k, v = q.astype(self.dtype), k.astype(self.dtype), v.astype(self.dtype)
        mask = None
        padding = -k.shape[2] % 16
        if self.pad_keys and padding > 0:
            b, heads, keys, head_dim = k.shape
            zeros = ops.zeros((b, heads, padding, head_dim), self.dtype)
            k, v = ops.concat((k, zeros), 2), ops.concat((v, zeros), 2)
            queries = q.shape[2]
            # 1 hides a key
            mask = ops.concat((ops.zeros((queries, keys), ms.uint8), ops.ones((queries, padding), ms.uint8)), 1)
        return ops.flash_attention_score(
            q, k, v, head_num=q.shape[1], attn_mask=mask, scalar_value=self.scale, input_layout="BNSD"
        )


def make_attention(kind: str, head_dim: int, dtype: ms.Type = ms.float32) -> nn.Cell:
    """The attention cell of this kind (one of KINDS) for heads of this size, called with tensors of this dtype."""
    if kind == "plain":
        return PlainAttention(head_dim)
    if kind == "tiled":
        return TiledAttention(head_dim)
    if kind in ("flash", "flash_padded"):
        return FlashAttention(head_dim, dtype, pad_keys=kind == "flash_padded")
    raise ValueError(f"attention {kind!r} is not one of {', '.join(KINDS)}")
