import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest

from pipeline.models import forms
from pipeline.models.layers import norm_parameters
from pipeline.models.unet import Block, ResBlock, SpatialTransformer, TransformerBlock, UNet, recompute_blocks
from tests.golden import rule
from tests.golden.compare import assert_close, assert_gradients, build, golden, unet_inputs

PREFIX = "model.diffusion_model."


pytestmark = pytest.mark.usefixtures("device")


def pynative(unet, *inputs):
    """Operation by operation, where compilation would take longer."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        return unet(*inputs)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("convolution", ["Conv2D"], indirect=True)  # as it samples
def test_mini_equals_diffusers(convolution):
    unet = build(lambda: UNet(rule.MINI), PREFIX)
    assert_close(unet(*unet_inputs(rule.MINI, "mini")), golden("mini")["unet"])


@pytest.mark.parametrize("convolution", ["Conv2D"], indirect=True)
def test_small_equals_diffusers(convolution):
    config = rule.CONFIGS["small"].unet
    unet = build(lambda: UNet(config), PREFIX)
    assert_close(pynative(unet, *unet_inputs(config, "small")), golden("small")["unet"])


@pytest.mark.parametrize("convolution", ["products"], indirect=True)  # as it trains
def test_output_and_gradients_equal_diffusers(convolution):
    """Of Conv2D tests/models/test_npu_form.py takes the gradients, beside layers that are an NPU's otherwise."""
    unet = build(lambda: UNet(rule.MINI), PREFIX)
    output = assert_gradients(
        unet, unet_inputs(rule.MINI, "mini"), (rule.BATCH, 4, *rule.LATENT), PREFIX, "mini", "unet"
    )
    assert_close(output, golden("mini")["unet"])


def test_norms_are_found_by_kind():
    """All of Stability's norms, also those that are called in_layers.0, out_layers.0 and out.0."""
    unet = UNet(rule.MINI)
    found = norm_parameters(unet)
    assert found == {name for name, _ in unet.parameters_and_names() if name.endswith((".gamma", ".beta"))}
    assert {"out.0.gamma", "input_blocks.1.0.in_layers.0.beta", "middle_block.1.norm.gamma"} <= found


def test_half_precision(convolution):
    """Float16 weights and computation: the float32 output to float16's rounding, and norms in float32."""
    unet = build(lambda: UNet(rule.MINI, compute_dtype=ms.float16), PREFIX)
    norms = norm_parameters(unet)
    for name, parameter in unet.parameters_and_names():
        if name not in norms:
            parameter.set_dtype(ms.float16)
    out = unet(*unet_inputs(rule.MINI, "mini"))
    assert out.dtype == ms.float32
    assert_close(out, golden("mini")["unet"], 2e-2)
    with pytest.raises(AssertionError):  # it did compute in float16
        assert_close(out, golden("mini")["unet"])


def test_recompute_marks_the_blocks():
    for flag, kinds in ((False, set()), (True, {ResBlock, TransformerBlock})):
        unet = UNet(rule.MINI, recompute=flag)
        assert {type(cell) for _, cell in unet.cells_and_names() if "output_recompute" in cell.get_flags()} == kinds


def test_recompute_keeps_the_gradients():
    """Of one block of the UNet."""
    wanted, found = (gradients_of_a_block(recompute) for recompute in (False, True))
    for kept, computed in zip(wanted, found, strict=True):
        np.testing.assert_allclose(computed, kept, rtol=1e-5, atol=1e-5 * np.abs(kept).max())


def gradients_of_a_block(recompute: bool) -> list[np.ndarray]:
    form = forms.chosen()
    transformer = SpatialTransformer(form, 16, 1, 24, 16, 4, "tiled", ms.float32)
    block = build(lambda: Block(ResBlock(form, 8, 32, 16, 4), transformer, None), PREFIX)
    if recompute:
        recompute_blocks(block)

    def total(x, emb, context):
        return block(x, emb, context).sum()

    shapes = {"x": (1, 8, 8, 8), "emb": (1, 32), "context": (1, 77, 24)}
    inputs = (ms.Tensor(rule.normal(name, shape)) for name, shape in shapes.items())
    found = ms.jit(ms.grad(total, None, list(block.trainable_params())))(*inputs)
    return [gradient.asnumpy() for gradient in found]


def test_wrong_attention_stops_at_once():
    with pytest.raises(ValueError, match="float16 or bfloat16"):
        UNet(rule.MINI, attention="flash")
