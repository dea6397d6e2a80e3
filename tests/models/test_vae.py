import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import pytest

from pipeline.models.vae import VAEDecoder, VAEEncoder
from tests.golden import rule
from tests.golden.compare import assert_close, assert_gradients, build, golden

PREFIX = "first_stage_model."


pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("label", ["tiny", "small"])
def test_encoder_equals_diffusers(label, convolution):
    encoder = build(lambda: VAEEncoder(rule.CONFIGS[label].vae), PREFIX)
    pixels = ms.Tensor(rule.normal("pixels", (rule.BATCH, 3, *rule.PIXELS)))
    assert_close(encoder(pixels), golden(label)["moments"])


@pytest.mark.parametrize("label", ["tiny", "small"])
def test_decoder_equals_diffusers(label, convolution):
    decoder = build(lambda: VAEDecoder(rule.CONFIGS[label].vae), PREFIX)
    latents = ms.Tensor(rule.normal("latents", (rule.BATCH, 4, *rule.LATENT)))
    pixels = decoder(latents)
    assert pixels.shape == (rule.BATCH, 3, 8 * rule.LATENT[0], 8 * rule.LATENT[1])
    assert_close(pixels[:, :, ::4, ::4], golden(label)["pixels"])


def test_encoder_gradients_equal_diffusers():
    encoder = build(lambda: VAEEncoder(rule.CONFIGS["tiny"].vae), PREFIX)
    pixels = ms.Tensor(rule.normal("pixels", (rule.BATCH, 3, *rule.PIXELS)))
    height, width = rule.PIXELS
    assert_gradients(encoder, (pixels,), (rule.BATCH, 8, height // 8, width // 8), PREFIX, "tiny", "vae")


def test_decoder_gradients_equal_diffusers():
    decoder = build(lambda: VAEDecoder(rule.CONFIGS["tiny"].vae), PREFIX)
    latents = ms.Tensor(rule.normal("latents", (rule.BATCH, 4, *rule.LATENT)))
    height, width = rule.LATENT
    assert_gradients(decoder, (latents,), (rule.BATCH, 3, 8 * height, 8 * width), PREFIX, "tiny", "vae")
