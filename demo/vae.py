"""Trains the demo's VAE on generated pictures, on the CPU in about 25 minutes:  python -m demo.vae

L1 and squared error and a light KL term, as in Latent Diffusion (arXiv 2112.10752, appendix G) without its
discriminator. The first part of the steps sees 32×32 crops, a quarter of the work, the rest whole pictures. At the end
each latent channel is shifted and scaled inside `quant_conv` and `post_quant_conv`, so that latents times SDXL's
scaling factor have mean 0 and standard deviation 1, which is what a UNet wants: those of base style pictures and
textures, since the UNet is pre-trained on the base style."""

import logging
import math
import time
from pathlib import Path

import pipeline.device  # sets MindSpore up, so it comes before mindspore

import numpy as np
from safetensors.numpy import save_file

from demo import pictures
from demo.vae_start import start
from pipeline import store

import mindspore as ms  # isort: skip
from mindspore import nn, ops

from pipeline.models.config import TINY
from pipeline.models.vae import VAEDecoder, VAEEncoder
from pipeline.weights import names

log = logging.getLogger("demo.vae")

PATH = Path("demo/vae.safetensors")  # in the store
LEARNING_RATE = 8e-4
KL_WEIGHT = 5e-5  # per latent number against per-pixel errors
PICTURES, TEXTURES = 3000, 2000  # each picture in both styles
HELD_OUT_SEED, TRAIN_SEED = 1, 2
PARTS = ((32, 8), (64, 6))  # side in pixels and batch: first crops, then whole pictures
STEPS = (1500, 500)  # of each part


class Loss(nn.Cell):
    """Mean loss of an autoencoding with a posterior draw; `noise` is standard normal, of the latents' shape."""

    def __init__(self, encoder: VAEEncoder, decoder: VAEDecoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def construct(self, pixels, noise):
        mean, logvar = ops.split(self.encoder(pixels), noise.shape[1], axis=1)
        variance = ops.exp(logvar)
        error = self.decoder(mean + ops.sqrt(variance) * noise) - pixels
        divergence = 0.5 * (mean * mean + variance - 1.0 - logvar)
        return ops.abs(error).mean() + 2.0 * (error * error).mean() + KL_WEIGHT * divergence.mean()


def texture(seed: int, index: int) -> np.ndarray:
    """(64, 64, 3) uint8 that no caption describes, so that the VAE is not lost on other pictures: gradients, clouds, or
    several shapes of any colour, on white too."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 1 << 32 | index]))
    size = pictures.SIZE
    low, high = rng.uniform(0, 255, (2, 3))
    axis = np.linspace(-1, 1, size)
    kind = index % 3
    if kind == 0:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.cos(angle) * axis[None] + np.sin(angle) * axis[:, None]
        mix = 0.5 + 0.5 * (ramp if rng.random() < 0.5 else np.sin(ramp * rng.uniform(2, 12)))
    elif kind == 1:
        waves = rng.normal(size=(8, 3)) * [5, 5, np.pi]
        mix = 0.5 + 0.15 * sum(np.sin(a * axis[None] + b * axis[:, None] + c) for a, b, c in waves)
    else:
        mix = np.full((size, size), rng.uniform(0, 1))
        if rng.random() < 0.4:
            low, high = np.full((2, 3), 255.0)
    picture = low + (high - low) * np.clip(mix, 0, 1)[..., None]
    for _ in range(rng.integers(0, 3) if kind < 2 else rng.integers(2, 7)):
        x, y = np.meshgrid(size * (axis - rng.uniform(-1, 1)) / 2, size * (axis - rng.uniform(-1, 1)) / 2)
        distance = pictures.SHAPES[str(rng.choice(list(pictures.SHAPES)))](x, y, rng.uniform(5, 22))
        cover = np.clip(0.5 - distance / rng.choice([1.0, 1.0, 6.0]), 0, 1)[..., None]
        picture = picture + cover * (rng.uniform(0, 255, 3) - picture)
    return (np.clip(picture, 0, 255) + 0.5).astype(np.uint8)


def training_pictures() -> np.ndarray:
    """(n, 64, 64, 3) uint8: the two styles in turn, base first, then the textures."""
    drawn = [pictures.sample(TRAIN_SEED, i, style)[0] for i in range(PICTURES) for style in pictures.STYLES]
    return np.stack(drawn + [texture(TRAIN_SEED, i) for i in range(TEXTURES)])


def held_out_pictures(count: int = 64) -> np.ndarray:
    """(count, 64, 64, 3) uint8 that no training set holds, the two styles in turn."""
    return np.stack([pictures.sample(HELD_OUT_SEED, i, pictures.STYLES[i % 2])[0] for i in range(count)])


def to_pixels(images: np.ndarray) -> np.ndarray:
    """uint8 (b, h, w, 3) → float32 (b, 3, h, w) in [-1, 1]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 127.5 - 1


def psnr(images: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(b,) peak signal-to-noise ratios in decibels: uint8 (b, h, w, 3) against float (b, 3, h, w) in [-1, 1]."""
    shown = np.round((np.clip(pixels, -1, 1) + 1) * 127.5)
    return 10 * np.log10(255**2 / np.mean((images.transpose(0, 3, 1, 2) - shown) ** 2, axis=(1, 2, 3)))


def batch(images: np.ndarray, side: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random crops, mirrored at random: (size, 3, side, side) float32."""
    chosen = []
    for index in rng.integers(0, len(images), size):
        top, left = rng.integers(0, pictures.SIZE - side + 1, 2)
        crop = images[index, top : top + side, left : left + side]
        chosen.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return to_pixels(np.stack(chosen))


def normalise(weights: dict[str, np.ndarray], mean: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """The same autoencoder with latents · scaling factor of mean 0 and standard deviation 1 in each channel.

    `weights` by the VAE's own names; `mean`, `std` (4,) are those of its unscaled latents."""
    gain = 1 / (std * TINY.vae.scaling_factor)
    both = np.concatenate([gain, np.ones_like(gain)])
    shift = np.concatenate([-mean * gain, 2 * np.log(gain)])  # the log-variance grows with the scale
    result = dict(weights)
    result["quant_conv.weight"] = weights["quant_conv.weight"] * both[:, None, None, None]
    result["quant_conv.bias"] = weights["quant_conv.bias"] * both + shift
    inverse = weights["post_quant_conv.weight"][:, :, 0, 0]
    result["post_quant_conv.weight"] = (inverse / gain)[:, :, None, None]
    result["post_quant_conv.bias"] = weights["post_quant_conv.bias"] + inverse @ mean
    return {name: np.asarray(value, np.float32) for name, value in result.items()}


def train(steps: tuple[int, ...]) -> None:
    """Train with so many steps in each of PARTS and write PATH."""
    images, held_out = training_pictures(), held_out_pictures()
    ms.set_seed(TRAIN_SEED)
    encoder, decoder = VAEEncoder(TINY.vae), VAEDecoder(TINY.vae)
    own = dict(encoder.parameters_and_names()) | dict(decoder.parameters_and_names())
    for name, value in start({name: parameter.asnumpy() for name, parameter in own.items()}, TINY.vae).items():
        own[name].set_data(ms.Tensor(value))
    loss = Loss(encoder, decoder)
    parameters = ms.ParameterTuple(loss.trainable_params())
    total = sum(steps)
    rates = [LEARNING_RATE * min(1, i / 100) * 0.5 * (1 + math.cos(math.pi * i / total)) for i in range(1, total + 1)]
    optimizer = nn.Adam(parameters, learning_rate=rates, beta2=0.99)
    gradient = ms.value_and_grad(loss, None, parameters)

    @ms.jit
    def step(pixels, noise):
        value, gradients = gradient(pixels, noise)
        optimizer(ops.clip_by_global_norm(gradients, 1.0))
        return value

    rng = np.random.Generator(np.random.Philox(TRAIN_SEED))
    number, begin = 0, time.monotonic()
    for (side, size), count in zip(PARTS, steps, strict=True):
        latent = (size, TINY.vae.latent_channels, side // TINY.vae.factor, side // TINY.vae.factor)
        for _ in range(count):
            value = step(ms.Tensor(batch(images, side, size, rng)), ms.Tensor(rng.standard_normal(latent, np.float32)))
            number += 1
            if number % 50 == 0:
                seconds = time.monotonic() - begin
                log.info("step %d of %d, %.0f s, loss %.4f", number, total, seconds, value.asnumpy().item())
            if number % 250 == 0 or number == total:
                report(encoder, decoder, images[::20], held_out, own)  # every 20th: none of the new style


def report(encoder: VAEEncoder, decoder: VAEDecoder, images: np.ndarray, held_out: np.ndarray, own: dict) -> None:
    """Log the reconstruction of `held_out`, and write the weights normalised by the latents of `images`."""

    def latents(some: np.ndarray) -> np.ndarray:
        starts = range(0, len(some) // 16 * 16, 16)
        moments = [encoder(ms.Tensor(to_pixels(some[i : i + 16]))).asnumpy() for i in starts]
        return np.concatenate(moments)[:, : TINY.vae.latent_channels]

    found = latents(held_out)
    pixels = np.concatenate([decoder(ms.Tensor(found[i : i + 16])).asnumpy() for i in range(0, len(found), 16)])
    decibels = psnr(held_out, pixels)
    log.info("held-out PSNR: mean %.2f dB, worst %.2f dB", decibels.mean(), decibels.min())
    of_training = latents(images)
    weights = {name: value.asnumpy() for name, value in own.items()}
    weights = normalise(weights, of_training.mean((0, 2, 3)), of_training.std((0, 2, 3)))
    target = store.root() / PATH
    with store.atomic(target) as temporary:
        save_file({names.to_stability(names.PREFIX["vae"] + name): value for name, value in weights.items()}, temporary)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline.device.setup("CPU")
    train(STEPS)
