"""Scaled dot-product attention (arXiv 1706.03762, eq. 1) in the forms that the devices want. All take and give
(batch, heads, tokens, head_dim)."""

from mindspore import dtype as mstype
from mindspore import nn, ops


class PlainAttention(nn.Cell):
    """The whole (queries, keys) matrix at once."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.scale = head_dim**-0.5
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.weighted = ops.BatchMatMul()
        self.softmax = ops.Softmax()

    def construct(self, q, k, v):
        p = self.softmax((self.scores(q * self.scale, k)).astype(mstype.float32)).astype(q.dtype)
        return self.weighted(p, v)


def make_attention(kind: str, head_dim: int) -> nn.Cell:
    return PlainAttention(head_dim)
