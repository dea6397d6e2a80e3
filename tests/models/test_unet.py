from dataclasses import replace

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest

from pipeline.models.config import UNetConfig
from pipeline.models.layers import norm_parameters
from pipeline.models.unet import ResBlock, TransformerBlock, UNet
from tests.golden import rule
from tests.golden.compare import assert_close, assert_gradients, build, golden

PREFIX = "model.diffusion_model."


pytestmark = pytest.mark.usefixtures("device")


def inputs(label):
    config = rule.CONFIGS[label].unet
    return (
        ms.Tensor(rule.normal("x", (rule.BATCH, 4, *rule.LATENT))),
        ms.Tensor(rule.TIMESTEPS, ms.int32),
        ms.Tensor(rule.normal("context", (rule.BATCH, 77, config.context_dim))),
        ms.Tensor(golden(label)["vector"]),
    )


@pytest.mark.parametrize("convolution", ["Conv2D"], indirect=True)  # as it samples
def test_tiny_equals_diffusers(convolution):
    unet = build(lambda: UNet(rule.CONFIGS["tiny"].unet), PREFIX)
    assert_close(unet(*inputs("tiny")), golden("tiny")["unet"])


def test_small_equals_diffusers():
    """Operation by operation: the 70 transformer blocks would take longer to compile."""
    unet = build(lambda: UNet(rule.CONFIGS["small"].unet), PREFIX)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        found = unet(*inputs("small"))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert_close(found, golden("small")["unet"])


@pytest.mark.parametrize("convolution", ["products"], indirect=True)  # as it trains
def test_output_and_gradients_equal_diffusers(convolution):
    """Of Conv2D tests/models/test_npu_form.py takes the gradients, beside layers that are an NPU's otherwise."""
    unet = build(lambda: UNet(rule.CONFIGS["tiny"].unet), PREFIX)
    output = assert_gradients(unet, inputs("tiny"), (rule.BATCH, 4, *rule.LATENT), PREFIX, "tiny", "unet")
    assert_close(output, golden("tiny")["unet"])


def test_norms_are_found_by_kind():
    """All of Stability's norms, also those that are called in_layers.0, out_layers.0 and out.0."""
    unet = UNet(MINI)
    found = norm_parameters(unet)
    assert found == {name for name, _ in unet.parameters_and_names() if name.endswith((".gamma", ".beta"))}
    assert {"out.0.gamma", "input_blocks.1.0.in_layers.0.beta", "middle_block.1.norm.gamma"} <= found


MINI = UNetConfig(16, (1, 2), (0, 1), context_dim=24, vector_dim=40, head_dim=16, num_res_blocks=1, norm_groups=4)


def mini_inputs():
    return (
        ms.Tensor(rule.normal("x", (1, 4, 8, 8))),
        ms.Tensor([500], ms.int32),
        ms.Tensor(rule.normal("context", (1, 77, MINI.context_dim))),
        ms.Tensor(rule.normal("vector", (1, MINI.vector_dim))),
    )


def test_half_precision(convolution):
    """Float16 weights and computation: the float32 output to float16's rounding, and norms in float32."""
    wanted = build(lambda: UNet(MINI), PREFIX)(*mini_inputs()).asnumpy()
    unet = build(lambda: UNet(MINI, compute_dtype=ms.float16), PREFIX)
    norms = norm_parameters(unet)
    for name, parameter in unet.parameters_and_names():
        if name not in norms:
            parameter.set_dtype(ms.float16)
    out = unet(*mini_inputs())
    assert out.dtype == ms.float32
    assert_close(out, wanted, 2e-2)
    with pytest.raises(AssertionError):  # it did compute in float16
        assert_close(out, wanted, 1e-5)


ONE_LEVEL = replace(MINI, channel_mult=(1,), transformer_depth=(1,))


def mini_gradients(unet):
    """Of the sum of the outputs, by every parameter."""

    def loss(*inputs):
        return unet(*inputs).sum()

    found = ms.jit(ms.grad(loss, None, list(unet.trainable_params())))(*mini_inputs())
    return [gradient.asnumpy() for gradient in found]


def test_recompute_marks_the_blocks_and_keeps_the_gradients():
    keep, recompute = (build(lambda: UNet(ONE_LEVEL, recompute=flag), PREFIX) for flag in (False, True))
    for unet, kinds in ((keep, set()), (recompute, {ResBlock, TransformerBlock})):
        assert {type(cell) for _, cell in unet.cells_and_names() if "output_recompute" in cell.get_flags()} == kinds
    for a, b in zip(mini_gradients(keep), mini_gradients(recompute)):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def test_wrong_attention_stops_at_once():
    with pytest.raises(ValueError, match="float16 or bfloat16"):
        UNet(MINI, attention="flash")
