import inspect

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from pipeline.models.attention import KINDS, FlashAttention, PlainAttention, TiledAttention, make_attention
from pipeline.models.cpu import kernels
from tests.golden.compare import peak

pytestmark = pytest.mark.usefixtures("device")

HEAD_DIM = 16


HEADS = 3


def qkv(queries=40, keys=24, dtype=np.float32):
    """Heads apart, as equation 1 has them."""
    generator = np.random.default_rng(0)
    shapes = [(2, HEADS, queries, HEAD_DIM), (2, HEADS, keys, HEAD_DIM), (2, HEADS, keys, HEAD_DIM)]
    return [generator.standard_normal(shape).astype(dtype) for shape in shapes]


def joined(x):
    """(b, heads, tokens, head_dim) -> (b, tokens, heads * head_dim), as the cells take and give it"""
    b, heads, tokens, head_dim = x.shape
    return x.swapaxes(1, 2).reshape(b, tokens, heads * head_dim)


def tensors(*arrays):
    return [ms.Tensor(joined(array)) for array in arrays]


def reference(q, k, v, hidden=None):
    """Equation 1 in float64."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    if hidden is not None:
        scores = np.where(hidden, -np.inf, scores)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def reference_gradients(q, k, v, dout):
    """Of sum(dout * attention), in float64; the chain rule through equation 1 written out."""
    q, k, v, dout = (a.astype(np.float64) for a in (q, k, v, dout))
    scale = 1 / np.sqrt(q.shape[-1])
    scores = q @ k.swapaxes(2, 3) * scale
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = dout @ v.swapaxes(2, 3)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    return ds @ k, ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ dout


def gradients(cell, q, k, v, dout):
    def loss(q, k, v, dout):
        return (cell(q, k, v) * dout).sum()

    graph = ms.jit(ms.grad(loss, grad_position=(0, 1, 2)))
    return [g.asnumpy() for g in graph(*tensors(q, k, v, dout))]


CPU = {"swap": kernels.SwapMiddle, "centred": kernels.CentredScores}
CELLS = {
    "plain": PlainAttention(HEADS, HEAD_DIM, **CPU),
    "one tile": TiledAttention(HEADS, HEAD_DIM, tile=64, between=kernels.Between, **CPU),
    "tiles": TiledAttention(HEADS, HEAD_DIM, tile=8, between=kernels.Between, **CPU),
    "tiles with a rest": TiledAttention(HEADS, HEAD_DIM, tile=12, between=kernels.Between, **CPU),
    "an NPU's plain": PlainAttention(HEADS, HEAD_DIM),
    # SliceExt, which an NPU's tiles are cut with, has no kernel on a CPU
    "an NPU's tiles but for the cut": TiledAttention(HEADS, HEAD_DIM, tile=12, between=kernels.Between),
}


@pytest.mark.parametrize("name", CELLS)
def test_equals_equation_1(name):
    q, k, v = qkv()
    found = CELLS[name](*tensors(q, k, v)).asnumpy()
    np.testing.assert_allclose(found, joined(reference(q, k, v)), atol=2e-6)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_equal_the_chain_rule(name):
    q, k, v = qkv()
    dout = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)
    for found, wanted in zip(gradients(CELLS[name], q, k, v, dout), reference_gradients(q, k, v, dout)):
        np.testing.assert_allclose(found, joined(wanted), atol=3e-6 * np.abs(wanted).max())


def test_tiled_never_holds_all_queries_by_all_keys():
    def run(tokens):
        q, k, v = (a[:1, :1] for a in qkv(tokens, tokens))
        gradients(TiledAttention(1, HEAD_DIM, tile=256, between=kernels.Between, **CPU), q, k, v, q)

    run(1024)  # MindSpore's own first allocations
    tokens = 12288
    assert peak(lambda: run(tokens)) < 4 * tokens**2 / 2


def test_float16_softmax_is_in_float32():
    """4,096 equal scores: each probability is 1/4096 and their sum in float16 would stop growing at 2,048 terms."""
    q, k, v = (a.astype(np.float16) for a in qkv(32, 4096))
    q *= 0
    for cell in (CELLS["plain"], CELLS["tiles"]):
        found = cell(*tensors(q, k, v))
        assert found.dtype == ms.float16
        np.testing.assert_allclose(found.asnumpy(), joined(reference(q, k, v)), atol=1e-3)


@pytest.mark.parametrize("dtype", [ms.float32, ms.int8])
def test_flash_refuses_dtypes(dtype):
    with pytest.raises(ValueError, match="float16 or bfloat16"):
        make_attention("flash", 2, 64, dtype)


@pytest.mark.parametrize("head_dim", [8, 40, 528])
def test_flash_refuses_head_sizes(head_dim):
    with pytest.raises(ValueError, match="multiple of 16, at most 512"):
        make_attention("flash", 2, head_dim, ms.float16)


def test_unknown_kind():
    with pytest.raises(ValueError, match="'fast' is not one of plain, tiled, flash, flash_padded"):
        make_attention("fast", 2, 64)
    assert [type(make_attention(kind, 2, 64, ms.float16)) for kind in KINDS] == [
        PlainAttention,
        TiledAttention,
        FlashAttention,
        FlashAttention,
    ]


@pytest.mark.parametrize(("kind", "keys"), [("flash", 24), ("flash", 32), ("flash_padded", 24), ("flash_padded", 32)])
def test_flash_call(kind, keys, monkeypatch):
    """What reaches MindSpore's function fits its signature, keeps its documented rules and means attention.

    The kernel is Ascend's alone: in its place stands equation 1, with a mask that hides where it is not 0."""
    q, k, v = qkv(40, keys, np.float16)
    calls = []
    signature = inspect.signature(ops.flash_attention_score)

    def stub(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        calls.append(bound.arguments)
        q, k, v, mask = (bound.arguments[name] for name in ("query", "key", "value", "attn_mask"))
        q, k, v = (x.reshape(*x.shape[:2], bound.arguments["head_num"], -1).swapaxes(1, 2) for x in (q, k, v))
        scores = ops.matmul(q, k.swapaxes(2, 3)).astype(ms.float32) * bound.arguments["scalar_value"]
        if mask is not None:
            scores = ops.masked_fill(scores, mask.astype(ms.bool_), -1e30)
        out = ops.matmul(ops.softmax(scores).astype(v.dtype), v).swapaxes(1, 2)
        return out.reshape(*out.shape[:2], -1)

    monkeypatch.setattr(ops, "flash_attention_score", stub)
    cell = make_attention(kind, HEADS, HEAD_DIM, ms.float16)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        found = cell(*tensors(q, k, v))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    np.testing.assert_allclose(found.asnumpy(), joined(reference(q, k, v)), atol=2e-2)

    (call,) = calls
    assert call["scalar_value"] == HEAD_DIM**-0.5
    assert (call["head_num"], call["input_layout"], call["keep_prob"], call["sparse_mode"]) == (HEADS, "BSH", 1.0, 0)
    assert {call[name].dtype for name in ("query", "key", "value")} == {ms.float16}
    if kind == "flash" or keys % 16 == 0:
        assert call["attn_mask"] is None
        assert call["key"].shape[1] == keys
    else:
        assert call["key"].shape[1] == call["value"].shape[1] == 32
        assert (call["attn_mask"].shape, call["attn_mask"].dtype) == ((40, 32), ms.uint8)
