import pipeline.device  # noqa: F401  (before MindSpore)
import mindspore as ms
import pytest
from pipeline.models.unet import UNet

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


@pytest.mark.parametrize("label", ["tiny", "small"])
def test_equals_diffusers(label):
    unet = build(lambda: UNet(rule.CONFIGS[label].unet), PREFIX)
    assert_close(unet(*inputs(label)), golden(label)["unet"])


def test_gradients_equal_diffusers():
    unet = build(lambda: UNet(rule.CONFIGS["tiny"].unet), PREFIX)
    assert_gradients(unet, inputs("tiny"), (rule.BATCH, 4, *rule.LATENT), PREFIX, "tiny", "unet")
