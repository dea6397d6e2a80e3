"""Scaled dot-product attention (arXiv 1706.03762, eq. 1) in the forms that the devices want. All take and give
(batch, heads, tokens, head_dim)."""

from mindspore import dtype as mstype
from mindspore import nn, ops


def attend(q, k, v, scale: float, mask=None):
    """softmax(q kᵀ scale + mask) v, with the softmax in float32."""
    scores = ops.BatchMatMul(transpose_b=True)(q * scale, k).astype(mstype.float32)
    if mask is not None:
        scores = scores + mask
    return ops.BatchMatMul()(ops.softmax(scores).astype(q.dtype), v)


class PlainAttention(nn.Cell):
    """The whole (queries, keys) matrix at once."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.scale = head_dim**-0.5

    def construct(self, q, k, v):
        return attend(q, k, v, self.scale)


def make_attention(kind: str, head_dim: int) -> nn.Cell:
    return PlainAttention(head_dim)
