"""Scaled dot-product attention (arXiv 1706.03762, eq. 1) in the forms that the devices want.

All cells take q (b, heads, queries, head_dim), k and v (b, heads, keys, head_dim) and give (b, heads, queries, head_dim).
The softmax is in float32 whatever the dtype of q."""

import mindspore as ms
from mindspore import nn, ops

KINDS = ("plain", "tiled", "flash", "flash_padded")

# Queries of one tile: 512 queries of 20 heads by 4,096 keys are 168 MB of float32 scores.
TILE = 512


def attend(q, k, v, scale: float, mask=None):
    """softmax(q kᵀ scale + mask) v with the whole (queries, keys) matrix at once."""
    return ops.BatchMatMul()(_probabilities(q * scale, k, mask).astype(q.dtype), v)


def _probabilities(q, k, mask=None):
    """softmax(q kᵀ + mask) (b, heads, queries, keys) float32, for q already scaled"""
    scores = ops.BatchMatMul(transpose_b=True)(q, k).astype(ms.float32)
    return ops.Softmax()(scores if mask is None else scores + mask)


class PlainAttention(nn.Cell):
    """The whole (queries, keys) matrix at once, kept for the backward pass."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.scale = head_dim**-0.5

    def construct(self, q, k, v):
        return attend(q, k, v, self.scale)


class TiledAttention(nn.Cell):
    """The same numbers in memory that grows with the sequence and not with its square: `tile` queries at a time, and
    the backward pass computes each tile's matrix again (as flash attention does, arXiv 2205.14135, algorithm 4)."""

    def __init__(self, head_dim: int, tile: int = TILE):
        super().__init__()
        self.scale = head_dim**-0.5
        self.tile = tile
        self.matmul = ops.BatchMatMul()
        self.matmul_nt = ops.BatchMatMul(transpose_b=True)
        self.matmul_tn = ops.BatchMatMul(transpose_a=True)

    def construct(self, q, k, v):
        tiles = ()
        for start in range(0, q.shape[2], self.tile):
            tiles = tiles + (attend(q[:, :, start : start + self.tile], k, v, self.scale),)
        return ops.concat(tiles, 2)

    def bprop(self, q, k, v, out, dout):
        # ds = p ∘ (dp - Σ p∘dp), and the row sum is Σ dout∘out, which is narrower than (queries, keys)
        row = (dout * out).astype(ms.float32).sum(-1, keepdims=True)
        dq, dk, dv = (), None, None
        for start in range(0, q.shape[2], self.tile):
            stop = start + self.tile
            q_tile = q[:, :, start:stop] * self.scale
            d_tile = dout[:, :, start:stop]
            p = _probabilities(q_tile, k)
            dp = self.matmul_nt(d_tile, v).astype(ms.float32)
            ds = (p * (dp - row[:, :, start:stop])).astype(q.dtype)
            dk_tile = self.matmul_tn(ds, q_tile)
            dv_tile = self.matmul_tn(p.astype(q.dtype), d_tile)
            dq = dq + (self.matmul(ds, k) * self.scale,)
            dk = dk_tile if dk is None else dk + dk_tile
            dv = dv_tile if dv is None else dv + dv_tile
        return ops.concat(dq, 2), dk, dv


class FlashAttention(nn.Cell):
    """MindSpore's fused kernel, Ascend only; written against the signature of 2.10.0, not run on an NPU.

    `pad_keys` pads keys and values to a multiple of 16 (SDXL's 77 text tokens to 80) under a mask, for versions of CANN
    whose kernel wants that. Raises ValueError, before the kernel would, for a dtype or head size that it does not have."""

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
